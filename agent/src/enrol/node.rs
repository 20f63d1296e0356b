//! The node's state, on a thread of its own: what is loaded and who is enrolled.
//!
//! Owns: the backend, the registry, and the thread that enters namespaces. Requests come one after the
//! other through a bounded channel, so no two of them meet. Called by: the CNI server and `app`.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;

use tokio::sync::{mpsc, oneshot};
use veer_common::cni::{Attachment, PodReference, ValidAttachment};
use veer_common::maps::{NetnsCookie, flag};

use super::backend::{Backends, Found, Joining};
use super::ebpf::DEFAULT_PORTS;
use super::error::EnrolError;
use super::figures::Tally;
use super::past_mesh::Told;
use super::registry::{Enrolled, Registry, main_attachment};
use super::steps;
use super::versions::OtherVersions;
use crate::capture::{InterfaceAddress, MapEntries};
use crate::model::{BackendName, Capture, Driver, Origins};
use crate::platform::netlink::changes::NetnsNumber;
use crate::platform::netlink::{self, Listener};
use crate::platform::netns::{NetnsId, NetnsThread};
use crate::proxy::driver::{Drivers, ProxiedPod, ProxyDriver};
use crate::wall_clock;

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
    /// Who it is in the mesh, for a driver that tells others.
    pub service_account: String,
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
    pub(super) backends: Backends,
    pub(super) netns: NetnsThread,
    pub(super) registry: Registry,
    /// Who is reported by which number.
    pub(super) numbers: HashMap<NetnsNumber, NetnsCookie>,
    /// What they have counted.
    pub(super) tally: Tally,
    /// Of whom was told what went past the mesh.
    pub(super) told: Told,
    /// Who is redirected by programs that are none of this release's.
    others: OtherVersions,
    /// Who drives the pods' proxies, and is to serve no pod that is not enrolled.
    drivers: Option<Drivers>,
    /// Whether pods may be enrolled that ztunnel serves.
    pub(super) may_be_ambient: bool,
}

/// What is read inside of a pod's netns, in one visit.
pub(super) struct Inspection {
    cookie: NetnsCookie,
    pub(super) addresses: Vec<InterfaceAddress>,
    pub(super) listeners: Vec<Listener>,
}

