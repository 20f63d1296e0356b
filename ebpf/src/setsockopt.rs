//! cgroup/setsockopt: no IPv6 routing header on the TCP sockets of a pod.
//!
//! With one, an unprivileged process names a first hop that the packets go to instead of to the dialled
//! address: what looks like the pod's own address, and so is let through, would leave the pod. iptables
//! sees the first hop. TCP has no use for the header, and nothing else is looked at.

use crate::ctx::{IPPROTO_TCP, Sock, SockOpt};
use crate::maps;

const SOL_IPV6: u32 = 41;
/// `IPV6_RTHDR`; `IPV6_2292RTHDR` and `IPV6_2292PKTOPTIONS`, its forms before RFC 3542.
const ROUTING_HEADERS: [u32; 3] = [57, 5, 6];
/// As for getsockopt: a longer buffer must be declared untouched.
const LONGEST_BUFFER: u32 = 4096;

/// Whether the call may go on.
#[inline(always)]
pub fn setsockopt(context: SockOpt) -> bool {
    if context.length() > LONGEST_BUFFER {
        context.set_length(0);
    }
    if context.level() != SOL_IPV6 {
        return true;
    }
    let option = context.option();
    if option != ROUTING_HEADERS[0] && option != ROUTING_HEADERS[1] && option != ROUTING_HEADERS[2] {
        return true;
    }
    let socket = context.socket();
    // Only sockets of enrolled pods have a record.
    Sock::new(socket).protocol() != IPPROTO_TCP || maps::record(socket).is_none()
}
