//! The steps of an enrolment, each with its undo, and the one place that takes them.

use std::os::fd::{AsFd, OwnedFd};

use veer_common::address::{Address, Port};
use veer_common::event::NO_ID;
use veer_common::maps::{Enrolment, PodPolicy, SocketRecord, role};

use super::registry::Enrolled;
use crate::platform::bpf::BpfError;
use crate::platform::bpf::load::Datapath;
use crate::platform::listeners::Borrowed;

/// A step of an enrolment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Who the pod is; first in and last out, so that a crash leaves nothing without a name.
    Enrolment,
    /// Its counters.
    Counters,
    /// Its port, range and address lists.
    Lists,
    /// The inbound program on its netns.
    Netns,
    /// The proxy's listeners that are older than the enrolment.
    Listeners,
    /// Its policy: the switch. Last in and first out.
    Policy,
}

/// The order of an enrolment. Unenrolment is the same backwards.
pub const STEPS: [Step; 6] =
    [Step::Enrolment, Step::Counters, Step::Lists, Step::Netns, Step::Listeners, Step::Policy];

/// What the steps need of a pod.
#[derive(Debug)]
pub struct Target<'a> {
    /// The pod.
    pub pod: &'a Enrolled,
    /// The pod for the ENROLMENTS map.
    pub record: Enrolment,
    /// Its policy.
    pub policy: PodPolicy,
    /// Its netns.
    pub netns: &'a OwnedFd,
    /// Listeners that are older than the enrolment.
    pub listeners: Vec<Borrowed>,
}

/// Enrols a pod, or leaves it as it was.
///
/// # Errors
/// What the failed step said; all steps before it are undone.
pub fn enrol(datapath: &mut Datapath, target: &Target<'_>) -> Result<(), BpfError> {
    for (index, step) in STEPS.into_iter().enumerate() {
        if let Err(error) = take(datapath, step, target) {
            let taken = STEPS.get(..=index).unwrap_or_default();
            for problem in undo_all(datapath, taken, target.pod, &target.policy) {
                tracing::error!(pod = %target.pod.full_name(), %problem, "undo of a failed enrolment");
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Takes everything of a pod away. Goes on after a failure and reports all of them.
pub fn unenrol(datapath: &mut Datapath, pod: &Enrolled, policy: &PodPolicy) -> Vec<BpfError> {
    undo_all(datapath, &STEPS, pod, policy)
}

fn undo_all(datapath: &mut Datapath, steps: &[Step], pod: &Enrolled, policy: &PodPolicy) -> Vec<BpfError> {
    steps.iter().rev().filter_map(|step| undo(datapath, *step, pod, policy).err()).collect()
}

fn take(datapath: &mut Datapath, step: Step, target: &Target<'_>) -> Result<(), BpfError> {
    let cookie = target.pod.cookie;
    match step {
        Step::Enrolment => datapath.maps.insert_enrolment(cookie, &target.record),
        Step::Counters => datapath.maps.insert_counters(cookie),
        Step::Lists => datapath.maps.insert_lists(&target.pod.lists),
        Step::Netns => datapath.attach_netns(cookie, target.netns.as_fd()),
        Step::Listeners => adopt(datapath, target),
        Step::Policy => datapath.maps.insert_policy(cookie, &target.policy),
    }
}

fn undo(datapath: &mut Datapath, step: Step, pod: &Enrolled, policy: &PodPolicy) -> Result<(), BpfError> {
    let cookie = pod.cookie;
    match step {
        Step::Enrolment => datapath.maps.remove_enrolment(cookie),
        Step::Counters => datapath.maps.remove_counters(cookie),
        Step::Lists => datapath.maps.remove_lists(&pod.lists),
        Step::Netns => datapath.detach_netns(cookie),
        Step::Listeners => {
            proxy_ports(policy).into_iter().try_for_each(|port| datapath.maps.remove_listeners(cookie, port))
        }
        Step::Policy => datapath.maps.remove_policy(cookie),
    }
}

/// The ports whose listeners are registered.
pub fn proxy_ports(policy: &PodPolicy) -> [Port; 2] {
    [policy.outbound_port, policy.inbound_port]
}

/// Registers listeners that the TCP_LISTEN hook did not see.
fn adopt(datapath: &mut Datapath, target: &Target<'_>) -> Result<(), BpfError> {
    for borrowed in &target.listeners {
        let socket = borrowed.socket.as_fd();
        let known = datapath.maps.socket_record(socket);
        if known.is_some_and(|record| record.role == role::LISTENER) {
            continue;
        }
        let record = listener_record(target.pod.cookie, known);
        datapath.maps.insert_listener(&record, borrowed.listener.port, socket)?;
        tracing::info!(
            pod = %target.pod.full_name(),
            port = borrowed.listener.port.get(),
            "took over a listener that is older than the enrolment"
        );
    }
    Ok(())
}

fn listener_record(cookie: u64, known: Option<SocketRecord>) -> SocketRecord {
    let (uid, gid) = known.map_or((NO_ID, NO_ID), |record| (record.uid, record.gid));
    SocketRecord {
        cookie,
        uid,
        gid,
        role: role::LISTENER,
        _reserved: 0,
        destination: Address::UNSPECIFIED,
        target: Address::UNSPECIFIED,
        port: Port::NONE,
        target_port: Port::NONE,
        _reserved_end: [0; 4],
    }
}
