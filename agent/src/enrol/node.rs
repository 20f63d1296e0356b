//! The node's state, on a thread of its own: what is loaded and who is enrolled.
//!
//! Owns: the datapath, the registry, and the thread that enters namespaces. Requests come one after the
//! other through a bounded channel, so no two of them meet. Called by: the CNI server and `app`.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};
use veer_common::address::{Address, Port};
use veer_common::cni::{Attachment, PodReference, ValidAttachment};
use veer_common::maps::{NetnsCookie, PodPolicy, PortListKey, PortSet, flag};

use super::error::EnrolError;
use super::follow::with_passthrough;
use super::identity::in_ids_of_node;
use super::registry::{Enrolled, Registry, main_attachment};
use super::steps::{self, Hands, Target};
use crate::capture::{InterfaceAddress, MapEntries, OwnAddresses, map_entries};
use crate::model::{Capture, Origins};
use crate::platform::bpf::BpfError;
use crate::platform::bpf::load::Datapath;
use crate::platform::bpf::maps::ListEntries;
use crate::platform::listeners::{self, Borrowed};
use crate::platform::netlink::changes::NetnsNumber;
use crate::platform::netlink::{self, Listener};
use crate::platform::netns::{self, NetnsThread};

/// Requests that wait for the thread: a node starts 16 pods at once at the most, the rest waits in
/// the plugins.
const QUEUE: usize = 64;

/// A pod that is to be enrolled.
#[derive(Debug)]
pub struct Enrolling {
    /// As the runtime names it.
    pub attachment: Attachment,
    /// Namespace and name.
    pub pod: PodReference,
    /// What was decided.
    pub capture: Capture,
    /// What on the pod and the node led to that.
    pub origins: Box<Origins>,
    /// Its netns.
    pub netns: OwnedFd,
}

type Work = Box<dyn FnOnce(&mut Node) + Send>;

/// The way to the node's thread.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    work: mpsc::Sender<Work>,
}

impl NodeHandle {
    /// Runs `work` on the node's thread and waits for its result.
    ///
    /// # Errors
    /// `Stopping` when the thread has ended.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Node) -> T + Send + 'static,
    ) -> Result<T, EnrolError> {
        let (answer, result) = oneshot::channel();
        let work: Work = Box::new(move |node| {
            // Whoever asked may have gone; what was done stays done.
            drop(answer.send(work(node)));
        });
        self.work.send(work).await.map_err(|_closed| EnrolError::Stopping)?;
        result.await.map_err(|_closed| EnrolError::Stopping)
    }
}

/// The node's state.
#[derive(Debug)]
pub struct Node {
    pub(super) datapath: Datapath,
    pub(super) netns: NetnsThread,
    pub(super) registry: Registry,
    /// Who is reported by which number.
    pub(super) numbers: HashMap<NetnsNumber, NetnsCookie>,
}

/// What is read inside of a pod's netns, in one visit.
struct Inspection {
    cookie: NetnsCookie,
    addresses: Vec<InterfaceAddress>,
    listeners: Vec<Listener>,
}

