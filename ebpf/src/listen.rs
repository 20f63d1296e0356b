//! sockops `TCP_LISTEN`: registers every listener on the proxy's ports, so that sk_lookup finds it.
//!
//! Every worker of a `SO_REUSEPORT` group has a slot of its own: an entry dies with its socket, and with
//! one slot for the group its closing would refuse connections although the other workers live.

use veer_common::maps::role;
use veer_common::reason::Fault;

use crate::count;
use crate::ctx::SockOps;
use crate::maps;

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
    if port.get() != pod.inbound_port.get() && port.get() != pod.outbound_port.get() {
        return;
    }
    record.role = role::LISTENER;
    if !maps::register_listener(context, record.cookie, port) {
        count::fault(record.cookie, Fault::ListenerNotRegistered);
    }
}
