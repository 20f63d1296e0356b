//! What processes of the pod send: `OUTPUT` of istio-init.

use veer_common::reason::Reason;

use super::{
    DNS, DNS_PORT, INBOUND_PORT, OUTBOUND_PORT, Scene, TCP, TUNNEL_PORT, base, chain, direct, marks,
    redirect, rule, set,
};
use crate::capture::nft::ruleset::{
    Chain, Hook, Is, Kind, Match, Protocol, Rule, Side, Statement, Way, route,
};
use crate::model::{Capture, InboundPorts, InterceptionMode, OutboundRanges, OwnerGroups};

/// Conntrack's zone of the proxy's own DNS, and that of everybody else's: as with istio-init, so that the two, which
/// may have the same addresses and ports, are never taken for one.
const ZONES: [u16; 2] = [1, 2];

pub(super) fn chains(scene: &Scene<'_>) -> Vec<Chain> {
    let mut first = Vec::new();
    for name in &scene.capture.excluded_interfaces {
        let by = || Match::Interface(Way::Out, name.clone());
        first.push(direct([by(), TCP], Reason::ExcludedInterface));
        if scene.capture.dns_capture {
            first.push(direct([by(), dns(Protocol::Udp)], Reason::ExcludedInterface));
        }
    }
    first.push(rule([TCP], [Statement::Goto("outbound")]));
    let mut chains = Vec::new();
    if scene.capture.dns_capture {
        first.push(rule([dns(Protocol::Udp)], [Statement::Goto("dns")]));
        chains.push(chain("dns", udp_dns(scene)));
        chains.extend(zones(scene));
    }
    chains.push(base("output", Kind::Nat, Hook::Output, -100, first));
    chains.push(chain("outbound", tcp(scene)));
    chains.push(chain("proxy", proxy(scene, Reason::Proxy)));
    chains.push(chain("proxy-group", proxy(scene, Reason::ProxyGroup)));
    chains.push(chain("destinations", destinations(scene)));
    chains
}

fn dns(protocol: Protocol) -> Match {
    Match::Port(protocol, Side::Destination, Is::So, DNS)
}

const LO: Match = Match::Loopback(Way::Out);

/// istio-init leaves out its "app over lo" rule where a loopback range is included.
fn includes_loopback(scene: &Scene<'_>) -> bool {
    scene.capture.outbound.begin_in_loopback()
}

fn tcp(scene: &Scene<'_>) -> Vec<Rule> {
    let capture = scene.capture;
    let mut rules = before_identity(scene, Protocol::Tcp);
    rules.push(rule([Match::Uid(capture.proxy_uid)], [Statement::Goto("proxy")]));
    rules.extend(by_gid_within_pod(capture));
    if !includes_loopback(scene) {
        let other_than_dns = Match::Port(Protocol::Tcp, Side::Destination, Is::Not, DNS);
        rules.push(if capture.dns_capture {
            direct([LO, other_than_dns], Reason::AppToOwnAddress)
        } else {
            direct([LO], Reason::AppToOwnAddress)
        });
    }
    rules.push(rule([Match::Gid(capture.proxy_gid)], [Statement::Goto("proxy-group")]));
    rules.extend(owner_groups(scene, Statement::Goto("destinations")));
    rules
}

/// With TPROXY the proxy runs as uid 0, so within the pod its gid says who it is; there istio-init does to its
/// connections what it does to those of the network, by the lists of inbound ports.
fn by_gid_within_pod(capture: &Capture) -> Option<Rule> {
    let listed = |is| Match::PortIn(Protocol::Tcp, is, set::INBOUND_PORTS);
    let mut matches = vec![LO, Match::Gid(capture.proxy_gid)];
    match &capture.inbound {
        InboundPorts::All { excluded } if excluded.is_empty() => {}
        InboundPorts::All { .. } => matches.push(listed(Is::Not)),
        InboundPorts::Only(included) if included.is_empty() => return None,
        InboundPorts::Only(_) => matches.push(listed(Is::So)),
    }
    let statements = vec![Statement::Goto("proxy")];
    (capture.mode == InterceptionMode::Tproxy).then_some(Rule { matches, statements })
}

/// Excluded ports bind the proxy, too; then what the proxy hands to its app.
fn before_identity(scene: &Scene<'_>, protocol: Protocol) -> Vec<Rule> {
    let mut rules = Vec::new();
    if !scene.capture.excluded_outbound_ports.is_empty() {
        let listed = Match::PortIn(protocol, Is::So, set::EXCLUDED_OUTBOUND_PORTS);
        rules.push(direct([listed], Reason::ExcludedPort));
    }
    let source = Match::Address(Side::Source, Is::So, scene.passthrough);
    rules.push(direct([LO, source], Reason::PassthroughSource));
    if marks(scene.capture) && protocol == Protocol::Tcp {
        rules.push(direct([LO, Match::Mark(route::MARK)], Reason::ProxyMark));
    }
    rules
}

