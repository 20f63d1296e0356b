//! What the rules compared that are of ambient mode alone, or of that and TPROXY.

use std::net::IpAddr;

use veer_common::rule::Rule;
use veer_common::verdict::Inbound;

use super::compared::loopback_or_own;

/// Of what is dialled.
pub(super) fn outbound(rule: Rule, matched: bool, to: IpAddr) -> String {
    match (rule, matched) {
        (Rule::ProxyMark, true) => "the socket has the mark of ztunnel's, 0x539".to_owned(),
        (Rule::ProxyMark, false) => "the socket has not the mark of ztunnel's, 0x539".to_owned(),
        (Rule::OverLoopback, true) => format!("{to} is {}", loopback_or_own(to)),
        (Rule::OverLoopback, false) => format!("{to} is neither loopback nor the pod's own"),
        _ => rule.sentence().to_owned(),
    }
}

/// Of what arrives.
pub(super) fn inbound(rule: Rule, matched: bool, connection: &Inbound) -> String {
    let from = IpAddr::from(connection.remote);
    match (rule, matched) {
        (Rule::HandedOn, true) => format!("ztunnel has dialled it as {from}, which is its client"),
        (Rule::HandedOn, false) => "ztunnel has not dialled it".to_owned(),
        (Rule::FromNode, true) => format!("{from} is an address of the node's"),
        (Rule::FromNode, false) => format!("{from} is no address of the node's"),
        _ => rule.sentence().to_owned(),
    }
}

/// The same of what the sidecar of a TPROXY pod dials.
pub(super) fn tproxy_mark(matched: bool) -> String {
    let has = if matched { "has" } else { "has not" };
    format!("the socket {has} the mark by which a TPROXY proxy hands on to its app, 0x539")
}

/// And of what it has dialled.
pub(super) fn tproxy_handed_on(matched: bool, connection: &Inbound) -> String {
    if matched {
        format!("the proxy has dialled it as {}, which is its client", IpAddr::from(connection.remote))
    } else {
        "the proxy has not dialled it".to_owned()
    }
}
