//! Which netns is a running pod's: from what the runtime has noted and from the processes that run. Pure.
//!
//! Owns: the choice, and why there is none. Never does: look; that is `platform::runtime`. Called by: `reconcile`.
//!
//! A wrong netns would be another pod's traffic, or the node's. So a choice is made only where there is exactly one
//! netns left, and none where another pod's processes are in it.

use std::collections::{BTreeMap, BTreeSet};

use veer_common::cni::{Attachment, PodReference};

/// Of several interfaces of a pod, the one that Kubernetes asks for.
const MAIN_INTERFACE: &str = "eth0";

/// What runs on the node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// What the runtime has noted of the attachments that it made.
    pub attached: Vec<Attached>,
    /// The processes of pods.
    pub processes: Vec<Process>,
    /// Inodes of the node's own namespaces.
    pub own: BTreeSet<u64>,
    /// Paths of namespaces that somebody has named, by inode: runtimes keep those of sandboxes so.
    pub named: BTreeMap<u64, String>,
}

/// An attachment that the runtime has made and noted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attached {
    /// As an ADD of it would name it.
    pub attachment: Attachment,
    /// Inode number of the netns that is at its path now; `None` if there is none.
    pub inode: Option<u64>,
}

/// A process of a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Uid of the pod that its cgroup belongs to.
    pub pod_uid: String,
    /// Inode number of its netns.
    pub inode: u64,
}

/// Where a pod's netns is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Located {
    /// As an ADD of it would have named it; without a container id where only processes told of it.
    pub attachment: Attachment,
    /// Inode number of the netns.
    pub inode: u64,
}

/// Why a pod's netns cannot be told.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotLocated {
    /// Nothing of it runs, as far as can be seen.
    #[error("nothing of it runs here")]
    NotRunning,
    /// It is in the node's netns.
    #[error(
        "its processes are in the node's own netns, which is never redirected; is hostNetwork missing in its manifest?"
    )]
    Host,
    /// Several.
    #[error(
        "its processes are in {count} network namespaces, and the runtime has noted none of them; delete the pod, and \
         its successor is redirected from its start"
    )]
    Several {
        /// How many.
        count: usize,
    },
    /// Somebody else's.
    #[error("a process of another pod ({other}) is in its netns; delete one of the two")]
    Shared {
        /// The other pod's uid.
        other: String,
    },
}

/// The netns of a pod.
///
/// # Errors
/// Why it cannot be told.
pub fn locate(pod: &PodReference, seen: &Seen) -> Result<Located, NotLocated> {
    let located = match noted(pod, seen) {
        Some(located) => located,
        None => by_processes(pod, seen)?,
    };
    let foreign = |process: &&Process| {
        process.inode == located.inode && pod.uid.as_ref().is_some_and(|uid| *uid != process.pod_uid)
    };
    match seen.processes.iter().find(foreign) {
        Some(process) => Err(NotLocated::Shared { other: process.pod_uid.clone() }),
        None => Ok(located),
    }
}

/// What the runtime says: the one netns of this pod that is still there. Of two, as when the sandbox was made anew
/// and the old one is not gone, that which its processes are in.
fn noted(pod: &PodReference, seen: &Seen) -> Option<Located> {
    let mut candidates: Vec<(&Attachment, u64)> =
        seen.attached.iter().filter_map(|attached| of_pod(pod, attached, &seen.own)).collect();
    candidates.sort_by_key(|(attachment, inode)| {
        let is_inhabited =
            seen.processes.iter().any(|process| process.inode == *inode && is_of(process, pod));
        (!is_inhabited, attachment.interface != MAIN_INTERFACE, attachment.interface.clone())
    });
    let (attachment, inode) = *candidates.first()?;
    let inhabited: BTreeSet<u64> =
        seen.processes.iter().filter(|process| is_of(process, pod)).map(|process| process.inode).collect();
    let live: BTreeSet<u64> = candidates.iter().map(|(_, inode)| *inode).collect();
    let is_certain = live.len() == 1 || live.intersection(&inhabited).count() == 1;
    is_certain.then(|| Located { attachment: attachment.clone(), inode })
}

fn of_pod<'a>(
    pod: &PodReference,
    attached: &'a Attached,
    own: &BTreeSet<u64>,
) -> Option<(&'a Attachment, u64)> {
    let of = attached.attachment.pod.as_ref()?;
    let same_uid = match (&of.uid, &pod.uid) {
        (Some(theirs), Some(ours)) => theirs == ours,
        (_, _) => true,
    };
    let is_it = of.namespace == pod.namespace && of.name == pod.name && same_uid;
    let inode = attached.inode.filter(|inode| is_it && !own.contains(inode))?;
    Some((&attached.attachment, inode))
}

/// What the processes say: the one netns that those of the pod's cgroup are in.
fn by_processes(pod: &PodReference, seen: &Seen) -> Result<Located, NotLocated> {
    let of_pod = || seen.processes.iter().filter(|process| is_of(process, pod));
    let namespaces: BTreeSet<u64> = of_pod().map(|process| process.inode).collect();
    let (host, others): (Vec<u64>, Vec<u64>) =
        namespaces.into_iter().partition(|inode| seen.own.contains(inode));
    let inode = match (others.as_slice(), host.is_empty()) {
        ([inode], _) => *inode,
        ([], true) => return Err(NotLocated::NotRunning),
        ([], false) => return Err(NotLocated::Host),
        (several, _) => return Err(NotLocated::Several { count: several.len() }),
    };
    // A sandbox's netns outlives its processes, and so does its name.
    let process = of_pod().find(|process| process.inode == inode).map_or(0, |process| process.pid);
    let netns = seen.named.get(&inode).cloned().unwrap_or_else(|| format!("/proc/{process}/ns/net"));
    let attachment = Attachment {
        // No runtime has such an id: its DEL does not find the pod, and the loss of the netns does.
        container_id: format!("found-{}", pod.uid.as_deref().unwrap_or_default()),
        netns,
        interface: MAIN_INTERFACE.to_owned(),
        network: String::new(),
        pod: Some(pod.clone()),
    };
    Ok(Located { attachment, inode })
}

fn is_of(process: &Process, pod: &PodReference) -> bool {
    pod.uid.as_ref().is_some_and(|uid| *uid == process.pod_uid)
}

#[cfg(test)]
mod tests;
