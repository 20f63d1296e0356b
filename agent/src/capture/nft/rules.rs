//! From a capture to its rules.

mod inbound;
mod outbound;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use veer_common::address::Address;
use veer_common::reason::Reason;

use super::intervals;
use super::ruleset::{
    Base, Chain, Elements, Family, Hook, Kind, Match, Protocol, Rule, Ruleset, Set, Statement, Table,
};
use crate::model::{Capture, InboundPorts, InterceptionMode, OutboundRanges, OwnerGroups};

/// Where outbound connections go.
const OUTBOUND_PORT: u16 = 15001;
/// Where inbound connections go.
const INBOUND_PORT: u16 = 15006;
/// The proxy's own tunnel (HBONE).
const TUNNEL_PORT: u16 = 15008;
/// Where DNS goes.
const DNS_PORT: u16 = 15053;
/// What DNS is.
const DNS: u16 = 53;

/// Names of sets.
mod set {
    pub(super) const EXCLUDED_OUTBOUND_PORTS: &str = "excluded-outbound-ports";
    pub(super) const INCLUDED_OUTBOUND_PORTS: &str = "included-outbound-ports";
    pub(super) const EXCLUDED_RANGES: &str = "excluded-ranges";
    pub(super) const INCLUDED_RANGES: &str = "included-ranges";
    pub(super) const INBOUND_PORTS: &str = "inbound-ports";
    pub(super) const OWNER_GROUPS: &str = "owner-groups";
}

/// What the rules of one family are made from.
struct Scene<'a> {
    capture: &'a Capture,
    /// What even the proxy reaches directly.
    localhost: IpNet,
    /// The source of the proxy's connections to its app.
    passthrough: IpNet,
    has_excluded_ranges: bool,
    /// Whether a list of ranges that are captured has one of this family.
    has_included_ranges: bool,
}

impl Ruleset {
    /// The rules of a pod. The ids are taken as they stand: where [`Capture::ids`] is the pod's own, they must have
    /// been translated. IPv6 is left alone altogether, unless it is captured.
    pub fn of(capture: &Capture, captures_v6: bool) -> Self {
        let mut tables = vec![table(capture, Family::Ip)];
        if captures_v6 {
            tables.push(table(capture, Family::Ip6));
        }
        Self { tables, marks: marks(capture) }
    }
}

/// Whether inbound connections are handed over without NAT.
fn marks(capture: &Capture) -> bool {
    let captures = !matches!(&capture.inbound, InboundPorts::Only(ports) if ports.is_empty());
    capture.mode == InterceptionMode::Tproxy && captures
}

fn table(capture: &Capture, family: Family) -> Table {
    let sets = sets(capture, family);
    let has = |name| sets.iter().any(|set| set.name == name);
    let scene = Scene {
        capture,
        localhost: match family {
            Family::Ip => IpNet::V4(capture.loopback),
            Family::Ip6 => IpNet::V6(Ipv6Net::from(Ipv6Addr::LOCALHOST)),
        },
        passthrough: match family {
            Family::Ip => IpNet::V4(Ipv4Net::from(Ipv4Addr::from(Address::PASSTHROUGH_V4.v4_octets()))),
            Family::Ip6 => IpNet::V6(Ipv6Net::from(Ipv6Addr::from(Address::PASSTHROUGH_V6.octets()))),
        },
        has_excluded_ranges: has(set::EXCLUDED_RANGES),
        has_included_ranges: has(set::INCLUDED_RANGES),
    };
    let mut chains = inbound::chains(&scene);
    chains.extend(outbound::chains(&scene));
    // Before Linux 4.18 an answer is translated back only where there is a chain at the hook that it passes.
    for (name, hook) in [("input", Hook::Input), ("postrouting", Hook::Postrouting)] {
        chains.push(base(name, Kind::Nat, hook, 100, vec![]));
    }
    Table { family, counters: counters(&chains), sets, chains }
}

/// The counters that the rules name, each once, in the order of their numbers.
fn counters(chains: &[Chain]) -> Vec<Reason> {
    let statements = || chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.statements);
    let counted = |reason: &Reason| statements().any(|statement| *statement == Statement::Count(*reason));
    Reason::ALL.into_iter().filter(counted).collect()
}

fn sets(capture: &Capture, family: Family) -> Vec<Set> {
    let ports = |ports: &BTreeSet<_>| Elements::Ports(intervals::ports(ports));
    let ranges = |ranges: &BTreeSet<_>| match family {
        Family::Ip => Elements::V4(intervals::v4(ranges)),
        Family::Ip6 => Elements::V6(intervals::v6(ranges)),
    };
    let none = BTreeSet::new();
    let included = match &capture.outbound {
        OutboundRanges::All => &none,
        OutboundRanges::Only(ranges) => ranges,
    };
    let (InboundPorts::All { excluded: inbound } | InboundPorts::Only(inbound)) = &capture.inbound;
    let (OwnerGroups::AllExcept(groups) | OwnerGroups::Only(groups)) = &capture.owner_groups;
    let sets = [
        (set::EXCLUDED_OUTBOUND_PORTS, ports(&capture.excluded_outbound_ports)),
        (set::INCLUDED_OUTBOUND_PORTS, ports(&capture.included_outbound_ports)),
        (set::EXCLUDED_RANGES, ranges(&capture.excluded_ranges)),
        (set::INCLUDED_RANGES, ranges(included)),
        (set::INBOUND_PORTS, ports(inbound)),
        (set::OWNER_GROUPS, Elements::Groups(groups.clone())),
    ];
    let not_empty = sets.into_iter().filter(|(_, elements)| !elements.is_empty());
    not_empty.map(|(name, elements)| Set { name, elements }).collect()
}

impl Elements {
    fn is_empty(&self) -> bool {
        match self {
            Self::Ports(ports) => ports.is_empty(),
            Self::V4(ranges) => ranges.is_empty(),
            Self::V6(ranges) => ranges.is_empty(),
            Self::Groups(groups) => groups.is_empty(),
        }
    }
}

fn base(name: &'static str, kind: Kind, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain { name, base: Some(Base { kind, hook, priority }), rules }
}

const fn chain(name: &'static str, rules: Vec<Rule>) -> Chain {
    Chain { name, base: None, rules }
}

fn rule<const M: usize, const S: usize>(matches: [Match; M], statements: [Statement; S]) -> Rule {
    Rule { matches: matches.into(), statements: statements.into() }
}

/// What goes where it was dialled.
fn direct<const M: usize>(matches: [Match; M], reason: Reason) -> Rule {
    rule(matches, [Statement::Count(reason), Statement::Return])
}

/// What goes to a port of the proxy. A rule that redirects to a port must say what has ports.
fn redirect<const M: usize>(matches: [Match; M], reason: Reason, port: u16) -> Rule {
    let mut redirect = rule(matches, [Statement::Count(reason), Statement::Redirect(port)]);
    let has_ports = |condition: &Match| matches!(condition, Match::Port(..) | Match::PortIn(..));
    if !redirect.matches.iter().any(has_ports) {
        redirect.matches.push(TCP);
    }
    redirect
}

const TCP: Match = Match::Protocol(Protocol::Tcp);
