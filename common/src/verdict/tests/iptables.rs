//! istio-init's rules as data, in its order, and an interpreter of as much of netfilter as they use.
//!
//! Written from what istio-init programs (istio/istio, tools/istio-iptables, August 2026) and from what
//! netfilter does with it, without a look at the verdict: it knows packets, chains and marks, and no
//! reasons. The zones that conntrack keeps DNS in are not in it: they do not decide where it goes.

use std::net::IpAddr;

use super::{LO, Range, Scene};
use crate::reason::Action;

/// A TCP SYN or a UDP datagram, or the `connect()` that would send it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) udp: bool,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) port: u16,
    /// Creator of the socket; `None` for what comes from the network.
    pub(super) owner: Option<(u32, u32)>,
    /// Routed over `lo`.
    pub(super) loopback: bool,
    /// The interface that it leaves by or arrived on.
    pub(super) interface: u32,
    pub(super) mark: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Table {
    Mangle,
    Nat,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Chain {
    Prerouting,
    Output,
    IstioInbound,
    IstioOutput,
    IstioRedirect,
    IstioInRedirect,
    IstioTproxy,
    IstioOutputDns,
}

/// A condition of a rule.
#[derive(Clone, Copy, Debug)]
enum When {
    Tcp,
    Udp,
    /// `-o lo` in OUTPUT, `-i lo` in PREROUTING.
    Lo,
    /// `-o` in OUTPUT, `-i` in PREROUTING.
    Via(u32),
    From(Range),
    To(Range),
    NotTo(Range),
    Dport(u16),
    NotDport(u16),
    Uid(u32),
    NotUid(u32),
    Gid(u32),
    NotGid(u32),
    Mark(u32),
    NotMark(u32),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    Return,
    Jump(Chain),
    Redirect(u16),
    Tproxy(u16),
    SetMark(u32),
}

#[derive(Clone, Debug)]
struct Rule(Table, Chain, Vec<When>, Then);

/// The rules of both families. Without IPv6, as istio-init sees it, that family has none.
#[derive(Clone, Debug)]
pub(super) struct Iptables {
    v4: Vec<Rule>,
    v6: Vec<Rule>,
}

const MARK_PROXY: u32 = 1337;
const MARK_OUTBOUND: u32 = 1338;

impl Iptables {
    pub(super) fn of(scene: &Scene) -> Self {
        let v6 = if enables_ipv6(scene) { rules(scene, false) } else { vec![] };
        Self { v4: rules(scene, true), v6 }
    }

    /// Where a connection from a process of the pod ends.
    pub(super) fn output(&self, packet: Packet) -> Action {
        let rules = self.rules_for(&packet);
        let mut packet = packet;
        traverse(rules, Table::Mangle, Chain::Output, &mut packet);
        let redirected = traverse(rules, Table::Nat, Chain::Output, &mut packet);
        if let Some(port) = redirected {
            // REDIRECT in OUTPUT sends to the family's localhost, over lo.
            packet.destination = if packet.destination.is_ipv4() { ip("127.0.0.1") } else { ip("::1") };
            packet.port = port;
            packet.loopback = true;
            packet.interface = LO;
        }
        // What goes over lo comes in again. NAT has made up its mind by then, mangle has not.
        let diverted = if packet.loopback {
            traverse(rules, Table::Mangle, Chain::Prerouting, &mut packet)
        } else {
            None
        };
        action(diverted.or(redirected))
    }

    /// Where a connection from the network ends.
    pub(super) fn prerouting(&self, packet: Packet) -> Action {
        let rules = self.rules_for(&packet);
        let mut packet = packet;
        let diverted = traverse(rules, Table::Mangle, Chain::Prerouting, &mut packet);
        let redirected = traverse(rules, Table::Nat, Chain::Prerouting, &mut packet);
        action(diverted.or(redirected))
    }

    fn rules_for(&self, packet: &Packet) -> &[Rule] {
        if packet.destination.is_ipv4() { &self.v4 } else { &self.v6 }
    }
}

fn action(port: Option<u16>) -> Action {
    match port {
        None => Action::Direct,
        Some(15001) => Action::ToOutbound,
        Some(15006) => Action::ToInbound,
        Some(15053) => Action::ToDns,
        Some(other) => panic!("no rule sends to port {other}"),
    }
}

/// Runs a chain: `None` when the packet goes on, else the port that it is sent to.
fn traverse(rules: &[Rule], table: Table, chain: Chain, packet: &mut Packet) -> Option<u16> {
    for Rule(_, _, conditions, then) in rules.iter().filter(|rule| rule.0 == table && rule.1 == chain) {
        if !conditions.iter().all(|condition| condition.holds(packet)) {
            continue;
        }
        match then {
            Then::Return => return None,
            Then::Redirect(port) | Then::Tproxy(port) => return Some(*port),
            Then::SetMark(mark) => packet.mark = *mark,
            Then::Jump(chain) => {
                if let Some(port) = traverse(rules, table, *chain, packet) {
                    return Some(port);
                }
            }
        }
    }
    None
}

impl When {
    fn holds(self, packet: &Packet) -> bool {
        // The owner match is in OUTPUT alone, and what passes there has a socket.
        let owned = |test: fn(u32, u32, u32) -> bool, id| packet.owner.is_some_and(|(u, g)| test(u, g, id));
        match self {
            Self::Tcp => !packet.udp,
            Self::Udp => packet.udp,
            Self::Lo => packet.loopback,
            Self::Via(interface) => packet.interface == interface,
            Self::From(range) => holds(range, packet.source),
            Self::To(range) => holds(range, packet.destination),
            Self::NotTo(range) => !holds(range, packet.destination),
            Self::Dport(port) => packet.port == port,
            Self::NotDport(port) => packet.port != port,
            Self::Uid(id) => owned(|uid, _, id| uid == id, id),
            Self::NotUid(id) => owned(|uid, _, id| uid != id, id),
            Self::Gid(id) => owned(|_, gid, id| gid == id, id),
            Self::NotGid(id) => owned(|_, gid, id| gid != id, id),
            Self::Mark(mark) => packet.mark == mark,
            Self::NotMark(mark) => packet.mark != mark,
        }
    }
}

/// `-d` and `-s`: both sides are masked, so host bits mean nothing.
fn holds((network, length): Range, address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            u32::from(network) & mask == u32::from(address) & mask
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            u128::from(network) & mask == u128::from(address) & mask
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

/// `getLocalIP`: the first address that is neither loopback nor link-local decides, and with dual stack
/// the first such IPv6 address after it, too.
fn enables_ipv6(scene: &Scene) -> bool {
    let mut found = false;
    for address in &scene.own {
        let local = match address {
            IpAddr::V4(v4) => v4.is_loopback() || v4.octets()[..2] == [169, 254],
            // ::6 is put on lo by istio-init itself, after it has looked.
            IpAddr::V6(v6) => {
                v6.is_loopback() || v6.segments()[0] & 0xffc0 == 0xfe80 || *address == ip("::6")
            }
        };
        if local {
            continue;
        }
        found = address.is_ipv6();
        if found || !scene.dual_stack {
            break;
        }
    }
    found
}

/// What `Run` appends, in its order, for one family.
fn rules(scene: &Scene, v4: bool) -> Vec<Rule> {
    use {Chain::*, Table::*, Then::*, When::*};

    let localhost = if v4 { (scene.localhost.0.into(), scene.localhost.1) } else { (ip("::1"), 128) };
    let passthrough = if v4 { (ip("127.0.0.6"), 32) } else { (ip("::6"), 128) };
    let loopback_included = scene.included_ranges.iter().flatten().any(|(address, _)| match address {
        IpAddr::V4(v4) => v4.octets()[0] == 127,
        // Go unmaps before it looks.
        IpAddr::V6(v6) => {
            *address == ip("::1") || v6.to_ipv4_mapped().is_some_and(|v4| v4.octets()[0] == 127)
        }
    });

    let mut list = rerouted_rules(scene, v4);
    list.extend(excluded_interface_rules(scene));
    list.extend([
        Rule(Nat, IstioInbound, vec![Tcp, Dport(15008)], Return),
        Rule(Nat, IstioRedirect, vec![Tcp], Redirect(15001)),
        Rule(Nat, IstioInRedirect, vec![Tcp], Redirect(15006)),
    ]);
    list.extend(inbound_rules(scene, localhost, passthrough));

    list.push(Rule(Nat, Output, vec![], Jump(IstioOutput)));
    for port in &scene.excluded_outbound {
        list.push(Rule(Nat, IstioOutput, vec![Tcp, Dport(*port)], Return));
        list.push(Rule(Nat, IstioOutput, vec![Udp, Dport(*port)], Return));
    }
    list.push(Rule(Nat, IstioOutput, vec![Lo, From(passthrough)], Return));
    list.extend(proxy_rules(scene, localhost, loopback_included));
    match &scene.groups {
        Err(excluded) => {
            list.extend(excluded.iter().map(|gid| Rule(Nat, IstioOutput, vec![Gid(*gid)], Return)));
        }
        Ok(included) => {
            let of_none = included.iter().copied().map(NotGid).collect();
            list.push(Rule(Nat, IstioOutput, of_none, Return));
        }
    }
    if scene.before_proxy {
        // No rule of istio-init's: what is not the proxy's own is as if there were none behind here.
        list.push(Rule(Nat, IstioOutput, vec![], Return));
    }
    if scene.captures_dns {
        // SetupDNSRedir, with CaptureAllDNS as istio-cni sets it.
        list.push(Rule(Nat, IstioOutput, vec![], Jump(IstioOutputDns)));
        list.push(Rule(Nat, IstioOutputDns, vec![Tcp, Dport(53)], Redirect(15053)));
        list.push(Rule(Nat, IstioOutputDns, vec![Udp, Dport(53)], Redirect(15053)));
    }
    list.push(Rule(Nat, IstioOutput, vec![To(localhost)], Return));
    let of_family = |range: &&Range| range.0.is_ipv4() == v4;
    for range in scene.excluded_ranges.iter().filter(of_family) {
        list.push(Rule(Nat, IstioOutput, vec![To(*range)], Return));
    }
    for port in &scene.included_outbound {
        list.push(Rule(Nat, IstioOutput, vec![Tcp, Dport(*port)], Jump(IstioRedirect)));
    }
    match &scene.included_ranges {
        None => list.push(Rule(Nat, IstioOutput, vec![], Jump(IstioRedirect))),
        Some(ranges) => {
            for range in ranges.iter().filter(of_family) {
                list.push(Rule(Nat, IstioOutput, vec![To(*range)], Jump(IstioRedirect)));
            }
        }
    }
    list
}

/// The rules on the proxy's uid, then those on its gid.
fn proxy_rules(scene: &Scene, localhost: Range, loopback_included: bool) -> Vec<Rule> {
    use {Chain::*, Table::*, Then::*, When::*};

    let mut list = vec![];
    let (uid, gid) = (scene.proxy_uid, scene.proxy_gid);
    for (is_proxy, is_not_proxy) in [(Uid(uid), NotUid(uid)), (Gid(gid), NotGid(gid))] {
        let mut to_itself = vec![Lo, NotTo(localhost), Tcp, NotDport(15008), is_proxy];
        let mut over_lo = vec![Lo, is_not_proxy];
        if scene.captures_dns {
            over_lo.extend([Tcp, NotDport(53)]);
            // The rule on the gid has no such exception.
            if matches!(is_proxy, Uid(_)) {
                to_itself.push(NotDport(53));
            }
        }
        list.push(Rule(Nat, IstioOutput, to_itself, Jump(IstioInRedirect)));
        if !loopback_included {
            list.push(Rule(Nat, IstioOutput, over_lo, Return));
        }
        list.push(Rule(Nat, IstioOutput, vec![is_proxy], Return));
    }
    list
}

/// `shortCircuitExcludeInterfaces`.
fn excluded_interface_rules(scene: &Scene) -> Vec<Rule> {
    use {Chain::*, Table::*, Then::*, When::*};

    let mut list = vec![];
    for interface in &scene.excluded_interfaces {
        list.push(Rule(Nat, Prerouting, vec![Via(*interface)], Return));
        list.push(Rule(Nat, Output, vec![Via(*interface)], Return));
        if scene.tproxy {
            list.push(Rule(Mangle, Prerouting, vec![Via(*interface)], Return));
            list.push(Rule(Mangle, Output, vec![Via(*interface)], Return));
        }
    }
    list
}

/// `shortCircuitKubeInternalInterface` and what `handleOutboundIncludeRules` inserts: each goes to the front, so
/// they stand before the rules on excluded interfaces, and the RETURN behind what redirects.
fn rerouted_rules(scene: &Scene, v4: bool) -> Vec<Rule> {
    use {Chain::*, Table::*, Then::*, When::*};

    let mut list = vec![];
    for interface in &scene.rerouted_interfaces {
        match &scene.included_ranges {
            None => list.push(Rule(Nat, Prerouting, vec![Via(*interface)], Jump(IstioRedirect))),
            Some(ranges) => {
                for range in ranges.iter().filter(|range| range.0.is_ipv4() == v4) {
                    let conditions = vec![Via(*interface), To(*range)];
                    list.push(Rule(Nat, Prerouting, conditions, Jump(IstioRedirect)));
                }
            }
        }
    }
    let untouched = |interface: &u32| Rule(Nat, Prerouting, vec![Via(*interface)], Return);
    list.extend(scene.rerouted_interfaces.iter().map(untouched));
    list
}

/// `handleInboundPortsInclude`, and what TPROXY adds at the end and in front.
fn inbound_rules(scene: &Scene, localhost: Range, passthrough: Range) -> Vec<Rule> {
    use {Chain::*, Table::*, Then::*, When::*};

    let mut list = vec![];
    let (table, capture) = if scene.tproxy { (Mangle, IstioTproxy) } else { (Nat, IstioInRedirect) };
    if scene.tproxy {
        for is_proxy in [Uid(scene.proxy_uid), Gid(scene.proxy_gid)] {
            list.push(Rule(
                Mangle,
                Output,
                vec![NotTo(localhost), Tcp, Lo, is_proxy],
                SetMark(MARK_OUTBOUND),
            ));
        }
        list.push(Rule(Mangle, IstioInbound, vec![Tcp, Mark(MARK_PROXY)], Return));
        list.push(Rule(Mangle, IstioInbound, vec![Tcp, From(passthrough), Lo], Return));
        list.push(Rule(Mangle, IstioInbound, vec![Tcp, Lo, NotMark(MARK_OUTBOUND)], Return));
        list.push(Rule(Mangle, IstioTproxy, vec![Tcp, NotTo(localhost)], Tproxy(15006)));
    }
    match &scene.included_inbound {
        None => {
            list.push(Rule(table, Prerouting, vec![Tcp], Jump(IstioInbound)));
            for port in &scene.excluded_inbound {
                list.push(Rule(table, IstioInbound, vec![Tcp, Dport(*port)], Return));
            }
            list.push(Rule(table, IstioInbound, vec![Tcp], Jump(capture)));
        }
        // An empty list is an empty string, for which nothing at all is programmed.
        Some(ports) if ports.is_empty() => {}
        Some(ports) => {
            list.push(Rule(table, Prerouting, vec![Tcp], Jump(IstioInbound)));
            for port in ports {
                list.push(Rule(table, IstioInbound, vec![Tcp, Dport(*port)], Jump(capture)));
            }
        }
    }
    list
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