impl Node {
    /// Takes over what an earlier agent left.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn take_over(datapath: Datapath, netns: NetnsThread) -> Result<Self, BpfError> {
        let mut node = Self { datapath, netns, registry: Registry::default(), numbers: HashMap::new() };
        let mut lists = node.datapath.maps.list_entries()?;
        for (cookie, record) in node.datapath.maps.enrolments()? {
            let pod = Enrolled::from_map(cookie, &record, lists.remove(&cookie).unwrap_or_default());
            node.take_over_pod(pod)?;
        }
        // Lists without a name: nobody looks at them, but they take room.
        for (cookie, orphan) in lists {
            tracing::warn!(cookie, "removed the lists of a pod that nobody knows");
            node.datapath.maps.remove_lists(&orphan)?;
        }
        // What changed while no agent was there.
        node.refresh_all();
        Ok(node)
    }

    /// A pod goes only if its netns is gone, or if it never was enrolled to the end. Whatever else is wrong
    /// is reported, and the pod keeps what it has: to forget it would be to let its traffic through.
    fn take_over_pod(&mut self, pod: Enrolled) -> Result<(), BpfError> {
        let (cookie, name) = (pod.cookie, pod.full_name());
        let half = self.datapath.maps.policy(cookie)?.is_none();
        self.registry.insert(pod);
        if half {
            tracing::warn!(pod = %name, cookie, "removed what was left of an enrolment");
            self.forget(cookie);
            return Ok(());
        }
        match self.datapath.refresh_netns(cookie) {
            Ok(true) => tracing::info!(pod = %name, cookie, "took over"),
            Ok(false) => {
                tracing::info!(pod = %name, cookie, "its netns is gone");
                self.forget(cookie);
            }
            Err(error) => match self.reattach(cookie) {
                Ok(()) => tracing::warn!(pod = %name, cookie, %error, "attached its inbound program again"),
                Err(second) => {
                    tracing::error!(pod = %name, cookie, %error, %second, "its inbound program is not ours");
                }
            },
        }
        Ok(())
    }

    /// Attaches the inbound program of a pod whose link was lost, if its netns is where it was.
    fn reattach(&mut self, cookie: NetnsCookie) -> Result<(), EnrolError> {
        let Some(pod) = self.registry.get(cookie) else { return Ok(()) };
        let netns = steps::open_netns(pod).ok_or_else(|| {
            EnrolError::NotEnrolled(format!("{} is not the pod's netns any more", pod.netns_path))
        })?;
        Ok(self.datapath.attach_netns(cookie, netns.as_fd())?)
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// As the system says.
    pub fn start(self) -> io::Result<(NodeHandle, thread::JoinHandle<()>)> {
        let (work, mut queue) = mpsc::channel::<Work>(QUEUE);
        let mut node = self;
        let thread = thread::Builder::new().name("node".to_owned()).spawn(move || {
            while let Some(work) = queue.blocking_recv() {
                work(&mut node);
            }
        })?;
        Ok((NodeHandle { work }, thread))
    }

    /// Everyone who is enrolled.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What the maps hold of an enrolled pod; `None` for one that is not, or not wholly.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn map_entries(&self, cookie: NetnsCookie) -> Result<Option<MapEntries>, BpfError> {
        let (Some(pod), Some(policy)) = (self.registry.get(cookie), self.datapath.maps.policy(cookie)?)
        else {
            return Ok(None);
        };
        self.datapath.maps.entries(policy, pod.lists.clone()).map(Some)
    }

    /// Turns events on or off.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn set_watched(&mut self, watched: bool) -> Result<(), BpfError> {
        self.datapath.maps.set_watched(watched)
    }

    /// Enrols a pod. A second ADD of the same container, as an installer that is in the chain twice or a
    /// further interface makes it, brings its addresses up to date.
    ///
    /// # Errors
    /// Whatever stands in the way; then nothing of it is left.
    pub fn add(&mut self, enrolling: &Enrolling) -> Result<(), EnrolError> {
        let id = self.netns.identify(enrolling.netns.as_fd())?;
        let capture = in_ids_of_node(&enrolling.capture, enrolling.netns.as_fd())?;
        // Before the addresses are read, so that no change is missed in between.
        let number = netlink::changes::number_of(enrolling.netns.as_fd());
        let inspection = self.inspect(&enrolling.netns)?;
        let cookie = inspection.cookie;
        let container = &enrolling.attachment.container_id;
        let known = self.registry.get(cookie);
        if let Some(other) = known.filter(|other| other.container_id != *container) {
            let (other, container) = (other.full_name(), other.container_id.clone());
            return Err(EnrolError::NetnsTaken { other, container });
        }
        // The same container in another netns: the sandbox was made anew without a DEL.
        if let Some(old) = self.registry.of_container(container).map(|pod| pod.cookie)
            && old != cookie
        {
            self.forget(old);
        }
        let attachment = main_attachment(self.registry.get(cookie), &enrolling.attachment);
        let entries = entries(cookie, &capture, inspection.addresses, &attachment.interface);
        let lists = ListEntries {
            ports: entries.ports.iter().map(|(key, _)| *key).collect(),
            ranges: entries.ranges,
            own_addresses: entries.own_addresses,
        };
        let pod = Enrolled::new(cookie, id, &attachment, enrolling.pod.clone(), lists, unix_time());
        self.enrol(pod, entries.policy, &entries.ports, &enrolling.netns, &inspection.listeners)?;
        self.follow(cookie, number);
        self.registry.keep_origins(cookie, enrolling.origins.clone());
        Ok(())
    }

    fn enrol(
        &mut self,
        pod: Enrolled,
        policy: PodPolicy,
        ports: &[(PortListKey, Box<PortSet>)],
        netns: &OwnedFd,
        older: &[Listener],
    ) -> Result<(), EnrolError> {
        let listeners = borrow(&pod, older)?;
        let name = pod.full_name();
        if let Some(before) = self.registry.get(pod.cookie).map(|before| before.lists.clone()) {
            self.repair(&pod, &policy, netns, &listeners)?;
            steps::give_passthrough(&self.netns, netns.as_fd(), &policy)?;
            self.renew(pod, &policy, ports, &before)?;
            tracing::info!(pod = %name, "already enrolled, lists brought up to date");
            return Ok(());
        }
        let record = pod.to_map()?;
        let target = Target { pod: &pod, record, policy, ports, netns, listeners };
        steps::enrol(&mut self.hands(), &target)?;
        self.adopt_late(&pod, &policy, netns);
        tracing::info!(
            pod = %pod.full_name(), container = %pod.container_id, cookie = pod.cookie,
            netns = %pod.netns_path, "enrolled"
        );
        self.registry.insert(pod);
        Ok(())
    }

    /// Gives an enrolled pod back what it has lost: after a CHECK that failed, the way out is another ADD.
    fn repair(
        &mut self,
        pod: &Enrolled,
        policy: &PodPolicy,
        netns: &OwnedFd,
        listeners: &[Borrowed],
    ) -> Result<(), EnrolError> {
        if self.datapath.netns_of_link(pod.cookie) != Some(pod.netns.inode) {
            self.datapath.attach_netns(pod.cookie, netns.as_fd())?;
            tracing::warn!(pod = %pod.full_name(), "attached its inbound program again");
        }
        steps::adopt(&mut self.datapath, pod, policy, listeners);
        Ok(())
    }

    /// Brings the lists of an enrolled pod up to date: what is new first, what is old after, and the rest
    /// untouched, so that no connection meets a gap. A port list that changes does so at once.
    pub(super) fn renew(
        &mut self,
        pod: Enrolled,
        policy: &PodPolicy,
        ports: &[(PortListKey, Box<PortSet>)],
        before: &ListEntries,
    ) -> Result<(), EnrolError> {
        self.datapath.maps.insert_enrolment(pod.cookie, &pod.to_map()?)?;
        let new = pod.lists.without(before);
        let ports_before = self.datapath.maps.port_lists(&before.ports)?;
        if let Err(error) = self.datapath.maps.insert_lists(ports, &new) {
            let removed = self.datapath.maps.remove_lists(&new);
            self.datapath.maps.insert_port_lists(&ports_before).and(removed)?;
            return Err(error.into());
        }
        self.datapath.maps.insert_policy(pod.cookie, policy)?;
        self.datapath.maps.remove_lists(&before.without(&pod.lists))?;
        self.registry.insert(pod);
        Ok(())
    }

    /// Looks for listeners once more: one that began to listen after the first look and before there was a
    /// policy was seen by nobody. In a new pod there is no process yet, and so none.
    fn adopt_late(&mut self, pod: &Enrolled, policy: &PodPolicy, netns: &OwnedFd) {
        let ports = steps::proxy_ports(&DEFAULT_PORTS);
        let late = self
            .netns
            .run(netns.as_fd(), move || netlink::listeners(&ports).unwrap_or_default())
            .map_err(EnrolError::from)
            .and_then(|found| borrow(pod, &found));
        match late {
            Ok(late) => steps::adopt(&mut self.datapath, pod, policy, &late),
            Err(error) => tracing::error!(pod = %pod.full_name(), %error, "look for late listeners"),
        }
    }

    /// Unenrols the pod of a container; one that is not known is fine. A DEL for a further interface of
    /// the pod changes nothing.
    pub fn del(&mut self, attachment: &Attachment) {
        let Some(pod) = self.registry.of_container(&attachment.container_id) else { return };
        if pod.interface == attachment.interface {
            let cookie = pod.cookie;
            self.forget(cookie);
        }
    }

    /// Unenrols all pods of a network but these.
    pub fn keep_only(&mut self, network: &str, valid: &[ValidAttachment]) {
        for cookie in self.registry.gone(network, valid) {
            self.forget(cookie);
        }
    }

    /// Whether the pod of a container is as ADD left it.
    ///
    /// # Errors
    /// `NotEnrolled` with what is missing.
    pub fn check(&self, attachment: &Attachment) -> Result<(), EnrolError> {
        let pod = self.registry.of_container(&attachment.container_id).ok_or_else(|| {
            EnrolError::NotEnrolled(format!("container {} is not enrolled", attachment.container_id))
        })?;
        if self.datapath.maps.policy(pod.cookie)?.is_none() {
            return Err(EnrolError::NotEnrolled(format!("pod {} has no policy any more", pod.full_name())));
        }
        match self.datapath.netns_of_link(pod.cookie) {
            Some(inode) if inode == pod.netns.inode => Ok(()),
            Some(_) | None => Err(EnrolError::NotEnrolled(format!(
                "the inbound program of pod {} is not attached to its netns any more",
                pod.full_name()
            ))),
        }
    }

    fn forget(&mut self, cookie: NetnsCookie) {
        let Some(pod) = self.registry.remove(cookie) else { return };
        self.numbers.retain(|_, other| *other != cookie);
        let policy = self.datapath.maps.policy(cookie).ok().flatten().unwrap_or(DEFAULT_PORTS);
        let problems = steps::unenrol(&mut self.hands(), &pod, &policy);
        for problem in &problems {
            tracing::error!(pod = %pod.full_name(), %problem, "unenrolment");
        }
        tracing::info!(pod = %pod.full_name(), container = %pod.container_id, cookie, "unenrolled");
    }

    fn hands(&mut self) -> Hands<'_> {
        Hands { datapath: &mut self.datapath, netns: &self.netns }
    }

    fn inspect(&self, netns: &OwnedFd) -> Result<Inspection, EnrolError> {
        let failed = |attempt| move |source| EnrolError::Inspect { attempt, source };
        let ports = steps::proxy_ports(&DEFAULT_PORTS);
        let (cookie, addresses, listeners) = self.netns.run(netns.as_fd(), move || {
            (netns::current_cookie(), netlink::addresses(), netlink::listeners(&ports))
        })?;
        // A kernel without inet_diag cannot tell; a new pod has no listeners, which is nearly always.
        let listeners = listeners.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot list the listeners of a netns, taking it as without");
            Vec::new()
        });
        Ok(Inspection {
            cookie: cookie.map_err(failed("read the cookie"))?,
            addresses: addresses.map_err(failed("read the addresses"))?,
            listeners,
        })
    }
}

