//! Pods whose proxy shows the app its clients: whose a socket is by its mark, and what the proxy hands to its app.
//!
//! They are those of ambient mode, and those with TPROXY, whose sidecar (uid 0, with NET_ADMIN) istiod has do what ztunnel does.
//! The proxy makes that connection from the address of its own client. Its SYN comes into the pod's netns like one of that
//! client's, and must not be captured again: it is filed before it is sent, as what is redirected is. And the app
//! answers an address that is elsewhere. So the connection gets a mark of its own, which the app's end inherits
//! (`net.ipv4.tcp_fwmark_accept`), and by which a rule sends the answers back to `lo`. The proxy's connections
//! to the network keep its mark, which no rule names.

use veer_common::address::Address;
use veer_common::maps::{HandOffKey, NetnsCookie, PodPolicy, SocketRecord, flag, role};
use veer_common::reason::Fault;
use veer_common::verdict::{Sender, ambient};

use crate::connect::Answer;
use crate::count::{self, Facts};
use crate::ctx::{SkLookup, Sock, SockAddr, SockOps};
use crate::{handoff, maps};

/// What [`HandOffKey::to_own_address`] is of what a proxy hands to its app so.
pub const HANDED_ON: u32 = 2;

/// Whether marks count in the pod, and the socket has the proxy's.
#[inline(always)]
pub fn is_marked(pod: &PodPolicy, socket: Sock) -> bool {
    pod.shows_clients() && ambient::is_ztunnels(socket.mark())
}

/// connect() of the proxy's to its app. Without the mark the app's answers would be lost, so it is refused then.
#[inline(always)]
pub fn hand_on(context: SockAddr, record: &mut SocketRecord, facts: &Facts) -> Answer {
    if !context.set_mark(ambient::REPLY) {
        count::fault(record.cookie, Fault::ReplyPath);
        return Answer::Refuse;
    }
    record.role = role::HANDING_ON;
    record.destination = facts.destination;
    record.port = facts.port;
    record.target = facts.destination;
    record.target_port = facts.port;
    Answer::Proceed
}

/// `PASSIVE_ESTABLISHED` on an app's side: no SYN of this connection comes any more.
#[inline(always)]
pub fn reached_app(context: SockOps, cookie: NetnsCookie) {
    if maps::pod(cookie).is_some_and(PodPolicy::shows_clients) {
        let key = HandOffKey {
            cookie,
            source: context.remote(),
            source_port: context.remote_port(),
            listener_port: context.local_port(),
            to_own_address: HANDED_ON,
        };
        handoff::forget(&key);
    }
}

/// Who sends what arrives.
#[inline(always)]
pub fn sender(pod: &PodPolicy, cookie: NetnsCookie, context: SkLookup) -> Sender {
    if !pod.shows_clients() {
        return Sender::Client;
    }
    let remote = context.remote();
    if is_handed_on(cookie, context, remote) {
        Sender::Proxy
    } else if pod.flags & flag::AMBIENT != 0 && maps::node_address(&remote) {
        Sender::Node
    } else {
        Sender::Client
    }
}

/// Whether the proxy has filed it, for this very address of the pod.
#[inline(always)]
fn is_handed_on(cookie: NetnsCookie, context: SkLookup, remote: Address) -> bool {
    let key = HandOffKey {
        cookie,
        source: remote,
        source_port: context.remote_port(),
        listener_port: context.local_port(),
        to_own_address: HANDED_ON,
    };
    maps::hand_off(&key).is_some_and(|hand_off| hand_off.destination == context.local())
}
