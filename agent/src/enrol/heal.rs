//! Enrolled pods that have lost something: looked at, and given it back.
//!
//! Owns: the execution of a [`plan`]. Never does: make it, or take from a pod what it has while its netns may live.
//! Called by: the reconciler, for one pod after the other.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::{fs, io};

use veer_common::maps::NetnsCookie;

use super::backend::Joining;
use super::error::EnrolError;
use super::node::{Inspection, Node};
use super::registry::Enrolled;
use super::steps;
use crate::model::{Capture, Driver};
use crate::plan::{self, Action};
use crate::platform::bpf::maps::ListEntries;
use crate::platform::runtime;

/// What there is of the lists of each pod.
pub type Lists = BTreeMap<NetnsCookie, ListEntries>;

impl Node {
    /// Brings back what is not pinned or attached any more of what all pods share; says what that was.
    ///
    /// # Errors
    /// What cannot be brought back.
    pub fn heal_shared(&mut self) -> Result<Vec<String>, EnrolError> {
        let mut healed = Vec::new();
        for backend in self.backends.all() {
            healed.extend(backend.heal_shared()?);
        }
        Ok(healed)
    }

    /// What there is of the lists of all pods, to look at them one by one.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn lists(&mut self) -> Result<Lists, EnrolError> {
        let mut lists = Lists::new();
        for backend in self.backends.all() {
            lists.extend(backend.lists()?);
        }
        Ok(lists)
    }

    /// What is to be done about a pod. `lists` are those of a moment ago.
    ///
    /// # Errors
    /// If it cannot be looked at.
    pub fn examine(&mut self, cookie: NetnsCookie, lists: &ListEntries) -> Result<Vec<Action>, EnrolError> {
        let Some(pod) = self.registry.get(cookie).cloned() else { return Ok(Vec::new()) };
        // It may have got new ones in the meantime.
        let now = if pod.lists.lacks_in(lists) { self.lists()?.remove(&cookie) } else { None };
        let lists = now.as_ref().unwrap_or(lists);
        let listeners = match steps::open_netns(&pod) {
            Some(netns) => self.inspect(&netns.into(), pod.netns)?.listeners,
            None => Vec::new(),
        };
        let observed = self.backends.get(pod.backend).observe(&pod, lists, &listeners)?;
        Ok(plan::actions(&observed))
    }

    /// Does what is to be done about a pod, as it is now. `capture` is what its manifest asks for, where that is
    /// needed and there is one.
    ///
    /// # Errors
    /// What cannot be brought back; the rest of the plan is for the next time.
    pub fn heal(
        &mut self,
        cookie: NetnsCookie,
        capture: Option<&Capture>,
    ) -> Result<Vec<Action>, EnrolError> {
        let lists = self.lists()?.remove(&cookie).unwrap_or_default();
        let actions = self.examine(cookie, &lists)?;
        let Some(pod) = self.registry.get(cookie).cloned().filter(|_| !actions.is_empty()) else {
            return Ok(actions);
        };
        if actions.contains(&Action::Forget) {
            self.forget(cookie);
            return Ok(actions);
        }
        let netns = steps::open_netns(&pod).ok_or_else(|| {
            EnrolError::NotEnrolled(format!(
                "it has lost something ({}), and {} is not its netns: a restart of the pod repairs it",
                findings(&actions),
                pod.netns_path
            ))
        })?;
        let netns = netns.into();
        let Inspection { addresses, listeners, .. } = self.inspect(&netns, pod.netns)?;
        let backend = self.backends.get_mut(pod.backend);
        backend.heal(&pod, &actions, netns.as_fd(), &listeners)?;
        if actions.iter().any(|action| action.needs_manifest()) {
            let capture = capture.ok_or_else(|| {
                EnrolError::NotEnrolled(format!(
                    "it has lost something ({}) that only its manifest tells, and that is not to be had: a restart of \
                     the pod repairs it",
                    findings(&actions)
                ))
            })?;
            let before = Enrolled { lists, ..pod.clone() };
            let before = Some(&before);
            let joining = Joining { pod, capture, netns: &netns, addresses, listeners, before };
            let pod = backend.enrol(joining)?;
            self.registry.insert(pod);
        }
        Ok(actions)
    }
}

/// What became of the netns of a pod whose link, if there is one, hangs on `link`. `is_same` tells of a netns whether it
/// has the pod's cookie.
pub(super) fn netns_of(
    pod: &Enrolled,
    link: Option<u64>,
    is_same: impl FnOnce(BorrowedFd<'_>) -> bool,
) -> plan::Netns {
    let here = steps::open_netns(pod);
    // A link tells that its netns lives. One that hangs on nothing was detached, or its netns is gone; a path may lead
    // to another netns then that has got the number of that one.
    if link == Some(0) {
        let lives = here.is_some_and(|netns| is_same(netns.as_fd()));
        return if lives { plan::Netns::Here } else { plan::Netns::Gone };
    }
    if here.is_some() {
        return plan::Netns::Here;
    }
    // Where the directory is not there either, this is no place to look from.
    let is_seen = Path::new(&pod.netns_path).parent().is_some_and(Path::is_dir);
    if is_seen && (link.is_none() || is_left_to_its_proxy(pod)) {
        plan::Netns::Gone
    } else {
        plan::Netns::Unseen
    }
}

/// Whether nothing but the sockets of the node's proxy keeps a netns alive: the runtime has taken its name away, and
/// nobody is in it. The proxy lets go of it when it is told that the pod has gone, and not before.
fn is_left_to_its_proxy(pod: &Enrolled) -> bool {
    let has_name = fs::symlink_metadata(&pod.netns_path);
    pod.driver != Driver::Sidecar
        && has_name.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        && runtime::is_deserted(pod.netns)
}

/// What was found, for people.
pub fn findings(actions: &[Action]) -> String {
    let findings: Vec<&str> = actions.iter().map(|action| action.finding()).collect();
    findings.join(", ")
}
