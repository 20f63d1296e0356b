//! What arrives: `PREROUTING` of istio-init.

use veer_common::reason::Reason;

use super::{
    INBOUND_PORT, OUTBOUND_PORT, Scene, TCP, TUNNEL_PORT, base, chain, direct, marks, redirect, rule, set,
};
use crate::capture::nft::ruleset::{
    Chain, Hook, Is, Kind, Match, Protocol, Rule, Side, State, Statement, Way, route,
};
use crate::model::{InboundPorts, InterceptionMode, OutboundRanges};

pub(super) fn chains(scene: &Scene<'_>) -> Vec<Chain> {
    let nat = if marks(scene.capture) { vec![] } else { vec![rule([TCP], [Statement::Goto("inbound")])] };
    let rules = interfaces(scene).into_iter().chain(nat).collect();
    let mut chains = vec![base("prerouting", Kind::Nat, Hook::Prerouting, -100, rules)];
    if marks(scene.capture) {
        chains.extend(tproxy(scene));
    } else {
        chains.push(chain("inbound", redirected(scene)));
        if scene.capture.drop_invalid {
            chains.push(base("mangle-prerouting", Kind::Filter, Hook::Prerouting, -150, vec![invalid()]));
        }
    }
    chains
}

/// Interfaces of virtual machines, whose connections are outbound; then those that are left alone. An interface
/// that is both is a virtual machine's.
fn interfaces(scene: &Scene<'_>) -> Vec<Rule> {
    let mut rules = Vec::new();
    for name in &scene.capture.rerouted_interfaces {
        let by = || Match::Interface(Way::In, name.clone());
        let captured = [Statement::Count(Reason::ReroutedInterface), Statement::Redirect(OUTBOUND_PORT)];
        match &scene.capture.outbound {
            OutboundRanges::All => rules.push(rule([by(), TCP], captured)),
            OutboundRanges::Only(_) if scene.has_included_ranges => {
                rules.push(rule([by(), TCP, Match::DestinationIn(set::INCLUDED_RANGES)], captured));
            }
            OutboundRanges::Only(_) => {}
        }
        rules.push(direct([by(), TCP], Reason::ReroutedNotIncluded));
    }
    let excluded = scene.capture.excluded_interfaces.iter();
    rules.extend(excluded.map(|name| {
        direct([Match::Interface(Way::In, name.clone()), TCP], Reason::ExcludedInterfaceInbound)
    }));
    rules
}

/// The lists, for what is redirected by NAT.
fn redirected(scene: &Scene<'_>) -> Vec<Rule> {
    let tunnel = Match::Port(Protocol::Tcp, Side::Destination, Is::So, TUNNEL_PORT);
    let listed = || Match::PortIn(Protocol::Tcp, Is::So, set::INBOUND_PORTS);
    // A TPROXY pod is here if it captures nothing, and the tunnel port is a port as any other for it.
    let is_tproxy = scene.capture.mode == InterceptionMode::Tproxy;
    let mut rules = if is_tproxy { vec![] } else { vec![direct([tunnel], Reason::TunnelPort)] };
    match &scene.capture.inbound {
        InboundPorts::All { excluded } => {
            if !excluded.is_empty() {
                rules.push(direct([listed()], Reason::ExcludedInboundPort));
            }
            rules.push(redirect([], Reason::AllInbound, INBOUND_PORT));
        }
        InboundPorts::Only(included) => {
            if !included.is_empty() {
                rules.push(redirect([listed()], Reason::IncludedInboundPort, INBOUND_PORT));
            }
            rules.push(direct([], Reason::NotIncludedInbound));
        }
    }
    rules
}

fn invalid() -> Rule {
    rule([Match::State(State::Invalid)], [Statement::Drop])
}

/// Without NAT: the listener gets the packets as they are, and they are marked, so that they are delivered here
/// whatever their destination. These chains see every packet; what counts is the first of a connection.
fn tproxy(scene: &Scene<'_>) -> Vec<Chain> {
    let capture = scene.capture;
    let by_excluded = |way| {
        let names = capture.excluded_interfaces.iter();
        names.map(move |name| rule([Match::Interface(way, name.clone())], [Statement::Return]))
    };
    let mut arriving: Vec<Rule> = by_excluded(Way::In).collect();
    if capture.drop_invalid {
        arriving.push(invalid());
    }
    arriving.extend([
        // From the proxy to its app, with the client's address: the answers need the mark, too.
        rule([TCP, Match::Mark(route::MARK)], [Statement::SaveMark, Statement::Return]),
        rule([Match::Loopback(Way::In)], [Statement::Return]),
        rule([TCP], [Statement::Goto("tproxy-inbound")]),
    ]);
    let mut leaving: Vec<Rule> = by_excluded(Way::Out).collect();
    leaving.push(rule([TCP, Match::ConnectionMark(route::MARK)], [Statement::RestoreMark]));
    vec![
        base("mangle-prerouting", Kind::Filter, Hook::Prerouting, -150, arriving),
        base("mangle-output", Kind::Route, Hook::Output, -150, leaving),
        chain("tproxy-inbound", tproxy_lists(scene)),
        chain("handed-over", handed_over(scene)),
    ]
}

/// The lists, where the tunnel port is a port as any other.
fn tproxy_lists(scene: &Scene<'_>) -> Vec<Rule> {
    let listed = || Match::PortIn(Protocol::Tcp, Is::So, set::INBOUND_PORTS);
    let new = Match::State(State::New);
    match &scene.capture.inbound {
        InboundPorts::All { excluded } => {
            let mut rules = Vec::new();
            if !excluded.is_empty() {
                rules.push(direct([listed(), new], Reason::ExcludedInboundPort));
                rules.push(rule([listed()], [Statement::Return]));
            }
            rules.push(rule([], [Statement::Goto("handed-over")]));
            rules
        }
        InboundPorts::Only(_) => {
            vec![
                rule([listed()], [Statement::Goto("handed-over")]),
                direct([new], Reason::NotIncludedInbound),
            ]
        }
    }
}

fn handed_over(scene: &Scene<'_>) -> Vec<Rule> {
    let elsewhere = || Match::Address(Side::Destination, Is::Not, scene.localhost);
    let reason = match scene.capture.inbound {
        InboundPorts::All { .. } => Reason::AllInbound,
        InboundPorts::Only(_) => Reason::IncludedInboundPort,
    };
    let marked = Statement::SetMark(route::MARK);
    vec![
        rule([Match::State(State::Known)], [marked, Statement::Accept]),
        rule(
            [elsewhere(), TCP],
            [Statement::Tproxy(INBOUND_PORT), marked, Statement::Count(reason), Statement::Accept],
        ),
        rule([elsewhere()], [Statement::Count(Reason::NoListener), Statement::Drop]),
    ]
}
