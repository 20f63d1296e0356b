//! Who is enrolled: found by container id, by netns or by name.
//!
//! Owns: the in-memory index over what the backends keep (the ENROLMENTS map, the records of nftables), which is
//! the truth and outlives the agent.
//! Never does: touch the kernel.

use std::collections::{BTreeMap, BTreeSet};

use veer_common::cni::{Attachment, PodReference, ValidAttachment};
use veer_common::maps::{Enrolment, NetnsCookie, driver};

use crate::model::{BackendName, Driver, Origins};
use crate::platform::bpf::maps::ListEntries;
use crate::platform::netns::NetnsId;

/// An enrolled pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Enrolled {
    /// Its netns' cookie; for nftables on a kernel without cookies (before 5.14) the netns' inode number.
    pub cookie: NetnsCookie,
    /// CNI container id.
    pub container_id: String,
    /// The interface that the runtime named at ADD.
    pub interface: String,
    /// The CNI network of that interface.
    pub network: String,
    /// Namespace and name.
    pub pod: PodReference,
    /// The netns as the runtime named it.
    pub netns_path: String,
    /// The netns as a file.
    pub netns: NetnsId,
    /// Seconds since the epoch.
    pub enrolled_at: u64,
    /// What redirects it.
    pub backend: BackendName,
    /// Who drives its proxy.
    pub driver: Driver,
    /// What is in the list maps for it.
    pub lists: ListEntries,
}

/// A text that does not fit into its field of the ENROLMENTS map.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what} has {length} bytes, {most} is the most that this agent takes")]
pub struct TooLong {
    /// Which text.
    what: &'static str,
    /// Its length.
    length: usize,
    /// What fits.
    most: usize,
}

/// All enrolled pods.
#[derive(Debug, Default)]
pub struct Registry {
    by_cookie: BTreeMap<NetnsCookie, Enrolled>,
    /// The same by their containers, which each ADD asks for: a node may have a thousand.
    by_container: BTreeSet<(String, NetnsCookie)>,
    /// Where the settings of the pods come from that this agent has enrolled. In memory alone: what an earlier
    /// agent has read is read again when it is asked for.
    origins: BTreeMap<NetnsCookie, Box<Origins>>,
}

impl Registry {
    /// Adds or replaces a pod.
    pub fn insert(&mut self, pod: Enrolled) {
        self.by_container.insert((pod.container_id.clone(), pod.cookie));
        let (cookie, container) = (pod.cookie, pod.container_id.clone());
        if let Some(before) =
            self.by_cookie.insert(cookie, pod).filter(|before| before.container_id != container)
        {
            self.by_container.remove(&(before.container_id, cookie));
        }
    }

    /// Forgets a pod.
    pub fn remove(&mut self, cookie: NetnsCookie) -> Option<Enrolled> {
        self.origins.remove(&cookie);
        let pod = self.by_cookie.remove(&cookie)?;
        self.by_container.remove(&(pod.container_id.clone(), cookie));
        Some(pod)
    }

    /// Keeps a pod's uid, if it has none yet.
    pub fn keep_uid(&mut self, cookie: NetnsCookie, uid: String) {
        if let Some(pod) = self.by_cookie.get_mut(&cookie) {
            pod.pod.uid.get_or_insert(uid);
        }
    }

    /// Keeps where a pod's settings come from.
    pub fn keep_origins(&mut self, cookie: NetnsCookie, origins: Box<Origins>) {
        self.origins.insert(cookie, origins);
    }

    /// Where a pod's settings came from when this agent enrolled it.
    pub fn origins(&self, cookie: NetnsCookie) -> Option<&Origins> {
        self.origins.get(&cookie).map(Box::as_ref)
    }

    /// The pod of this name; the youngest, while an earlier one of the name has not gone.
    pub fn of_pod(&self, namespace: &str, name: &str) -> Option<&Enrolled> {
        let named = self.iter().filter(|pod| pod.pod.namespace == namespace && pod.pod.name == name);
        named.max_by_key(|pod| (pod.enrolled_at, pod.cookie))
    }

    /// The pod with this netns.
    pub fn get(&self, cookie: NetnsCookie) -> Option<&Enrolled> {
        self.by_cookie.get(&cookie)
    }

