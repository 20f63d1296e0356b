//! UDP of pods that capture DNS: connect4 and connect6, sendmsg4 and sendmsg6, recvmsg4 and recvmsg6,
//! getpeername4 and getpeername6.
//!
//! Questions go to the proxy's DNS port, and its replies are shown as coming from whom was asked. A connected
//! socket has one resolver. One that is not connected may ask several, and nothing of a reply tells which of
//! them it is from: all come from 127.0.0.1. So the first keeps the pod's address as its source, and each
//! further one (IPv4, on a socket that is bound to no address) has a source of its own out of 127.53.0.0/24.
//! The proxy answers to there, that answer gets the same address as its source, and so it can be told.
//!
//! Whatever else is UDP leaves at its first test: another port, or a socket without a record.

use core::hint::black_box;

use veer_common::address::{Address, Port};
use veer_common::maps::{DatagramRecord, NetnsCookie, PodPolicy, flag};
use veer_common::reason::{Action, Fault, Reason};
use veer_common::verdict::{self, Outbound};

use crate::connect::{self, Answer};
use crate::count::{self, Facts};
use crate::ctx::{self, IPPROTO_UDP, Sock, SockAddr};
use crate::rules::PodRules;
use crate::{ambient, maps, proxy};

/// The port of resolvers.
const DNS: Port = Port::new(53);

/// A pod that captures DNS.
#[inline(always)]
fn capturing(cookie: NetnsCookie) -> Option<&'static PodPolicy> {
    maps::pod(cookie).filter(|pod| pod.flags & flag::DNS_CAPTURE != 0)
}

/// sock_create: remembers who made the socket.
#[inline(always)]
pub fn created(socket: Sock) {
    let cookie = socket.netns_cookie();
    if capturing(cookie).is_some() {
        // Without memory there is none, and the first question tries again.
        let _record = record_of(socket, cookie);
    }
}

/// The record of a socket. One that has none yet gets the current process as its creator.
#[inline(always)]
fn record_of(socket: Sock, cookie: NetnsCookie) -> Option<&'static mut DatagramRecord> {
    let record = maps::datagrams_or_insert(socket.pointer())?;
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

/// What is to become of a question.
enum Question {
    /// It is none that is captured.
    Direct,
    /// It cannot be decided on.
    Refuse,
    /// It goes to the proxy.
    ToProxy(&'static PodPolicy, &'static mut DatagramRecord),
}

/// Decides on what goes to port 53.
#[inline(always)]
fn decide(context: SockAddr, mut facts: Facts) -> Question {
    let cookie = context.netns_cookie();
    let Some(pod) = capturing(cookie) else { return Question::Direct };
    let Some(record) = record_of(Sock::new(context.socket()), cookie) else {
        count::decision(cookie, Reason::NoMemory, &facts);
        return Question::Refuse;
    };
    facts.uid = record.uid;
    facts.gid = record.gid;
    facts.is_impostor = proxy::is_impostor(pod, cookie, (record.uid, record.gid), record.cgroup);
    let sent = Outbound {
        is_before_proxy: proxy::is_awaited(pod, cookie),
        is_marked: ambient::is_marked(pod, Sock::new(context.socket())),
        ..outbound(&facts)
    };
    let reason = verdict::datagram(pod, &PodRules(cookie), &sent);
    count::decision(cookie, reason, &facts);
    match reason.action() {
        Action::ToDns => Question::ToProxy(pod, record),
        Action::Drop => Question::Refuse,
        // No rule on UDP gives the other two.
        Action::Direct | Action::ToOutbound | Action::ToInbound => Question::Direct,
    }
}

/// What is known of a question by itself.
#[inline(always)]
const fn outbound(facts: &Facts) -> Outbound {
    Outbound {
        uid: facts.uid,
        gid: facts.gid,
        is_impostor: facts.is_impostor,
        is_before_proxy: false,
        is_marked: false,
        source: facts.source,
        destination: facts.destination,
        port: facts.port,
        interface: facts.interface,
    }
}

#[inline(always)]
fn facts(context: SockAddr, source: Address, destination: Address) -> Facts {
    let socket = Sock::new(context.socket());
    Facts {
        protocol: IPPROTO_UDP,
        uid: 0,
        gid: 0,
        is_impostor: false,
        source,
        source_port: socket.source_port(),
        destination,
        port: DNS,
        interface: socket.bound_device(),
    }
}