impl Node {
    /// Takes over what an earlier agent left.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn take_over(
        backends: Backends,
        netns: NetnsThread,
        others: OtherVersions,
    ) -> Result<Self, EnrolError> {
        let mut node = Self {
            backends,
            netns,
            registry: Registry::default(),
            numbers: HashMap::new(),
            tally: Tally::default(),
            told: Told::default(),
            others,
            drivers: None,
            may_be_ambient: false,
        };
        node.tend_other_versions();
        for version in node.others.alive()? {
            tracing::warn!("{version}");
        }
        let mut recalled = Vec::new();
        for backend in node.backends.all() {
            recalled.extend(backend.recall()?);
        }
        for pod in recalled {
            node.take_over_pod(pod)?;
        }
        for backend in node.backends.all() {
            backend.taken_over()?;
        }
        node.begin_tally();
        node.begin_past_mesh();
        // What changed while no agent was there.
        node.refresh_all();
        Ok(node)
    }

    /// A pod goes only if its netns is gone, or if it never was enrolled to the end. Whatever else is wrong
    /// is reported, and the pod keeps what it has: to forget it would be to let its traffic through.
    fn take_over_pod(&mut self, pod: Enrolled) -> Result<(), EnrolError> {
        let found = self.backends.get_mut(pod.backend).take_over(&pod)?;
        let cookie = pod.cookie;
        self.registry.insert(pod);
        if found == Found::Leftover {
            self.forget(cookie);
        }
        Ok(())
    }

    /// Removes what other ABI versions have pinned for no pod any more.
    pub fn tend_other_versions(&self) {
        self.others.remove_dead();
    }

    /// The ABI version whose programs, none of this release's, redirect a netns.
    ///
    /// # Errors
    /// If that cannot be told.
    pub fn other_version_of(&self, netns: BorrowedFd<'_>) -> Result<Option<u32>, EnrolError> {
        let id = NetnsId::of(netns)
            .map_err(|source| EnrolError::Inspect { attempt: "read the inode number", source })?;
        Ok(self.others.of_netns(id.inode)?)
    }

    /// Tells drivers from now on of pods that go.
    #[must_use]
    pub fn with_drivers(self, drivers: Drivers) -> Self {
        Self { drivers: Some(drivers), ..self }
    }

    /// Lets pods be enrolled that ztunnel serves, and from here on follows what they need of the node.
    ///
    /// # Errors
    /// If the node's addresses cannot be read.
    pub fn with_ambient(mut self, may_be: bool) -> Result<Self, EnrolError> {
        self.may_be_ambient = may_be;
        self.refresh_node_addresses()?;
        Ok(self)
    }

    /// Pods as their drivers know them: that of a container, or all.
    pub fn proxied(&self, container: Option<&str>) -> Vec<ProxiedPod> {
        let proxied = |pod| ProxiedPod { has_v6: self.has_v6(pod), ..proxied_pod(pod) };
        match container {
            Some(container) => self.registry.of_container(container).into_iter().map(proxied).collect(),
            None => self.registry.iter().map(proxied).collect(),
        }
    }

    /// A pod by its name, but for its families.
    pub fn proxied_of(&self, namespace: &str, name: &str) -> Option<ProxiedPod> {
        self.registry.of_pod(namespace, name).map(proxied_pod)
    }

    /// Keeps a pod's uid, which its record does not have.
    pub fn keep_uid(&mut self, cookie: NetnsCookie, uid: String) {
        self.registry.keep_uid(cookie, uid);
    }

    /// The netns of a pod, if it is still its.
    pub fn netns_of(&self, cookie: NetnsCookie) -> Option<File> {
        self.registry.get(cookie).and_then(steps::open_netns)
    }

    /// Whether a pod has IPv6. Of one that is its own proxy's nobody asks.
    fn has_v6(&self, pod: &Enrolled) -> bool {
        if pod.driver == Driver::Sidecar {
            return false;
        }
        let netns = steps::open_netns(pod);
        let addresses = netns.and_then(|netns| self.netns.run(netns.as_fd(), netlink::addresses).ok()?.ok());
        addresses.into_iter().flatten().any(|one| one.address.is_ipv6())
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

    /// What the verdict goes by for an enrolled pod; `None` for one that is not, or not wholly.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn map_entries(&self, cookie: NetnsCookie) -> Result<Option<MapEntries>, EnrolError> {
        let Some(pod) = self.registry.get(cookie) else { return Ok(None) };
        self.backends.get(pod.backend).map_entries(pod)
    }

    /// Turns events on or off.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn set_watched(&mut self, watched: bool) -> Result<(), EnrolError> {
        self.backends.all().try_for_each(|backend| backend.set_watched(watched))
    }

    /// Enrols a pod. A second ADD of the same container, as an installer that is in the chain twice or a
    /// further interface makes it, brings its addresses up to date.
    ///
    /// # Errors
    /// Whatever stands in the way; then nothing of it is left.
    pub fn add(&mut self, enrolling: &Enrolling) -> Result<(), EnrolError> {
        let id = self.netns.identify(enrolling.netns.as_fd())?;
        if let Some(abi) = self.others.of_netns(id.inode)? {
            let (namespace, name) = (&enrolling.pod.namespace, &enrolling.pod.name);
            tracing::info!(pod = %format!("{namespace}/{name}"), abi, "left to the programs of the ABI version it has");
            return Ok(());
        }
        // Before the addresses are read, so that no change is missed in between.
        let number = netlink::changes::number_of(enrolling.netns.as_fd());
        let inspection = self.inspect(&enrolling.netns, id)?;
        let cookie = inspection.cookie;
        let container = &enrolling.attachment.container_id;
        let known = self.registry.get(cookie);
        if let Some(other) = known.filter(|other| other.container_id != *container) {
            // An inode number comes again once its netns is gone; a cookie does not.
            if cookie != id.inode || steps::open_netns(other).is_some() {
                let (other, container) = (other.full_name(), other.container_id.clone());
                return Err(EnrolError::NetnsTaken { other, container });
            }
            self.forget(cookie);
        }
        // The same container in another netns: the sandbox was made anew without a DEL.
        if let Some(old) = self.registry.of_container(container).map(|pod| pod.cookie)
            && old != cookie
        {
            self.forget(old);
        }
        let attachment = main_attachment(self.registry.get(cookie), &enrolling.attachment);
        let before = self.registry.get(cookie);
        let backend = self.backends.backend_for(&enrolling.capture, before)?;
        let since = before.map_or_else(wall_clock::seconds, |before| before.enrolled_at);
        let by = (backend, enrolling.capture.driver);
        let pod = Enrolled::new(cookie, id, &attachment, enrolling.pod.clone(), by, since);
        let is_known = before.is_some();
        let joining = Joining {
            pod,
            capture: &enrolling.capture,
            netns: &enrolling.netns,
            addresses: inspection.addresses,
            listeners: inspection.listeners,
            before,
        };
        let pod = self.backends.get_mut(backend).enrol(joining)?;
        let (name, container, path) = (pod.full_name(), &pod.container_id, &pod.netns_path);
        if is_known {
            tracing::info!(pod = %name, "already enrolled, lists brought up to date");
        } else {
            tracing::info!(pod = %name, %container, cookie, netns = %path, backend = backend.name(), "enrolled");
        }
        self.registry.insert(pod);
        self.follow(cookie, number);
        self.registry.keep_origins(cookie, enrolling.origins.clone());
        Ok(())
    }

    /// Redirects an enrolled pod otherwise; its listeners stay as they are registered.
    ///
    /// # Errors
    /// As the kernel says; then it is redirected as before.
    pub fn recapture(
        &mut self,
        cookie: NetnsCookie,
        capture: &Capture,
        origins: Option<Box<Origins>>,
    ) -> Result<(), EnrolError> {
        let Some(before) = self.registry.get(cookie).cloned() else { return Ok(()) };
        let Some(netns) = steps::open_netns(&before) else { return Ok(()) };
        let netns = netns.into();
        let Inspection { addresses, mut listeners, .. } = self.inspect(&netns, before.netns)?;
        let pod = Enrolled { driver: capture.driver, ..before.clone() };
        // That of DNS nobody has registered while it slept.
        listeners.retain(|one| capture.dns_capture && one.port == DEFAULT_PORTS.dns_port);
        let joining = Joining { pod, capture, netns: &netns, addresses, listeners, before: Some(&before) };
        let pod = self.backends.get_mut(before.backend).enrol(joining)?;
        self.registry.insert(pod);
        if let Some(origins) = origins {
            self.registry.keep_origins(cookie, origins);
        }
        Ok(())
    }

    /// Whether a pod that is enrolled could be redirected so.
    ///
    /// # Errors
    /// If its backend cannot.
    pub fn fits(&mut self, pod: &Enrolled, capture: &Capture) -> Result<(), EnrolError> {
        self.backends.backend_for(capture, Some(pod)).map(drop)
    }

    /// Whether nothing of a pod is redirected because it is on its way into the mesh or out of it.
    pub fn is_asleep(&self, pod: &Enrolled) -> bool {
        let entries = self.backends.get(pod.backend).map_entries(pod);
        entries.is_ok_and(|entries| entries.is_some_and(|entries| entries.policy.flags & flag::ASLEEP != 0))
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
        if let Some(pod) = self.registry.of_container(&attachment.container_id) {
            return self.backends.get(pod.backend).check(pod);
        }
        let netns = steps::open_file(&attachment.netns);
        match netns.map(|netns| self.other_version_of(netns.as_fd())).transpose()?.flatten() {
            Some(_abi) => Ok(()),
            None => {
                Err(EnrolError::NotEnrolled(format!("container {} is not enrolled", attachment.container_id)))
            }
        }
    }

    /// Unenrols a pod.
    pub fn forget(&mut self, cookie: NetnsCookie) {
        self.end_tally(cookie);
        self.end_past_mesh(cookie);
        let Some(pod) = self.registry.remove(cookie) else { return };
        self.numbers.retain(|_, other| *other != cookie);
        for problem in &self.backends.get_mut(pod.backend).unenrol(&pod) {
            tracing::error!(pod = %pod.full_name(), %problem, "unenrolment");
        }
        // What is redirected until then finds its proxy.
        if let Some(drivers) = &self.drivers {
            drivers.forget(&proxied_pod(&pod));
        }
        tracing::info!(pod = %pod.full_name(), container = %pod.container_id, cookie, "unenrolled");
    }

    /// What a pod is known by. Where neither the kernel nor a program tells the cookie, only nftables does without.
    fn key(&self, cookie: io::Result<NetnsCookie>, id: NetnsId) -> io::Result<NetnsCookie> {
        match (cookie, self.backends.chosen()) {
            (Err(error), BackendName::Nftables) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                Ok(id.inode)
            }
            (cookie, _) => cookie,
        }
    }

    pub(super) fn inspect(&self, netns: &OwnedFd, id: NetnsId) -> Result<Inspection, EnrolError> {
        let failed = |attempt| move |source| EnrolError::Inspect { attempt, source };
        let ports = steps::proxy_ports(&DEFAULT_PORTS);
        let cookie = self.backends.cookie_of(&self.netns, netns.as_fd());
        let (addresses, listeners) =
            self.netns.run(netns.as_fd(), move || (netlink::addresses(), netlink::listeners(&ports)))?;
        // A kernel without inet_diag cannot tell; a new pod has no listeners, which is nearly always.
        let listeners = listeners.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot list the listeners of a netns, taking it as without");
            Vec::new()
        });
        Ok(Inspection {
            cookie: self.key(cookie, id).map_err(failed("read the cookie"))?,
            addresses: addresses.map_err(failed("read the addresses"))?,
            listeners,
        })
    }
}

/// What its driver is told of a pod, without what only its netns tells.
pub(super) fn proxied_pod(pod: &Enrolled) -> ProxiedPod {
    ProxiedPod {
        cookie: pod.cookie,
        namespace: pod.pod.namespace.clone(),
        name: pod.pod.name.clone(),
        uid: pod.pod.uid.clone(),
        container_id: pod.container_id.clone(),
        service_account: None,
        netns_path: pod.netns_path.clone(),
        netns: pod.netns,
        has_v6: false,
        driver: pod.driver,
    }
}
