//! The steps of an enrolment, each with its undo, and the one place that takes them.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use veer_common::address::{Address, Port};
use veer_common::event::NO_ID;
use veer_common::maps::{Enrolment, PodPolicy, PortListKey, PortSet, SocketRecord, flag, role};

use super::error::EnrolError;
use super::loopback;
use super::registry::Enrolled;
use crate::platform::bpf::BpfError;
use crate::platform::bpf::load::{Datapath, Instance};
use crate::platform::listeners::Borrowed;
use crate::platform::netlink::Listener;
use crate::platform::netns::{NetnsId, NetnsThread};

/// A step of an enrolment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Who the pod is; first in and last out, so that a crash leaves nothing without a name.
    Enrolment,
    /// What its proxy needs of its loopback interface.
    Loopback,
    /// Its counters.
    Counters,
    /// Its port, range and address lists, and its interfaces.
    Lists,
    /// The inbound program on its netns.
    Netns,
    /// The proxy's listeners that are older than the enrolment, and their container.
    Listeners,
    /// That its proxy is awaited, and what it would get goes direct until then, where the node says so.
    BeforeProxy,
    /// Its policy: the switch. Last in and first out.
    Policy,
}

/// The order of an enrolment. Unenrolment is the same backwards.
pub const STEPS: [Step; 8] = [
    Step::Enrolment,
    Step::Loopback,
    Step::Counters,
    Step::Lists,
    Step::Netns,
    Step::Listeners,
    Step::BeforeProxy,
    Step::Policy,
];

/// What the steps need of a pod.
#[derive(Debug)]
pub struct Target<'a> {
    /// The pod.
    pub pod: &'a Enrolled,
    /// The pod for the ENROLMENTS map.
    pub record: Enrolment,
    /// Its policy.
    pub policy: PodPolicy,
    /// Its port lists.
    pub ports: &'a [(PortListKey, Box<PortSet>)],
    /// Its netns.
    pub netns: &'a OwnedFd,
    /// Listeners that are older than the enrolment.
    pub listeners: Vec<Borrowed>,
    /// Whether nobody listens yet, and the node lets connections go direct until somebody does.
    pub awaits_proxy: bool,
}

/// What the steps act on.
#[derive(Debug)]
pub struct Hands<'a> {
    /// The datapath.
    pub datapath: &'a mut Datapath,
    /// The way into a netns.
    pub netns: &'a NetnsThread,
}

