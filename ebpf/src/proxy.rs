//! Whether the proxy has come, where that counts (`flag::DIRECT_BEFORE_PROXY`), and which container is the proxy's,
//! where that does (`flag::BY_CONTAINER`).
//!
//! By its ids alone anybody can be the proxy who may run as uid 1337. Here the proxy is the container whose
//! process, with these ids, was the first to listen on one of the proxy's ports, as long as one of its sockets
//! does. A container is the cgroup that a socket's creator was in, which no process of a pod can choose.
//! Nobody is the proxy before that; the proxy's own first connections come after it has begun to listen for
//! its status.

#![expect(
    unsafe_code,
    reason = "map values are read and written through raw pointers: other CPUs change them"
)]

use veer_common::maps::{NetnsCookie, PodPolicy, ProxyContainer, SocketRecord, flag};

use crate::ctx::SockOps;
use crate::{count, maps};

/// Whether one of the ids is the proxy's.
#[inline(always)]
pub const fn has_its_ids(pod: &PodPolicy, uid: u32, gid: u32) -> bool {
    uid == pod.proxy_uid || gid == pod.proxy_gid
}

/// Whether a socket's creator has one of the proxy's ids, and was in another container.
#[inline(always)]
pub fn is_impostor(pod: &PodPolicy, cookie: NetnsCookie, (uid, gid): (u32, u32), cgroup: u64) -> bool {
    by_container(pod) && has_its_ids(pod, uid, gid) && !is_its_container(cookie, cgroup)
}

/// Whether the pod's proxy has not listened yet, on a node that lets connections go direct until it does.
#[inline(always)]
pub fn is_awaited(pod: &PodPolicy, cookie: NetnsCookie) -> bool {
    pod.flags & flag::DIRECT_BEFORE_PROXY != 0 && maps::is_before_proxy(cookie)
}

/// From here on nothing goes past the proxy any more, whether it lives or not.
#[inline(always)]
pub fn has_come(pod: &PodPolicy, cookie: NetnsCookie) {
    if pod.flags & flag::DIRECT_BEFORE_PROXY != 0 {
        maps::end_before_proxy(cookie);
    }
}

/// Whether somebody may bind to one of the proxy's ports: not with the proxy's ids from another container
/// while the proxy listens. It could join a SO_REUSEPORT group of the proxy's else, as they have one uid.
#[inline(always)]
pub fn may_bind(pod: &PodPolicy, cookie: NetnsCookie, (uid, gid): (u32, u32), cgroup: u64) -> bool {
    if !by_container(pod) || !has_its_ids(pod, uid, gid) {
        return true;
    }
    let Some(container) = maps::proxy_container(cookie) else { return true };
    cgroup_of(container) == cgroup || listening(container) == 0
}

/// Whether a socket that has begun to listen on one of the proxy's ports may be the proxy's. The first one says
/// which container that is, for as long as one of them listens.
#[inline(always)]
pub fn may_listen(context: SockOps, pod: &PodPolicy, record: &mut SocketRecord) -> bool {
    if !by_container(pod) || !has_its_ids(pod, record.uid, record.gid) {
        return true;
    }
    if maps::proxy_container(record.cookie).is_none() {
        let first = ProxyContainer { cgroup: record.cgroup, listening: 0 };
        maps::put_proxy_container(record.cookie, &first);
    }
    let Some(container) = maps::proxy_container(record.cookie) else { return false };
    if cgroup_of(container) != record.cgroup {
        if listening(container) != 0 {
            return false;
        }
        // SAFETY: a field of a live map value.
        let cgroup = unsafe { &raw mut (*container).cgroup };
        // SAFETY: an aligned u64; volatile, because other CPUs read it.
        unsafe { cgroup.write_volatile(record.cgroup) };
    }
    count(container, 1);
    record.is_counted = 1;
    context.watch_state();
    true
}

/// A socket does not listen any more.
#[inline(always)]
pub fn stops_listening(record: &mut SocketRecord) {
    if record.is_counted == 0 {
        return;
    }
    record.is_counted = 0;
    let Some(container) = maps::proxy_container(record.cookie) else { return };
    if cgroup_of(container) == record.cgroup && listening(container) != 0 {
        count(container, -1);
    }
}

#[inline(always)]
const fn by_container(pod: &PodPolicy) -> bool {
    pod.flags & flag::BY_CONTAINER != 0
}

#[inline(always)]
fn is_its_container(cookie: NetnsCookie, cgroup: u64) -> bool {
    maps::proxy_container(cookie).is_some_and(|container| cgroup_of(container) == cgroup)
}

#[inline(always)]
fn cgroup_of(container: *mut ProxyContainer) -> u64 {
    // SAFETY: a field of a live map value.
    let cgroup = unsafe { &raw const (*container).cgroup };
    // SAFETY: an aligned u64; volatile, because other CPUs write it.
    unsafe { cgroup.read_volatile() }
}

#[inline(always)]
fn listening(container: *mut ProxyContainer) -> u64 {
    // SAFETY: a field of a live map value.
    let listening = unsafe { &raw const (*container).listening };
    // SAFETY: as for `cgroup_of`.
    unsafe { listening.read_volatile() }
}

#[inline(always)]
fn count(container: *mut ProxyContainer, change: i64) {
    // SAFETY: a field of a live map value.
    let listening = unsafe { &raw mut (*container).listening };
    count::add_atomically(listening, change);
}