/// The map entries of a pod.
fn entries(
    cookie: NetnsCookie,
    capture: &Capture,
    addresses: Vec<InterfaceAddress>,
    interface: &str,
) -> MapEntries {
    let entries = map_entries(cookie, capture, &OwnAddresses::choose(&addresses, interface));
    if entries.policy.flags & flag::CAPTURES_V6 == 0 {
        return entries;
    }
    map_entries(cookie, capture, &OwnAddresses::choose(&with_passthrough(addresses), interface))
}

/// Borrows the listeners that were found in a pod's netns.
fn borrow(pod: &Enrolled, found: &[Listener]) -> Result<Vec<Borrowed>, EnrolError> {
    let borrowed = listeners::borrow(found, pod.netns.inode)
        .map_err(|source| EnrolError::Inspect { attempt: "find the listeners", source })?;
    if borrowed.len() < found.len() {
        let missing = found.len() - borrowed.len();
        tracing::warn!(pod = %pod.full_name(), missing, "listeners whose process was not found");
    }
    Ok(borrowed)
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The ports of the proxy, where a policy that would say them is gone or not there yet.
const DEFAULT_PORTS: PodPolicy = PodPolicy {
    flags: 0,
    proxy_uid: 0,
    proxy_gid: 0,
    outbound_port: Port::new(15001),
    inbound_port: Port::new(15006),
    tunnel_port: Port::new(15008),
    dns_port: Port::new(15053),
    _reserved: [0; 4],
    localhost: 0,
    localhost_mask: u32::MAX,
    source_v4: Address::UNSPECIFIED,
    source_v6: Address::UNSPECIFIED,
};