    /// The pod of this container.
    pub fn of_container(&self, container_id: &str) -> Option<&Enrolled> {
        let first = self.by_container.range((container_id.to_owned(), NetnsCookie::MIN)..).next();
        let (_, cookie) = first.filter(|(container, _)| container == container_id)?;
        self.by_cookie.get(cookie)
    }

    /// All pods, in the order of their cookies.
    pub fn iter(&self) -> impl Iterator<Item = &Enrolled> {
        self.by_cookie.values()
    }

    /// Whom a GC of `network` unenrols: its pods that are not `valid`. That list names attachments of the
    /// one network alone, so pods of others are not on it and stay.
    pub fn gone(&self, network: &str, valid: &[ValidAttachment]) -> Vec<NetnsCookie> {
        let is_valid = |pod: &Enrolled| {
            valid
                .iter()
                .any(|valid| valid.container_id == pod.container_id && valid.interface == pod.interface)
        };
        let gone = self.iter().filter(|pod| pod.network == network && !is_valid(pod));
        gone.map(|pod| pod.cookie).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_cookie.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_cookie.is_empty()
    }
}

impl Enrolled {
    /// The pod of an ADD, without lists.
    pub fn new(
        cookie: NetnsCookie,
        netns: NetnsId,
        attachment: &Attachment,
        pod: PodReference,
        (backend, driver): (BackendName, Driver),
        enrolled_at: u64,
    ) -> Self {
        Self {
            cookie,
            container_id: attachment.container_id.clone(),
            interface: attachment.interface.clone(),
            network: attachment.network.clone(),
            pod,
            netns_path: attachment.netns.clone(),
            netns,
            enrolled_at,
            backend,
            driver,
            lists: ListEntries::default(),
        }
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.pod.namespace, self.pod.name)
    }

    /// The pod as the ENROLMENTS map holds it.
    ///
    /// # Errors
    /// If a text is longer than its field.
    pub fn to_map(&self) -> Result<Enrolment, TooLong> {
        Ok(Enrolment {
            container_id: padded("container id", &self.container_id)?,
            netns_path: padded("netns path", &self.netns_path)?,
            namespace: padded("namespace", &self.pod.namespace)?,
            name: padded("pod name", &self.pod.name)?,
            interface: padded("interface name", &self.interface)?,
            network: padded("network name", &self.network)?,
            netns_device: self.netns.device,
            netns_inode: self.netns.inode,
            enrolled_at: self.enrolled_at,
            driver: match self.driver {
                Driver::Sidecar => driver::SIDECAR,
                Driver::Node => driver::NODE,
                Driver::Ztunnel => driver::ZTUNNEL,
            },
        })
    }

    /// The pod that the ENROLMENTS map holds.
    pub fn from_map(cookie: NetnsCookie, map: &Enrolment, lists: ListEntries) -> Self {
        Self {
            cookie,
            container_id: text(&map.container_id),
            interface: text(&map.interface),
            network: text(&map.network),
            pod: PodReference { namespace: text(&map.namespace), name: text(&map.name), uid: None },
            netns_path: text(&map.netns_path),
            netns: NetnsId { device: map.netns_device, inode: map.netns_inode },
            enrolled_at: map.enrolled_at,
            backend: BackendName::Ebpf,
            driver: match map.driver {
                driver::NODE => Driver::Node,
                driver::ZTUNNEL => Driver::Ztunnel,
                _ => Driver::Sidecar,
            },
            lists,
        }
    }
}

/// The attachment that a pod is known by: its first. A further one of an enrolled pod, which another network
/// may have made (Multus), takes neither its interface nor its network from it.
pub fn main_attachment(known: Option<&Enrolled>, attachment: &Attachment) -> Attachment {
    let mut main = attachment.clone();
    if let Some(pod) = known {
        main.interface.clone_from(&pod.interface);
        main.network.clone_from(&pod.network);
    }
    main
}