/// connect4 and connect6 of a UDP socket; `v6` is the hook, and says which form the address has. An
/// `AF_INET6` socket runs connect4 when it is connected with a `sockaddr_in`.
#[inline(never)]
pub fn connect(context: SockAddr, v6: bool) -> Answer {
    let socket = Sock::new(context.socket());
    if context.port().get() != DNS.get() {
        forget(socket);
        return Answer::Proceed;
    }
    let source = if socket.is_v6() { socket.source_v6() } else { socket.source_v4() };
    let facts = facts(context, source, if v6 { context.address_v6() } else { context.address_v4() });
    match decide(context, facts) {
        Question::Direct => {
            forget(socket);
            Answer::Proceed
        }
        Question::Refuse => Answer::Refuse,
        Question::ToProxy(pod, record) => {
            let destination = outbound(&facts).effective_destination();
            record.connected = destination;
            record.dns_port = pod.dns_port;
            make_source(context, pod, &destination, &facts);
            let target = destination.localhost_of_same_family();
            if v6 {
                context.set_address_v6(&target);
            } else {
                context.set_address_v4(&target);
            }
            context.set_port(pod.dns_port);
            Answer::Proceed
        }
    }
}

/// What the socket was connected to before counts no more.
#[inline(always)]
fn forget(socket: Sock) {
    if let Some(record) = maps::datagrams(socket.pointer()) {
        record.connected = Address::UNSPECIFIED;
    }
}

/// Gives the socket the source that it would have had. One that has a port already cannot be bound any more.
#[inline(always)]
fn make_source(context: SockAddr, pod: &PodPolicy, destination: &Address, facts: &Facts) {
    if destination.is_loopback() || !facts.source.is_unspecified() {
        return;
    }
    let cookie = context.netns_cookie();
    let source = connect::source(cookie, pod, destination, Action::ToDns);
    let socket = Sock::new(context.socket());
    if facts.source_port.get() != 0 || !context.bind(&source, socket.is_v6()) {
        count::fault(cookie, Fault::SourceNotBound);
    }
}

/// sendmsg4: a message with an address of IPv4, from a socket of either family; or what a connected
/// `AF_INET6` socket sends to the mapped address that connect() has put in, which is not port 53 any more.
#[inline(always)]
pub fn sendmsg4(context: SockAddr) -> Answer {
    if context.protocol() != IPPROTO_UDP {
        return Answer::Proceed;
    }
    let destination = context.address_v4();
    if DatagramRecord::slot_of_source(&destination).is_some() && is_dns_proxys(context) {
        context.set_message_source_v4(&destination);
        return Answer::Proceed;
    }
    if context.port().get() != DNS.get() {
        return Answer::Proceed;
    }
    ask_v4(context)
}

/// sendmsg6: a message with an address of IPv6.
#[inline(always)]
pub fn sendmsg6(context: SockAddr) -> Answer {
    if context.protocol() != IPPROTO_UDP || context.port().get() != DNS.get() {
        return Answer::Proceed;
    }
    ask_v6(context)
}

/// Whether the socket is the one that the pod's questions go to.
#[inline(always)]
fn is_dns_proxys(context: SockAddr) -> bool {
    let Some(pod) = capturing(context.netns_cookie()) else { return false };
    Sock::new(context.socket()).source_port().get() == pod.dns_port.get()
}

#[inline(never)]
fn ask_v4(context: SockAddr) -> Answer {
    let facts = facts(context, context.message_source_v4(), context.address_v4());
    let (pod, record) = match decide(context, facts) {
        Question::Direct => return Answer::Proceed,
        Question::Refuse => return Answer::Refuse,
        Question::ToProxy(pod, record) => (pod, record),
    };
    let destination = outbound(&facts).effective_destination();
    let [_, _, _, resolver] = destination.words();
    // A source that somebody has chosen is to be seen, and replies come to no other.
    let slot = if facts.source.is_unspecified() { slot_for(record, resolver) } else { 0 };
    if let Some(asked) = record.asked_v4.get_mut(index(slot)) {
        *asked = resolver;
    }
    record.dns_port = pod.dns_port;
    if slot != 0 {
        context.set_message_source_v4(&DatagramRecord::slot_source(slot));
    } else if facts.source.is_unspecified() && !destination.is_loopback() {
        let source = connect::source(context.netns_cookie(), pod, &destination, Action::ToDns);
        context.set_message_source_v4(&source);
    }
    context.set_address_v4(&Address::LOOPBACK_V4);
    context.set_port(pod.dns_port);
    Answer::Proceed
}

