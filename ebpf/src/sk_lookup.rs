//! sk_lookup: the inbound verdict, once for each connection that arrives in the pod's netns.
//!
//! The kernel has no helper for the netns cookie here: each netns has a few instructions of its own, with the
//! cookie as a constant, which say it and the interface and jump to this program (`bin/netns.rs`).

use veer_common::address::Port;
use veer_common::event::NO_ID;
use veer_common::interface::Arrival;
use veer_common::maps::{HandOffKey, NetnsCookie, PodPolicy, flag};
use veer_common::reason::{Action, Fault, Reason};
use veer_common::verdict::{self, Inbound};

use crate::ambient;
use crate::count::{self, Facts};
use crate::ctx::{IPPROTO_TCP, SkLookup};
use crate::listen::is_proxys;
use crate::maps::{self, Assigned};
use crate::rules::PodRules;

/// What the hook answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The kernel goes on, with the listener that was assigned, if one was.
    Pass,
    /// The connection is refused.
    Drop,
}

/// Runs for each lookup of a listener in the pod's netns.
///
/// The listener is sought before the verdict, and given back where that says so. The verifier goes through a loop once for each
/// way that leads to it: behind the verdict, the 192 slots were 964,080 instructions, of a million that it takes. So
/// nothing that is known before the loop is used behind it: addresses are read anew.
#[inline(always)]
pub fn sk_lookup(context: SkLookup, arrival: &Arrival) -> Answer {
    // Within the pod, as the verdict has it; the kernel finds the listener that was dialled.
    if context.protocol() != IPPROTO_TCP || context.local().is_loopback() {
        return Answer::Pass;
    }
    let cookie = arrival.cookie;
    let Some(pod) = maps::pod(cookie) else { return Answer::Pass };
    let assigned = maps::assign_listener(context, cookie, listener_port(context, cookie, pod));

    let connection = Inbound {
        remote: context.remote(),
        local: context.local(),
        port: context.local_port(),
        interface: arrival.interface,
        sender: ambient::sender(pod, cookie, context),
    };
    let reason = verdict::inbound(pod, &PodRules(cookie), &connection);
    if reason == Reason::WithinPod {
        if !is_redirected_to_own_address(context, cookie, pod) {
            maps::unassign_listener(context, assigned);
        } else if assigned == Assigned::Refused {
            count::fault(cookie, Fault::NotAssigned);
        }
        return Answer::Pass;
    }
    match reason.action() {
        Action::ToInbound => {
            let answer = to_proxy(context, cookie, &connection, assigned);
            if answer == Answer::Pass && is_counted_here(pod, connection.port) {
                count::decision(cookie, reason, &facts(context, &connection));
            }
            answer
        }
        Action::Direct => {
            maps::unassign_listener(context, assigned);
            count::decision(cookie, reason, &facts(context, &connection));
            Answer::Pass
        }
        // No inbound rule gives ToDns, and ToOutbound only one on pods that nftables redirects.
        Action::ToOutbound | Action::ToDns | Action::Drop => Answer::Drop,
    }
}

/// What dials a port of the proxy's is at the proxy whether it arrives on an excluded interface or not, and only here
/// it is known on which. A repeated SYN is counted again.
#[inline(always)]
pub fn is_counted_here(pod: &PodPolicy, port: Port) -> bool {
    pod.flags & flag::EXCLUDES_INTERFACES != 0 && is_proxys(pod, port)
}

/// The port of the proxy's whose listener is to have the connection, if one is.
#[inline(always)]
fn listener_port(context: SkLookup, cookie: NetnsCookie, pod: &PodPolicy) -> Port {
    if is_redirected_to_own_address(context, cookie, pod) { context.local_port() } else { pod.inbound_port }
}

/// connect() sends some sockets to the pod's own address instead of to 127.0.0.1. The proxy may listen on
/// 127.0.0.1 alone; and a connection that really was dialled to this port is left to the kernel.
#[inline(always)]
fn is_redirected_to_own_address(context: SkLookup, cookie: NetnsCookie, pod: &PodPolicy) -> bool {
    let key = HandOffKey {
        cookie,
        source: context.remote(),
        source_port: context.remote_port(),
        listener_port: context.local_port(),
        to_own_address: 1,
    };
    is_proxys(pod, context.local_port()) && maps::hand_off(&key).is_some()
}

#[inline(always)]
fn to_proxy(context: SkLookup, cookie: NetnsCookie, connection: &Inbound, assigned: Assigned) -> Answer {
    match assigned {
        // Counted when the proxy gets it: see `handoff::accepted`.
        Assigned::Yes => return Answer::Pass,
        Assigned::NoListener => {}
        Assigned::Refused => count::fault(cookie, Fault::NotAssigned),
    }
    count::decision(cookie, Reason::NoListener, &facts(context, connection));
    Answer::Drop
}

#[inline(always)]
fn facts(context: SkLookup, connection: &Inbound) -> Facts {
    Facts {
        protocol: IPPROTO_TCP,
        uid: NO_ID,
        gid: NO_ID,
        is_impostor: false,
        source: connection.remote,
        source_port: context.remote_port(),
        destination: connection.local,
        port: connection.port,
        interface: connection.interface,
    }
}
