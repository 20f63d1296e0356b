//! The node's state, on a thread of its own: what is loaded and who is enrolled.
//!
//! Owns: the datapath, the registry, and the thread that enters namespaces. Requests come one after the
//! other through a bounded channel, so no two of them meet. Called by: the CNI server and `app`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};
use veer_common::cni::{Attachment, PodReference, ValidAttachment};
use veer_common::maps::{NetnsCookie, PodPolicy};

use super::registry::{Enrolled, Registry, TooLong};
use super::steps::{self, Target};
use crate::capture::{InterfaceAddress, OwnAddresses, map_entries};
use crate::model::{Capture, PodErrors};
use crate::platform::bpf::BpfError;
use crate::platform::bpf::load::Datapath;
use crate::platform::bpf::maps::ListEntries;
use crate::platform::listeners;
use crate::platform::netlink::{self, Listener};
use crate::platform::netns::{self, NetnsError, NetnsThread};

/// Requests that wait for the thread: a node starts 16 pods at once at the most, the rest waits in
/// the plugins.
const QUEUE: usize = 64;

/// Why a pod could not be enrolled or checked.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Its netns.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The datapath.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// A name.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// Its annotations.
    #[error(transparent)]
    Pod(#[from] PodErrors),
    /// Its netns could not be read.
    #[error("{attempt} of the pod's netns: {source}")]
    Inspect {
        /// What was tried.
        attempt: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Another pod has this netns.
    #[error(
        "its netns is that of pod {other} (container {container}), which is enrolled: DEL that one first"
    )]
    NetnsTaken {
        /// The other pod.
        other: String,
        /// Its container id.
        container: String,
    },
    /// The pod is not, or not wholly, enrolled.
    #[error("{0}")]
    NotEnrolled(String),
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

/// A pod that is to be enrolled.
#[derive(Debug)]
pub struct Enrolling {
    /// As the runtime names it.
    pub attachment: Attachment,
    /// Namespace and name.
    pub pod: PodReference,
    /// What was decided.
    pub capture: Capture,
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
    datapath: Datapath,
    netns: NetnsThread,
    registry: Registry,
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
        let mut node = Self { datapath, netns, registry: Registry::default() };
        for (cookie, record) in node.datapath.maps.enrolments()? {
            let lists = node.datapath.maps.list_entries(cookie)?;
            let pod = Enrolled::from_map(cookie, &record, lists);
            let name = pod.full_name();
            node.registry.insert(pod);
            let policy = node.datapath.maps.policy(cookie)?;
            // A netns that is gone, or a crash between the steps: away with all of it.
            let alive = policy.is_some() && node.datapath.refresh_netns(cookie).unwrap_or(false);
            if alive {
                tracing::info!(pod = %name, cookie, "took over an enrolled pod");
            } else {
                tracing::info!(pod = %name, cookie, "removed what was left of a pod");
                node.forget(cookie);
            }
        }
        Ok(node)
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
        let interface = known_interface(self.registry.get(cookie), &enrolling.attachment);
        let own = OwnAddresses::choose(&inspection.addresses, &interface);
        let entries = map_entries(cookie, &enrolling.capture, &own);
        let lists = ListEntries {
            ports: entries.ports,
            ranges: entries.ranges,
            own_addresses: entries.own_addresses,
        };
        let mut pod =
            Enrolled::new(cookie, id, &enrolling.attachment, enrolling.pod.clone(), lists, unix_time());
        pod.interface = interface;
        self.enrol(pod, entries.policy, &enrolling.netns, &inspection.listeners)
    }

    fn enrol(
        &mut self,
        pod: Enrolled,
        policy: PodPolicy,
        netns: &OwnedFd,
        older: &[Listener],
    ) -> Result<(), EnrolError> {
        let wanted = steps::proxy_ports(&policy);
        let older: Vec<Listener> =
            older.iter().copied().filter(|listener| wanted.contains(&listener.port)).collect();
        let listeners = listeners::borrow(&older, pod.netns.inode)
            .map_err(|source| EnrolError::Inspect { attempt: "find the listeners", source })?;
        if listeners.len() < older.len() {
            let missing = older.len() - listeners.len();
            tracing::warn!(pod = %pod.full_name(), missing, "listeners whose process was not found");
        }
        if let Some(before) = self.registry.get(pod.cookie).map(|before| before.lists.clone()) {
            return self.renew(pod, &policy, &before);
        }
        let record = pod.to_map()?;
        let target = Target { pod: &pod, record, policy, netns, listeners };
        steps::enrol(&mut self.datapath, &target)?;
        tracing::info!(
            pod = %pod.full_name(), container = %pod.container_id, cookie = pod.cookie,
            netns = %pod.netns_path, "enrolled"
        );
        self.registry.insert(pod);
        Ok(())
    }

    /// Brings the lists of an enrolled pod up to date: what is new first, what is old after, and the rest
    /// untouched, so that no connection meets a gap.
    fn renew(&mut self, pod: Enrolled, policy: &PodPolicy, before: &ListEntries) -> Result<(), EnrolError> {
        self.datapath.maps.insert_lists(&pod.lists)?;
        self.datapath.maps.insert_policy(pod.cookie, policy)?;
        let mut gone = before.clone();
        gone.ports.retain(|key| !pod.lists.ports.contains(key));
        gone.ranges.retain(|key| !pod.lists.ranges.contains(key));
        gone.own_addresses.retain(|key| !pod.lists.own_addresses.contains(key));
        self.datapath.maps.remove_lists(&gone)?;
        tracing::info!(pod = %pod.full_name(), "already enrolled, lists brought up to date");
        self.registry.insert(pod);
        Ok(())
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

    /// Unenrols all pods but these.
    pub fn keep_only(&mut self, valid: &[ValidAttachment]) {
        let is_valid = |pod: &Enrolled| {
            valid
                .iter()
                .any(|valid| valid.container_id == pod.container_id && valid.interface == pod.interface)
        };
        let gone: Vec<NetnsCookie> =
            self.registry.iter().filter(|pod| !is_valid(pod)).map(|pod| pod.cookie).collect();
        for cookie in gone {
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
        let policy = self.datapath.maps.policy(cookie).ok().flatten().unwrap_or(DEFAULT_PORTS);
        let problems = steps::unenrol(&mut self.datapath, &pod, &policy);
        for problem in &problems {
            tracing::error!(pod = %pod.full_name(), %problem, "unenrolment");
        }
        tracing::info!(pod = %pod.full_name(), container = %pod.container_id, cookie, "unenrolled");
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

/// The first ADD's interface stays the pod's main one.
fn known_interface(known: Option<&Enrolled>, attachment: &Attachment) -> String {
    known.map_or_else(|| attachment.interface.clone(), |pod| pod.interface.clone())
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The ports of the proxy, where a policy that would say them is gone or not there yet.
const DEFAULT_PORTS: PodPolicy = PodPolicy {
    flags: 0,
    proxy_uid: 0,
    proxy_gid: 0,
    outbound_port: veer_common::address::Port::new(15001),
    inbound_port: veer_common::address::Port::new(15006),
    tunnel_port: veer_common::address::Port::new(15008),
    _reserved: [0; 6],
    source_v4: veer_common::address::Address::UNSPECIFIED,
    source_v6: veer_common::address::Address::UNSPECIFIED,
};
