//! What redirects a pod's traffic, as the node's thread sees it: one trait, one implementation for each way.
//!
//! Owns: what is asked of a backend. Never does: know who is enrolled, which is the registry's, or look into a
//! netns on its own account. Implemented by: [`Ebpf`] and [`Nftables`]. Called by: `node` and `follow`.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

use veer_common::maps::{Counters, NetnsCookie};

use super::ebpf::Ebpf;
use super::error::EnrolError;
use super::figures::Standing;
use super::heal::Lists;
use super::nftables::Nftables;
use super::registry::Enrolled;
use crate::capture::{InterfaceAddress, MapEntries};
use crate::model::{BackendName, Capture, Driver};
use crate::plan::{Action, Observed};
use crate::platform::bpf::listening::Registered;
use crate::platform::bpf::maps::ListEntries;
use crate::platform::netlink::Listener;
use crate::platform::netns::{self, NetnsError, NetnsThread};

/// A pod that is to be redirected.
#[derive(Debug)]
pub(super) struct Joining<'a> {
    /// Who it is; a backend that keeps something of its own there fills it in.
    pub(super) pod: Enrolled,
    /// How it is to be captured, with the ids of the pod's user namespace.
    pub(super) capture: &'a Capture,
    /// Its netns.
    pub(super) netns: &'a OwnedFd,
    /// The addresses of its netns.
    pub(super) addresses: Vec<InterfaceAddress>,
    /// The sockets that listen on the proxy's ports already.
    pub(super) listeners: Vec<Listener>,
    /// The pod as it was enrolled before, for a second ADD.
    pub(super) before: Option<&'a Enrolled>,
}

/// What became of a pod that an earlier agent has enrolled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// It is redirected, or as near to it as can be: to forget it would be to let its traffic through.
    Kept,
    /// Its netns is gone, or it never was enrolled to the end: what is left of it is to be removed.
    Leftover,
}

/// A way of redirecting pods.
pub(super) trait Backend: Debug + Send {
    /// The pods that an earlier agent has enrolled.
    ///
    /// # Errors
    /// If that cannot be read.
    fn recall(&mut self) -> Result<Vec<Enrolled>, EnrolError>;

    /// Takes a recalled pod over.
    ///
    /// # Errors
    /// If it cannot be told what became of it.
    fn take_over(&mut self, pod: &Enrolled) -> Result<Found, EnrolError>;

    /// Says that all recalled pods have been taken over.
    ///
    /// # Errors
    /// If that cannot be kept for the next agent.
    fn taken_over(&mut self) -> Result<(), EnrolError> {
        Ok(())
    }

    /// Redirects a pod, or brings one that is redirected up to date.
    ///
    /// # Errors
    /// Whatever stands in the way; then nothing of it is left, or the pod is as it was before.
    fn enrol(&mut self, joining: Joining<'_>) -> Result<Enrolled, EnrolError>;

    /// Whether the pod is as [`enrol`](Self::enrol) left it.
    ///
    /// # Errors
    /// `NotEnrolled` with what is missing.
    fn check(&self, pod: &Enrolled) -> Result<(), EnrolError>;

    /// Brings a pod up to the addresses, interfaces and routes that it has now; `None` if nothing changes.
    ///
    /// # Errors
    /// As the kernel says; the pod keeps what it has.
    fn readdress(
        &mut self,
        pod: &Enrolled,
        netns: BorrowedFd<'_>,
        addresses: Vec<InterfaceAddress>,
    ) -> Result<Option<Enrolled>, EnrolError>;

    /// Takes everything of a pod away. Goes on after a failure and reports all of them.
    fn unenrol(&mut self, pod: &Enrolled) -> Vec<EnrolError>;

    /// What the verdict goes by for this pod; `None` for one that is not wholly enrolled.
    ///
    /// # Errors
    /// As the kernel says.
    fn map_entries(&self, pod: &Enrolled) -> Result<Option<MapEntries>, EnrolError>;

    /// Brings back what is lost of what all pods share; says what that was.
    ///
    /// # Errors
    /// What cannot be brought back.
    fn heal_shared(&mut self) -> Result<Vec<String>, EnrolError>;

    /// What there is of the lists of each pod.
    ///
    /// # Errors
    /// As the kernel says.
    fn lists(&self) -> Result<Lists, EnrolError>;

    /// A pod as it is, with what there is of its lists, and who listens on the proxy's ports in its netns.
    ///
    /// # Errors
    /// If it cannot be looked at.
    fn observe(
        &self,
        pod: &Enrolled,
        lists: &ListEntries,
        listeners: &[Listener],
    ) -> Result<Observed, EnrolError>;

    /// Brings back what a pod has lost, as far as no manifest is needed for it.
    ///
    /// # Errors
    /// The first thing that cannot be brought back.
    fn heal(
        &mut self,
        pod: &Enrolled,
        actions: &[Action],
        netns: BorrowedFd<'_>,
        listeners: &[Listener],
    ) -> Result<(), EnrolError>;

    /// What a pod has counted.
    ///
    /// # Errors
    /// As the kernel says.
    fn counters(&self, pod: &Enrolled) -> Result<Counters, EnrolError>;

    /// How a pod stands; `None` for one that is not wholly enrolled.
    ///
    /// # Errors
    /// As the kernel says.
    fn standing(&self, pod: &Enrolled) -> Result<Option<Standing>, EnrolError>;

    /// Turns events on or off.
    ///
    /// # Errors
    /// As the kernel says.
    fn set_watched(&mut self, watched: bool) -> Result<(), EnrolError>;
}

/// All that there are: a pod stays with the one that it was enrolled by.
#[derive(Debug)]
pub struct Backends {
    /// Where the kernel takes its programs, and nobody has decided otherwise.
    ebpf: Option<Ebpf>,
    nftables: Nftables,
}

impl Backends {
    /// With eBPF, new pods are enrolled by it, else by nftables.
    pub fn new(ebpf: Option<Ebpf>, nftables: Nftables) -> Self {
        Self { ebpf, nftables }
    }

