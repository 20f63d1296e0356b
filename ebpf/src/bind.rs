//! cgroup/bind4 and bind6: a record for listeners that nobody created, and the proxy's ports for the proxy.
//!
//! What listens of an MPTCP socket is a subflow, which the kernel makes itself when the socket is bound:
//! sock_create never sees it. Every listener of Go is MPTCP since 1.24, istio-validation's included.

use veer_common::maps::{NetnsCookie, PodPolicy};
use veer_common::reason::Fault;

use crate::ctx::{self, IPPROTO_TCP, IPPROTO_UDP, Sock, SockAddr};
use crate::sock_create::record_of;
use crate::{count, maps, proxy};

/// Runs for each bind() in the cgroup; false refuses it.
#[inline(always)]
pub fn bind(context: SockAddr) -> bool {
    let protocol = context.protocol();
    if protocol != IPPROTO_TCP && protocol != IPPROTO_UDP {
        return true;
    }
    let cookie = context.netns_cookie();
    let Some(pod) = maps::pod(cookie) else { return true };
    let may_bind = if protocol == IPPROTO_TCP {
        tcp(context, cookie, pod)
    } else {
        // The proxy's port for DNS, where questions arrive by UDP.
        !pod.names_the_proxy(context.port())
            || proxy::may_bind(pod, cookie, ctx::current_uid_gid(), ctx::current_cgroup())
    };
    if !may_bind {
        count::fault(cookie, Fault::ForeignListener);
    }
    may_bind
}

#[inline(always)]
fn tcp(context: SockAddr, cookie: NetnsCookie, pod: &PodPolicy) -> bool {
    // Without memory there is none, and the listener is unknown: the proxy learns no original
    // destination, and nothing is let past it.
    let Some(record) = record_of(Sock::new(context.socket()), cookie) else { return true };
    // Whoever takes the port that the proxy would listen on must not gain by it what goes past the proxy.
    if pod.redirects_to(context.port()) && !proxy::has_its_ids(pod, record.uid, record.gid) {
        proxy::has_come(pod, cookie);
    }
    !pod.names_the_proxy(context.port())
        || proxy::may_bind(pod, cookie, (record.uid, record.gid), record.cgroup)
}
