//! cgroup/getsockopt: `SO_ORIGINAL_DST`, without NAT.
//!
//! Runs for every getsockopt() of every socket in the cgroup, under the socket's lock: anything that is
//! not ours leaves at once. The kernel's own answer is ENOENT where nothing uses conntrack and the
//! listener's address where something does; both are overridden.

use veer_common::address::{Address, Port};
use veer_common::maps::role;

use crate::ctx::{AF_INET, AF_INET6, SockOpt};
use crate::maps;

const SOL_IP: u32 = 0;
const SOL_IPV6: u32 = 41;
/// `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST`.
const ORIGINAL_DST: u32 = 80;
/// The kernel copies no more than a page for us, and fails a call with a longer buffer unless the
/// length is set to 0, which means "untouched" (iptables itself makes such calls).
const LONGEST_BUFFER: u32 = 4096;

/// Runs after the kernel's own getsockopt(); the call's result stands unless it is changed here.
#[inline(always)]
pub fn getsockopt(context: SockOpt) {
    if !original_destination(context) && context.length() > LONGEST_BUFFER {
        context.set_length(0);
    }
}

/// Answers if the question and the socket are the proxy's.
#[inline(always)]
fn original_destination(context: SockOpt) -> bool {
    let level = context.level();
    if context.option() != ORIGINAL_DST || (level != SOL_IP && level != SOL_IPV6) {
        return false;
    }
    let Some(record) = maps::record(context.socket()) else { return false };
    if record.role != role::ACCEPTED {
        return false;
    }
    // A dual-stack listener has v4 connections on v6 sockets: the address decides, not the socket.
    record.destination.is_v4() == (level == SOL_IP)
        && answer(context, level, &record.destination, record.port)
}

#[inline(always)]
fn answer(context: SockOpt, level: u32, destination: &Address, port: Port) -> bool {
    let [a, b, c, d] = destination.words();
    let written = if level == SOL_IP {
        let head = head(AF_INET, port);
        if context.write(&[head, d, 0, 0]) { 16 } else { 0 }
    } else {
        let head = head(AF_INET6, port);
        if context.write(&[head, 0, a, b, c, d, 0]) { 28 } else { 0 }
    };
    if written != 0 {
        context.set_length(written);
        context.succeed();
    }
    written != 0
}

/// The first word of a sockaddr: the family in host order, the port in network order.
#[inline(always)]
fn head(family: u32, port: Port) -> u32 {
    let [high, low] = port.0;
    let family = ((family & 0xffff) as u16).to_ne_bytes();
    u32::from_ne_bytes([family[0], family[1], high, low])
}