    /// Which one enrols new pods.
    pub fn chosen(&self) -> BackendName {
        if self.ebpf.is_some() { BackendName::Ebpf } else { BackendName::Nftables }
    }

    /// Which one enrols a pod of this make: that which has it `before`, if any has.
    ///
    /// # Errors
    /// If that one cannot.
    pub(super) fn backend_for(
        &mut self,
        capture: &Capture,
        before: Option<&Enrolled>,
    ) -> Result<BackendName, EnrolError> {
        let fit = self.fit_for(capture);
        let backend = before.map_or(fit, |before| before.backend);
        if fit == BackendName::Nftables && backend == BackendName::Ebpf && self.chosen() != fit {
            return Err(EnrolError::NeedsRules(before.map(Enrolled::full_name).unwrap_or_default()));
        }
        if capture.driver == Driver::Ztunnel && backend == BackendName::Nftables {
            return Err(EnrolError::NeedsPrograms);
        }
        Ok(backend)
    }

    /// Which one enrols a new pod of this make. What a virtual machine sends is forwarded: no socket of the pod's
    /// opens it, and none could answer it from the address that was dialled without `IP_TRANSPARENT`
    /// (`ip_route_output_key_hash_rcu`), which takes a capability. Rules translate it as istio-init's do.
    /// Nor do programs know an excluded interface before Linux 5.17.
    fn fit_for(&mut self, capture: &Capture) -> BackendName {
        let Some(ebpf) = &mut self.ebpf else { return BackendName::Nftables };
        let knows_interfaces = capture.excluded_interfaces.is_empty() || ebpf.tells_interfaces();
        if capture.rerouted_interfaces.is_empty() && knows_interfaces {
            BackendName::Ebpf
        } else {
            BackendName::Nftables
        }
    }

    /// The cookie of a netns: the kernel tells it, or a program of the eBPF's.
    ///
    /// # Errors
    /// As the kernel says; ENOPROTOOPT if it is older than the question and there is no eBPF.
    pub(super) fn cookie_of(&self, thread: &NetnsThread, netns: BorrowedFd<'_>) -> io::Result<NetnsCookie> {
        match &self.ebpf {
            Some(ebpf) => ebpf.cookie_of(netns),
            None => thread.run(netns, netns::current_cookie).map_err(NetnsError::into_io)?,
        }
    }

    /// The listeners that are registered, for counting; `None` where no program looks for any.
    pub(super) fn registered(&self) -> Option<Registered> {
        let registered = self.ebpf.as_ref()?.registered();
        registered.inspect_err(|error| tracing::warn!(%error, "count the registered listeners")).ok()
    }

    /// Has the programs know which addresses are the node's own.
    ///
    /// # Errors
    /// As the kernel says.
    pub(super) fn set_node_addresses(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), EnrolError> {
        self.ebpf.as_mut().map_or(Ok(()), |ebpf| ebpf.set_node_addresses(addresses))
    }

    /// All of them.
    pub(super) fn all(&mut self) -> impl Iterator<Item = &mut dyn Backend> {
        let ebpf = self.ebpf.as_mut().map(|ebpf| ebpf as &mut dyn Backend);
        ebpf.into_iter().chain([&mut self.nftables as &mut dyn Backend])
    }

    /// The one of this name. A pod that eBPF has enrolled is known only where that is there.
    pub(super) fn get_mut(&mut self, name: BackendName) -> &mut dyn Backend {
        match (name, &mut self.ebpf) {
            (BackendName::Ebpf, Some(ebpf)) => ebpf,
            (BackendName::Ebpf, None) | (BackendName::Nftables, _) => &mut self.nftables,
        }
    }

    /// As [`get_mut`](Self::get_mut), for looking alone.
    pub(super) fn get(&self, name: BackendName) -> &dyn Backend {
        match (name, &self.ebpf) {
            (BackendName::Ebpf, Some(ebpf)) => ebpf,
            (BackendName::Ebpf, None) | (BackendName::Nftables, _) => &self.nftables,
        }
    }
}
