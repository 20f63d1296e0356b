//! cgroup/connect4 and connect6: the outbound verdict, and the rewriting of what it redirects.

use veer_common::address::{Address, Port};
use veer_common::maps::{NetnsCookie, PodPolicy, SocketRecord, flag, role};
use veer_common::reason::{Action, Fault, Reason};
use veer_common::verdict::ambient::hands_on;
use veer_common::verdict::{self, Outbound, Rules as _};

use crate::count::{self, Facts};
use crate::ctx::{IPPROTO_TCP, IPPROTO_UDP, Sock, SockAddr};
use crate::rules::PodRules;
use crate::sock_create::record_of;
use crate::{ambient, datagram, maps, proxy};

/// What the hook answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// connect() goes on.
    Proceed,
    /// connect() fails with EPERM.
    Refuse,
}

/// connect4: an `AF_INET` socket.
#[inline(always)]
pub fn connect4(context: SockAddr) -> Answer {
    connect(context, false)
}

/// connect6: an `AF_INET6` socket, to an IPv6 or a v4-mapped address (all of Java's sockets).
#[inline(always)]
pub fn connect6(context: SockAddr) -> Answer {
    connect(context, true)
}

#[inline(always)]
fn connect(context: SockAddr, v6: bool) -> Answer {
    let protocol = context.protocol();
    if protocol == IPPROTO_TCP {
        connect_tcp(context, v6)
    } else if protocol == IPPROTO_UDP {
        datagram::connect(context, v6)
    } else {
        Answer::Proceed
    }
}

/// A function of its own in the object, as UDP's is: of the 512 bytes of stack each has what it needs.
#[inline(never)]
fn connect_tcp(context: SockAddr, v6: bool) -> Answer {
    let cookie = context.netns_cookie();
    let Some(pod) = maps::pod(cookie) else { return Answer::Proceed };

    let socket = Sock::new(context.socket());
    let mut facts = Facts {
        protocol: IPPROTO_TCP,
        uid: 0,
        gid: 0,
        is_impostor: false,
        source: if v6 { socket.source_v6() } else { socket.source_v4() },
        source_port: socket.source_port(),
        destination: if v6 { context.address_v6() } else { context.address_v4() },
        port: context.port(),
        interface: socket.bound_device(),
    };
    let Some(record) = record_of(socket, cookie) else {
        count::decision(cookie, Reason::NoMemory, &facts);
        return Answer::Refuse;
    };
    facts.uid = record.uid;
    facts.gid = record.gid;
    facts.is_impostor = proxy::is_impostor(pod, cookie, (record.uid, record.gid), record.cgroup);

    let connection = Outbound {
        uid: facts.uid,
        gid: facts.gid,
        is_impostor: facts.is_impostor,
        is_before_proxy: proxy::is_awaited(pod, cookie),
        is_marked: ambient::is_marked(pod, socket),
        source: facts.source,
        destination: facts.destination,
        port: facts.port,
        interface: facts.interface,
    };
    let mut reason = verdict::outbound(pod, &PodRules(cookie), &connection);
    let to_proxy = matches!(reason.action(), Action::ToOutbound | Action::ToInbound | Action::ToDns);
    // Whatever rule leaves it alone.
    let hands_on = reason.action() == Action::Direct && hands_on(&PodRules(cookie), &connection);
    if (to_proxy || hands_on) && count::proxy_is_behind(cookie) {
        reason = Reason::ProxyBacklog;
    }
    count::decision(cookie, reason, &facts);
    match reason.action() {
        Action::Direct => {
            // The same socket may have been redirected before and have been refused.
            record.role = role::NONE;
            if hands_on { ambient::hand_on(context, record, &facts) } else { Answer::Proceed }
        }
        action @ (Action::ToOutbound | Action::ToInbound | Action::ToDns) => {
            // What is told to the app and to the proxy is where the kernel would have connected.
            facts.destination = connection.effective_destination();
            let source = source(cookie, pod, &facts.destination, action);
            redirect(context, v6, cookie, &source, record, &facts, port_of(pod, action))
        }
        Action::Drop => Answer::Refuse,
    }
}

/// The proxy's port.
#[inline(always)]
const fn port_of(pod: &PodPolicy, action: Action) -> Port {
    match action {
        Action::ToInbound => pod.inbound_port,
        Action::ToDns => pod.dns_port,
        Action::ToOutbound | Action::Direct | Action::Drop => pod.outbound_port,
    }
}

/// The address that the kernel would have connected from: to an address of its own a host connects from that
/// address. Only with included loopback ranges does what is sent outbound go there.
#[inline(always)]
pub fn source(cookie: NetnsCookie, pod: &PodPolicy, destination: &Address, action: Action) -> Address {
    let may_be_own = action != Action::ToOutbound || pod.flags & flag::INCLUDES_LOOPBACK != 0;
    if may_be_own && PodRules(cookie).own_address(destination) {
        *destination
    } else if destination.is_v4() {
        pod.source_v4
    } else {
        pod.source_v6
    }
}

#[inline(always)]
fn redirect(
    context: SockAddr,
    v6: bool,
    cookie: NetnsCookie,
    source: &Address,
    record: &mut SocketRecord,
    facts: &Facts,
    port: Port,
) -> Answer {
    let destination = facts.destination;
    let target = target(context, v6, cookie, facts, source);

    record.role = role::DIALLER;
    record.destination = destination;
    record.port = facts.port;
    record.target = target;
    record.target_port = port;
    if v6 {
        context.set_address_v6(&target);
    } else {
        context.set_address_v4(&target);
    }
    context.set_port(port);
    Answer::Proceed
}

/// Where to send the connection, and the pod's own address as its source: the proxy must see the client
/// that it would see under iptables.
#[inline(always)]
fn target(context: SockAddr, v6: bool, cookie: NetnsCookie, facts: &Facts, source: &Address) -> Address {
    let localhost = facts.destination.localhost_of_same_family();
    if facts.destination.is_loopback() || source.is_unspecified() {
        return localhost;
    }
    // A socket that is tied to a device cannot reach 127.0.0.1, and one that is bound to a port alone
    // cannot be bound to an address any more. Both reach the pod's own address, which is also the source
    // that the kernel takes then; sk_lookup knows the connection by its hand-off.
    let port_only = facts.source.is_unspecified() && facts.source_port.get() != 0;
    if port_only || Sock::new(context.socket()).bound_device() != 0 {
        return *source;
    }
    if facts.source.is_unspecified() && !context.bind(source, v6) {
        count::fault(cookie, Fault::SourceNotBound);
    }
    localhost
}