fn padded<const N: usize>(what: &'static str, value: &str) -> Result<[u8; N], TooLong> {
    let mut field = [0; N];
    let too_long = TooLong { what, length: value.len(), most: N };
    field.get_mut(..value.len()).ok_or(too_long)?.copy_from_slice(value.as_bytes());
    Ok(field)
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(field.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(container_id: &str) -> Enrolled {
        Enrolled {
            cookie: 7,
            container_id: container_id.to_owned(),
            interface: "eth0".to_owned(),
            network: "pods".to_owned(),
            pod: PodReference { namespace: "shop".to_owned(), name: "cart".to_owned(), uid: None },
            netns_path: "/var/run/netns/cni-1".to_owned(),
            netns: NetnsId { device: 4, inode: 4_026_532_000 },
            enrolled_at: 1_700_000_000,
            backend: BackendName::Ebpf,
            driver: Driver::Node,
            lists: ListEntries::default(),
        }
    }

    #[test]
    fn a_pod_survives_the_map() {
        let pod = Enrolled { network: "n".repeat(128), ..pod(&"c".repeat(128)) };
        assert_eq!(Enrolled::from_map(7, &pod.to_map().unwrap(), ListEntries::default()), pod);
    }

    #[test]
    fn a_text_that_does_not_fit_is_an_error_and_never_cut() {
        let error = pod(&"c".repeat(129)).to_map().unwrap_err();
        assert_eq!(error.to_string(), "container id has 129 bytes, 128 is the most that this agent takes");
    }

    #[test]
    fn a_pod_is_found_by_the_container_that_it_has_and_by_none_that_it_had() {
        let mut registry = Registry::default();
        registry.insert(pod("one"));
        registry.insert(pod("two"));
        assert_eq!((registry.of_container("one"), registry.of_container("two")), (None, Some(&pod("two"))));
        // Of two that have it, the first by its cookie, and then the other one.
        registry.insert(Enrolled { cookie: 9, ..pod("two") });
        assert_eq!(registry.of_container("two").map(|pod| pod.cookie), Some(7));
        registry.remove(7);
        assert_eq!(registry.of_container("two").map(|pod| pod.cookie), Some(9));
        registry.remove(9);
        assert_eq!((registry.of_container("two"), registry.by_container.len()), (None, 0));
    }

    /// Two pods of each of two networks.
    fn two_networks() -> Registry {
        let mut registry = Registry::default();
        for (cookie, container_id, network) in
            [(1, "a1", "a"), (2, "b1", "b"), (3, "a2", "a"), (4, "b2", "b")]
        {
            registry.insert(Enrolled { cookie, network: network.to_owned(), ..pod(container_id) });
        }
        registry
    }

    fn valid(container_id: &str, interface: &str) -> ValidAttachment {
        ValidAttachment { container_id: container_id.to_owned(), interface: interface.to_owned() }
    }

    #[test]
    fn gc_of_a_network_keeps_the_pods_of_another() {
        let registry = two_networks();
        assert_eq!(registry.gone("b", &[valid("b1", "eth0")]), [4]);
        assert_eq!(registry.gone("a", &[valid("a2", "eth0"), valid("a1", "eth0")]), [0; 0]);
        assert_eq!(registry.gone("a", &[]), [1, 3]);
        assert_eq!(registry.gone("c", &[]), [0; 0]);
        assert_eq!(registry.gone("", &[]), [0; 0]);
    }

    #[test]
    fn gc_keeps_a_pod_by_container_and_interface_together() {
        let registry = two_networks();
        assert_eq!(registry.gone("a", &[valid("a1", "net1"), valid("a2", "eth0")]), [1]);
        // The other network's attachment of that name keeps nobody here.
        assert_eq!(registry.gone("a", &[valid("b1", "eth0"), valid("a2", "eth0")]), [1]);
    }

    #[test]
    fn a_further_attachment_leaves_a_pod_in_its_first_network() {
        let first = Attachment {
            container_id: "c0ffee".to_owned(),
            netns: "/var/run/netns/cni-1".to_owned(),
            interface: "eth0".to_owned(),
            network: "pods".to_owned(),
            pod: None,
        };
        assert_eq!(main_attachment(None, &first), first);
        let further =
            Attachment { interface: "net1".to_owned(), network: "storage".to_owned(), ..first.clone() };
        assert_eq!(main_attachment(Some(&pod("c0ffee")), &further), first);
    }

    #[test]
    fn a_pod_is_found_by_its_container_and_by_its_netns() {
        let mut registry = Registry::default();
        registry.insert(pod("one"));
        registry.insert(Enrolled { cookie: 8, ..pod("two") });
        assert_eq!(registry.of_container("two").map(|pod| pod.cookie), Some(8));
        assert_eq!(registry.get(7).map(|pod| pod.container_id.as_str()), Some("one"));
        assert_eq!(registry.of_container("three"), None);
        registry.remove(8);
        assert_eq!((registry.of_container("two"), registry.len()), (None, 1));
    }
}