/// The proxy's own connections: to its own pod they are for the pod's services. Its DNS is not, where DNS is captured;
/// with istio-init that holds for what has its uid alone, and not for what has its gid.
fn proxy(scene: &Scene<'_>, reason: Reason) -> Vec<Rule> {
    let other_than = |port| Match::Port(Protocol::Tcp, Side::Destination, Is::Not, port);
    let elsewhere = Match::Address(Side::Destination, Is::Not, scene.localhost);
    let mut matches = vec![LO, elsewhere, other_than(TUNNEL_PORT)];
    if scene.capture.dns_capture {
        matches.push(other_than(DNS));
    }
    let statements = vec![Statement::Count(Reason::ProxyToOwnAddress), Statement::Redirect(INBOUND_PORT)];
    vec![Rule { matches, statements }, direct([], reason)]
}

/// What the node's owner groups leave goes on to `then`.
fn owner_groups(scene: &Scene<'_>, then: Statement) -> Vec<Rule> {
    let listed = Match::GidIn(set::OWNER_GROUPS);
    match &scene.capture.owner_groups {
        OwnerGroups::AllExcept(groups) if groups.is_empty() => vec![rule([], [then])],
        OwnerGroups::AllExcept(_) => vec![direct([listed], Reason::OwnerGroup), rule([], [then])],
        OwnerGroups::Only(groups) if groups.is_empty() => vec![direct([], Reason::OwnerGroup)],
        OwnerGroups::Only(_) => vec![rule([listed], [then]), direct([], Reason::OwnerGroup)],
    }
}

/// The lists of addresses and ports.
fn destinations(scene: &Scene<'_>) -> Vec<Rule> {
    let capture = scene.capture;
    let mut rules = Vec::new();
    if capture.dns_capture {
        rules.push(redirect([dns(Protocol::Tcp)], Reason::Dns, DNS_PORT));
    }
    let localhost = Match::Address(Side::Destination, Is::So, scene.localhost);
    rules.push(direct([localhost], Reason::Localhost));
    if scene.has_excluded_ranges {
        rules.push(direct([Match::DestinationIn(set::EXCLUDED_RANGES)], Reason::ExcludedRange));
    }
    if !capture.included_outbound_ports.is_empty() {
        let listed = Match::PortIn(Protocol::Tcp, Is::So, set::INCLUDED_OUTBOUND_PORTS);
        rules.push(redirect([listed], Reason::IncludedPort, OUTBOUND_PORT));
    }
    match &capture.outbound {
        OutboundRanges::All => rules.push(redirect([], Reason::AllOutbound, OUTBOUND_PORT)),
        OutboundRanges::Only(_) => {
            if scene.has_included_ranges {
                let listed = Match::DestinationIn(set::INCLUDED_RANGES);
                rules.push(redirect([listed], Reason::IncludedRange, OUTBOUND_PORT));
            }
            rules.push(direct([], Reason::NotIncluded));
        }
    }
    rules
}

/// DNS by UDP: the rules of TCP as far as they are about who asks.
fn udp_dns(scene: &Scene<'_>) -> Vec<Rule> {
    let mut rules = before_identity(scene, Protocol::Udp);
    rules.push(direct([Match::Uid(scene.capture.proxy_uid)], Reason::Proxy));
    rules.push(direct([Match::Gid(scene.capture.proxy_gid)], Reason::ProxyGroup));
    let to_proxy = Statement::Redirect(DNS_PORT);
    let captured = owner_groups(scene, to_proxy);
    rules.extend(captured.into_iter().map(|mut rule| {
        if rule.statements == [to_proxy] {
            rule.statements = vec![Statement::Count(Reason::Dns), to_proxy];
            // A redirect to a port must know what has ports.
            rule.matches.push(Match::Protocol(Protocol::Udp));
        }
        rule
    }));
    rules
}

/// Zones, before conntrack looks. Whoever is in one already, on the way through `lo`, stays there.
fn zones(scene: &Scene<'_>) -> [Chain; 2] {
    let [own, others] = ZONES;
    let zone = |matches: Vec<Match>, zone| Rule {
        matches,
        statements: vec![Statement::Zone(zone), Statement::Accept],
    };
    let from_proxy = Match::Port(Protocol::Udp, Side::Source, Is::So, DNS_PORT);
    let mut leaving = Vec::new();
    for identity in [Match::Uid(scene.capture.proxy_uid), Match::Gid(scene.capture.proxy_gid)] {
        leaving.push(zone(vec![dns(Protocol::Udp), identity.clone()], own));
        leaving.push(zone(vec![from_proxy.clone(), identity], others));
    }
    leaving.push(zone(vec![dns(Protocol::Udp)], others));
    let answers = Match::Port(Protocol::Udp, Side::Source, Is::So, DNS);
    [
        base("raw-output", Kind::Filter, Hook::Output, -300, leaving),
        base("raw-prerouting", Kind::Filter, Hook::Prerouting, -300, vec![zone(vec![answers], own)]),
    ]
}
