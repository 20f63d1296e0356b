//! cgroup/getpeername4 and getpeername6: the app sees the address that it dialled.

use veer_common::address::Address;
use veer_common::maps::{SocketRecord, role};

use crate::ctx::{IPPROTO_UDP, SockAddr};
use crate::{datagram, maps};

/// getpeername4: an `AF_INET` socket.
#[inline(always)]
pub fn getpeername4(context: SockAddr) {
    if context.protocol() == IPPROTO_UDP {
        datagram::getpeername4(context);
        return;
    }
    if let Some(record) = redirected(context, context.address_v4()) {
        context.set_address_v4(&record.destination);
        context.set_port(record.port);
    }
}

/// getpeername6: an `AF_INET6` socket; the address may be v4-mapped.
#[inline(always)]
pub fn getpeername6(context: SockAddr) {
    if context.protocol() == IPPROTO_UDP {
        datagram::getpeername6(context);
        return;
    }
    if let Some(record) = redirected(context, context.address_v6()) {
        context.set_address_v6(&record.destination);
        context.set_port(record.port);
    }
}

/// The record, if the socket is the app's end of a redirected connection. The role comes first, because
/// accept(2) fires this hook on the proxy's end; the address last, because a record outlives its
/// connection.
#[inline(always)]
fn redirected(context: SockAddr, peer: Address) -> Option<&'static SocketRecord> {
    let record = maps::record(context.socket())?;
    let is_target = record.target == peer && record.target_port == context.port();
    (record.role == role::DIALLER && is_target).then_some(record)
}
