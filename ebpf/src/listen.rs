//! sockops `TCP_LISTEN`: registers every listener on the proxy's ports, so that sk_lookup finds it.
//!
//! Every worker of a `SO_REUSEPORT` group has a slot of its own: an entry dies with its socket, and with
//! one slot for the group its closing would refuse connections although the other workers live.

use veer_common::address::{Address, Port};
use veer_common::event::{PROXY_BEGAN, PROXY_CEASED};
use veer_common::maps::{
    LISTENER_SLOTS, MAX_LISTENER_SLOTS, NetnsCookie, PodPolicy, SocketRecord, flag, role,
};
use veer_common::reason::Fault;

use crate::ctx::SockOps;
use crate::{count, maps, proxy};

/// Runs for each listen() in the cgroup.
#[inline(always)]
pub fn listening(context: SockOps) {
    let socket = context.socket();
    if socket.is_null() {
        return;
    }
    let Some(record) = maps::record(socket) else { return };
    let Some(pod) = maps::pod(record.cookie) else { return };
    let port = context.local_port();
    if pod.tells_of_the_proxy(port, &context.local()) {
        proxy::has_come(pod, record.cookie);
    }
    if pod.names_the_proxy(port) && !proxy::may_listen(context, pod, record) {
        count::fault(record.cookie, Fault::ForeignListener);
        return;
    }
    if !is_proxys(pod, port) || !may_be_redirected_to(pod, record.cookie, &context.local()) {
        return;
    }
    record.role = role::LISTENER;
    if !maps::register_listener(context, record.cookie, port, slots(pod, record, context.is_v6())) {
        count::fault(record.cookie, Fault::ListenerNotRegistered);
    }
    if tells_of_envoy(pod, record, port) {
        context.watch_state();
        count::proxy_changed(record.cookie, PROXY_BEGAN, port);
    }
}

/// A socket of the pod's listens no more.
#[inline(always)]
pub fn ceased(context: SockOps, record: &SocketRecord) {
    let Some(pod) = maps::pod(record.cookie) else { return };
    let port = context.local_port();
    if record.role == role::LISTENER && tells_of_envoy(pod, record, port) {
        count::proxy_changed(record.cookie, PROXY_CEASED, port);
    }
}

/// Whether the pod's traffic waits for this listener. Not so DNS, which the proxy's own agent may serve before Envoy
/// runs; nor an app on one of the ports.
#[inline(always)]
fn tells_of_envoy(pod: &PodPolicy, record: &SocketRecord, port: Port) -> bool {
    (port.get() == pod.inbound_port.get() || port.get() == pod.outbound_port.get())
        && proxy::has_its_ids(pod, record.uid, record.gid)
}

/// Whether the pod's connections may be sent to this port instead of where they were dialled.
#[inline(always)]
pub fn is_proxys(pod: &PodPolicy, port: Port) -> bool {
    port.get() == pod.inbound_port.get()
        || port.get() == pod.outbound_port.get()
        || (port.get() == pod.dns_port.get() && pod.flags & flag::DNS_CAPTURE != 0)
}

/// Whether iptables would have sent a connection to a socket bound to this address: 127.0.0.9, or an
/// address of a family that is not captured, is somebody else's business.
#[inline(always)]
fn may_be_redirected_to(pod: &PodPolicy, cookie: NetnsCookie, local: &Address) -> bool {
    if local.is_unspecified() {
        return true;
    }
    let captured = local.is_v4() || pod.flags & flag::CAPTURES_V6 != 0;
    captured && (local.is_localhost() || maps::own_address(cookie, local))
}

/// The proxy's own listeners have slots for themselves, and are tried first: an app cannot take their room.
#[inline(always)]
fn slots(pod: &PodPolicy, record: &SocketRecord, v6: bool) -> (u32, u32) {
    let [v4s, v6s, others] = LISTENER_SLOTS;
    match (proxy::has_its_ids(pod, record.uid, record.gid), v6) {
        (true, false) => (v4s, v6s),
        (true, true) => (v6s, others),
        (false, _) => (others, MAX_LISTENER_SLOTS),
    }
}
