//! cgroup/bind4 and bind6: a record for listeners that nobody created.
//!
//! What listens of an MPTCP socket is a subflow, which the kernel makes itself when the socket is bound:
//! sock_create never sees it. Every listener of Go is MPTCP since 1.24, istio-validation's included.

use crate::ctx::{IPPROTO_TCP, Sock, SockAddr};
use crate::maps;
use crate::sock_create::record_of;

/// Runs for each bind() in the cgroup; never refuses one.
#[inline(always)]
pub fn bind(context: SockAddr) {
    if context.protocol() != IPPROTO_TCP {
        return;
    }
    let cookie = context.netns_cookie();
    if maps::pod(cookie).is_some() {
        // Without memory there is none, and the listener is unknown: the proxy learns no original
        // destination, and nothing is let past it.
        let _record = record_of(Sock::new(context.socket()), cookie);
    }
}
