//! Why an enrolment fails.

use std::io;

use super::registry::TooLong;
use crate::model::ids::UnmappedId;
use crate::platform::bpf::BpfError;
use crate::platform::netns::NetnsError;
use crate::platform::nft::NftError;
use crate::platform::records::RecordError;
use crate::proxy::driver::DriverError;

/// Why a pod could not be enrolled or checked.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Its netns.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The datapath.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// The rules.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// The record of a pod.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Its netns could not be changed.
    #[error("{attempt} in the pod's netns: {source}")]
    Change {
        /// What was tried.
        attempt: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A name.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// Its netns could not be read.
    #[error("{attempt} of the pod's netns: {source}")]
    Inspect {
        /// What was tried.
        attempt: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The proxy's identity in a pod with a user namespace of its own.
    #[error(transparent)]
    Unmapped(#[from] UnmappedId),
    /// A pod that is to have a user namespace of its own, and has not.
    #[error(
        "the pod says hostUsers: false, and its netns belongs to the node's user namespace: the runtime does not \
         do user namespaces (containerd 2.0, CRI-O 1.25), and 1337 would be somebody else"
    )]
    NoUserNamespace,
    /// The driver of its proxy, which is to serve it.
    #[error(transparent)]
    Proxy(#[from] DriverError),
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
    /// A pod that eBPF redirects asks now for what rules alone can do.
    #[error(
        "pod {0} names interfaces of virtual machines (istio.io/reroute-virtual-interfaces), or interfaces to exclude on a \
         kernel before 5.17, which only nftables can redirect, and it was enrolled by eBPF before it did: make the pod anew"
    )]
    NeedsRules(String),
    /// A pod of ambient mode, where there are rules alone.
    #[error(
        "the pod is of ambient mode (istio.io/dataplane-mode), which veer redirects by eBPF alone, and this node's pods are \
         redirected by nftables: label it none, or give it a sidecar"
    )]
    NeedsPrograms,
    /// The pod is not, or not wholly, enrolled.
    #[error("{0}")]
    NotEnrolled(String),
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}