/// A slot as an index. The verifier must see the bound, which the compiler knows, and would drop.
#[inline(always)]
fn index(slot: u8) -> usize {
    usize::from(black_box(slot)) & (DatagramRecord::SLOTS - 1)
}

/// The slot of a resolver that was asked before, else a free one; the first if there is none.
#[inline(always)]
fn slot_for(record: &DatagramRecord, resolver: u32) -> u8 {
    let [first, second, third, fourth] = record.asked_v4;
    let fits = |asked: u32| asked == resolver || asked == 0;
    if fits(first) {
        0
    } else if fits(second) {
        1
    } else if fits(third) {
        2
    } else if fits(fourth) {
        3
    } else {
        0
    }
}

#[inline(never)]
fn ask_v6(context: SockAddr) -> Answer {
    let facts = facts(context, context.message_source_v6(), context.address_v6());
    let (pod, record) = match decide(context, facts) {
        Question::Direct => return Answer::Proceed,
        Question::Refuse => return Answer::Refuse,
        Question::ToProxy(pod, record) => (pod, record),
    };
    let destination = outbound(&facts).effective_destination();
    record.asked_v6 = destination;
    record.dns_port = pod.dns_port;
    if facts.source.is_unspecified() && !destination.is_loopback() {
        let source = connect::source(context.netns_cookie(), pod, &destination, Action::ToDns);
        context.set_message_source_v6(&source);
    }
    context.set_address_v6(&Address::LOOPBACK_V6);
    context.set_port(pod.dns_port);
    Answer::Proceed
}

/// recvmsg4: a message on an `AF_INET` socket, whose sender the caller wants to know.
#[inline(always)]
pub fn recvmsg4(context: SockAddr) {
    let Some(record) = maps::datagrams(context.socket()) else { return };
    if let Some(asked) = asked(context, record, context.address_v4()) {
        context.set_address_v4(&asked);
        context.set_port(DNS);
    }
}

/// recvmsg6: on an `AF_INET6` socket; the sender may be v4-mapped.
#[inline(always)]
pub fn recvmsg6(context: SockAddr) {
    let Some(record) = maps::datagrams(context.socket()) else { return };
    if let Some(asked) = asked(context, record, context.address_v6()) {
        context.set_address_v6(&asked);
        context.set_port(DNS);
    }
}

/// Whom a message from the proxy's DNS port answers for; `None` for any other message.
#[inline(always)]
fn asked(context: SockAddr, record: &DatagramRecord, from: Address) -> Option<Address> {
    let port = record.dns_port;
    if port.get() == 0 || context.port().get() != port.get() {
        return None;
    }
    let slot = match DatagramRecord::slot_of_source(&from) {
        Some(slot) => slot,
        None if from == from.localhost_of_same_family() => 0,
        None => return None,
    };
    if slot == 0 && Sock::new(context.socket()).is_connected() {
        return is(record.connected);
    }
    if !from.is_v4() {
        return is(record.asked_v6);
    }
    let resolver = *record.asked_v4.get(index(slot))?;
    (resolver != 0).then(|| Address::v4(resolver.to_ne_bytes()))
}

#[inline(always)]
fn is(resolver: Address) -> Option<Address> {
    (!resolver.is_unspecified()).then_some(resolver)
}

/// getpeername4 of a UDP socket.
#[inline(always)]
pub fn getpeername4(context: SockAddr) {
    if let Some(resolver) = peer(context, context.address_v4()) {
        context.set_address_v4(&resolver);
        context.set_port(DNS);
    }
}

/// getpeername6 of a UDP socket; the address may be v4-mapped.
#[inline(always)]
pub fn getpeername6(context: SockAddr) {
    if let Some(resolver) = peer(context, context.address_v6()) {
        context.set_address_v6(&resolver);
        context.set_port(DNS);
    }
}

/// The resolver that a connected socket has, if what the kernel names is the proxy.
#[inline(always)]
fn peer(context: SockAddr, peer: Address) -> Option<Address> {
    let record = maps::datagrams(context.socket())?;
    let is_target =
        peer == record.connected.localhost_of_same_family() && context.port().get() == record.dns_port.get();
    if is_target { is(record.connected) } else { None }
}