/// Enrols a pod, or leaves it as it was.
///
/// # Errors
/// What the failed step said; all steps before it are undone.
pub fn enrol(hands: &mut Hands<'_>, target: &Target<'_>) -> Result<(), EnrolError> {
    for (index, step) in STEPS.into_iter().enumerate() {
        if let Err(error) = take(hands, step, target) {
            let taken = STEPS.get(..=index).unwrap_or_default();
            for problem in undo_all(hands, taken, target.pod, &target.policy) {
                tracing::error!(pod = %target.pod.full_name(), %problem, "undo of a failed enrolment");
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Takes everything of a pod away. Goes on after a failure and reports all of them.
pub fn unenrol(hands: &mut Hands<'_>, pod: &Enrolled, policy: &PodPolicy) -> Vec<EnrolError> {
    undo_all(hands, &STEPS, pod, policy)
}

fn undo_all(hands: &mut Hands<'_>, steps: &[Step], pod: &Enrolled, policy: &PodPolicy) -> Vec<EnrolError> {
    let mut problems = Vec::new();
    let mut is_switched_off = true;
    for step in steps.iter().rev() {
        // What could not be taken away has a name still, by which the next agent finds it; and by the link, it
        // sees when the netns of a pod with a policy is gone.
        let is_kept =
            (*step == Step::Enrolment && !problems.is_empty()) || (*step == Step::Netns && !is_switched_off);
        if is_kept {
            continue;
        }
        if let Err(error) = undo(hands, *step, pod, policy) {
            is_switched_off &= *step != Step::Policy;
            problems.push(error);
        }
    }
    problems
}

fn take(hands: &mut Hands<'_>, step: Step, target: &Target<'_>) -> Result<(), EnrolError> {
    let cookie = target.pod.cookie;
    let maps = &mut hands.datapath.maps;
    match step {
        Step::Enrolment => maps.insert_enrolment(cookie, &target.record)?,
        Step::Loopback => loopback::give(hands.netns, target.netns.as_fd(), &target.policy)?,
        Step::Counters => maps.insert_counters(cookie)?,
        Step::Lists => maps.insert_lists(target.ports, &target.pod.lists)?,
        Step::Netns => {
            hands.datapath.attach_netns(Instance::of(cookie, &target.policy), target.netns.as_fd())?;
        }
        Step::Listeners => adopt(hands.datapath, target.pod, &target.policy, &target.listeners)?,
        Step::BeforeProxy if target.awaits_proxy => maps.begin_before_proxy(cookie)?,
        Step::BeforeProxy => {}
        Step::Policy => maps.insert_policy(cookie, &target.policy)?,
    }
    Ok(())
}

fn undo(hands: &mut Hands<'_>, step: Step, pod: &Enrolled, policy: &PodPolicy) -> Result<(), EnrolError> {
    let cookie = pod.cookie;
    let maps = &mut hands.datapath.maps;
    match step {
        Step::Enrolment => maps.remove_enrolment(cookie)?,
        Step::Loopback => {
            // Mostly the netns is about to go, and all of this with it.
            if let Some(netns) = open_netns(pod) {
                loopback::take(hands.netns, netns.as_fd(), policy)?;
            }
        }
        Step::Counters => maps.remove_counters(cookie)?,
        Step::Lists => maps.remove_lists(&pod.lists)?,
        Step::Netns => hands.datapath.detach_netns(cookie)?,
        Step::Listeners => {
            for port in proxy_ports(policy) {
                maps.remove_listeners(cookie, port)?;
            }
            maps.remove_proxy_container(cookie)?;
        }
        Step::BeforeProxy => maps.end_before_proxy(cookie)?,
        Step::Policy => maps.remove_policy(cookie)?,
    }
    Ok(())
}

const fn captures_v6(policy: &PodPolicy) -> bool {
    policy.flags & flag::CAPTURES_V6 != 0
}

/// The pod's netns, if it is still where the runtime had it.
pub fn open_netns(pod: &Enrolled) -> Option<File> {
    let netns = open_file(&pod.netns_path)?;
    NetnsId::of(netns.as_fd()).is_ok_and(|id| id == pod.netns).then_some(netns)
}

/// What is at a path that a runtime has named, which must not be able to hold us up, as a FIFO would.
pub(super) fn open_file(path: &str) -> Option<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()
}

/// The ports whose listeners are registered, that of DNS only where it is captured.
pub fn proxy_ports(policy: &PodPolicy) -> [Port; 3] {
    [policy.outbound_port, policy.inbound_port, policy.dns_port]
}

/// Whether one of the listeners tells that the pod's proxy has come.
pub fn has_proxy(policy: &PodPolicy, listeners: &[Listener]) -> bool {
    listeners.iter().any(|listener| policy.tells_of_the_proxy(listener.port, &Address::from(listener.bound)))
}

/// Has nothing of the pod go past its proxy any more.
pub fn end_before_proxy(datapath: &mut Datapath, pod: &Enrolled) {
    if let Err(error) = datapath.maps.end_before_proxy(pod.cookie) {
        tracing::error!(pod = %pod.full_name(), %error, "its proxy listens, and connections may still go past it");
    }
}

/// Registers listeners that the TCP_LISTEN hook did not see.
///
/// A listener that the kernel does not take (Go's are MPTCP) is reported and left out, as by the hook.
///
/// # Errors
/// `Full`: then those that are left have no room.
pub fn adopt(
    datapath: &mut Datapath,
    pod: &Enrolled,
    policy: &PodPolicy,
    listeners: &[Borrowed],
) -> Result<(), BpfError> {
    for Borrowed { listener, socket } in listeners {
        if listener.port == policy.dns_port && policy.flags & flag::DNS_CAPTURE == 0 {
            continue;
        }
        let known = datapath.maps.socket_record(socket.as_fd());
        let is_proxys = listener.uid == policy.proxy_uid;
        let cgroup = known.map(|record| record.cgroup).filter(|id| *id != 0).or(listener.cgroup);
        if is_proxys && policy.flags & flag::BY_CONTAINER != 0 {
            adopt_container(datapath, pod, cgroup)?;
        }
        // Its record does not tell: it outlives an enrolment, and the slots do not.
        if datapath.maps.listeners(pod.cookie, listener.port).contains(&listener.cookie) {
            continue;
        }
        if !is_redirected_to(pod, policy, listener.bound) {
            continue;
        }
        let record = listener_record(pod.cookie, known, cgroup);
        let (name, port) = (pod.full_name(), listener.port.get());
        match datapath.maps.insert_listener(&record, listener.port, socket.as_fd(), is_proxys) {
            Ok(()) => tracing::info!(pod = %name, port, "took over a listener older than the enrolment"),
            Err(full @ BpfError::Full { .. }) => return Err(full),
            Err(error) => tracing::warn!(pod = %name, port, %error, "a listener that cannot be taken over"),
        }
    }
    Ok(())
}

/// Makes the container of an older listener the proxy's, where that counts and nobody is yet.
fn adopt_container(datapath: &mut Datapath, pod: &Enrolled, cgroup: Option<u64>) -> Result<(), BpfError> {
    let name = pod.full_name();
    match cgroup.map(|id| datapath.maps.adopt_proxy_container(pod.cookie, id)) {
        Some(Ok(())) => {}
        Some(Err(full @ BpfError::Full { .. })) => return Err(full),
        Some(Err(error)) => tracing::error!(pod = %name, %error, "keep which container is the proxy's"),
        None => {
            tracing::warn!(pod = %name, "the container of a listener cannot be told: it is not the proxy's");
        }
    }
    Ok(())
}

/// Whether iptables would have sent a connection to where a socket is bound: what the TCP_LISTEN hook asks
/// of those that it sees.
pub fn is_redirected_to(pod: &Enrolled, policy: &PodPolicy, bound: IpAddr) -> bool {
    let address = Address::from(bound);
    let captured = address.is_v4() || captures_v6(policy);
    let own = || pod.lists.own_addresses.iter().any(|own| own.address == address);
    address.is_unspecified() || captured && (address.is_localhost() || own())
}

fn listener_record(cookie: u64, known: Option<SocketRecord>, cgroup: Option<u64>) -> SocketRecord {
    let (uid, gid) = known.map_or((NO_ID, NO_ID), |record| (record.uid, record.gid));
    SocketRecord {
        cookie,
        uid,
        gid,
        role: role::LISTENER,
        is_counted: known.map_or(0, |record| record.is_counted),
        cgroup: cgroup.unwrap_or(0),
        destination: Address::UNSPECIFIED,
        target: Address::UNSPECIFIED,
        port: Port::NONE,
        target_port: Port::NONE,
        _reserved_end: [0; 4],
    }
}
