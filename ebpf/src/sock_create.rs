//! cgroup/sock_create: remembers who made a socket, while that is still known.
//!
//! iptables' owner match looks at the creator, not at whoever connects: a socket made by root and
//! connected after setuid(1337) is an app's. The record is also where later hooks find the netns cookie
//! on kernels whose sockops and sockopt have no helper for it.

use aya_ebpf::programs::SockContext;
use veer_common::maps::{NetnsCookie, SocketRecord};

use crate::ctx::{self, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_UDPLITE, Sock};
use crate::{datagram, maps};

/// `IPPROTO_MPTCP`.
const IPPROTO_MPTCP: u32 = 262;

/// The record of a socket. One that has none yet gets the current process as its creator: besides this
/// module's hook that happens to sockets older than their pod's enrolment, and to subflows of MPTCP.
#[inline(always)]
pub fn record_of(socket: Sock, cookie: NetnsCookie) -> Option<&'static mut SocketRecord> {
    let record = maps::record_or_insert(socket.pointer())?;
    // No netns has the cookie 0.
    if record.cookie == 0 {
        let (uid, gid) = ctx::current_uid_gid();
        record.cookie = cookie;
        record.uid = uid;
        record.gid = gid;
        record.cgroup = ctx::current_cgroup();
    }
    Some(record)
}

/// Runs for each socket made in the cgroup; never refuses one.
#[inline(always)]
pub fn sock_create(context: &SockContext) {
    let socket = Sock::new(context.sock.cast());
    let protocol = socket.protocol();
    if protocol == IPPROTO_UDP {
        datagram::created(socket);
        return;
    }
    if protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP {
        return;
    }
    let cookie = socket.netns_cookie();
    if maps::pod(cookie).is_none() {
        return;
    }
    // Without memory there is no record now; connect() tries again, and refuses if it has none either.
    let _ = record_of(socket, cookie);
}

/// Writes the netns cookie of each UDP-Lite socket into its record, where the agent reads it: before Linux 5.14 the
/// kernel tells a cookie to programs alone. The protocol is one that hardly anybody else uses.
#[inline(always)]
pub fn tell_cookie(context: &SockContext) {
    let socket = Sock::new(context.sock.cast());
    if socket.protocol() == IPPROTO_UDPLITE {
        // Without memory there is none, and the agent says that it has found none.
        let _ = record_of(socket, socket.netns_cookie());
    }
}
