//! What gives a pod each rule: a setting, an address of its netns, or nothing that could be set.

use std::net::IpAddr;

use veer_common::maps::flag;
use veer_common::rule::Rule;

use super::Connection;
use super::compared::Facts;
use crate::model::Setting;
use crate::model::decision::PROXY_OWN_PORTS;

/// What gave a pod a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ground {
    /// What somebody set on the pod or the node, or left at its default.
    Setting(Setting),
    /// An address that the pod's netns has.
    OwnAddress(IpAddr),
    /// It holds for all pods.
    Always(&'static str),
    /// The pod's netns lacks something.
    Netns(&'static str),
}

/// What gave the rule that matched.
pub(super) fn grounds(rule: Rule, facts: &Facts<'_>) -> Vec<Ground> {
    let set = |setting| vec![Ground::Setting(setting)];
    match rule {
        Rule::NotDns if facts.port() != 53 => vec![Ground::Always("of UDP, DNS alone can be captured")],
        Rule::NotDns | Rule::Dns => set(Setting::DnsCapture),
        Rule::ExcludedInterface | Rule::ExcludedInterfaceInbound => set(Setting::ExcludedInterfaces),
        Rule::ReroutedInterface | Rule::ReroutedNotIncluded => {
            vec![Ground::Setting(Setting::ReroutedInterfaces), Ground::Setting(Setting::IncludedRanges)]
        }
        Rule::ExcludedPort => set(Setting::ExcludedOutboundPorts),
        Rule::IncludedPort => set(Setting::IncludedOutboundPorts),
        Rule::PassthroughSource => vec![Ground::Always("127.0.0.6 and ::6 are the proxy's towards its app")],
        Rule::ProxyToOwnAddress | Rule::ProxyWithinPod => {
            let mut grounds = proxys(facts);
            grounds.extend(stays(facts));
            grounds
        }
        Rule::ProxyGroupToOwnAddress | Rule::ProxyGroupWithinPod => {
            let mut grounds = by_id(Setting::ProxyGid, facts);
            grounds.push(Ground::Setting(Setting::IncludedRanges));
            grounds.extend(stays(facts));
            grounds
        }
        Rule::AppToOwnAddress => {
            let mut grounds = stays(facts);
            grounds.push(Ground::Setting(Setting::IncludedRanges));
            grounds.extend(by_inbound_ports(facts));
            grounds
        }
        Rule::Proxy => by_id(Setting::ProxyUid, facts),
        Rule::ProxyGroup => by_id(Setting::ProxyGid, facts),
        Rule::ProxyMark | Rule::HandedOn if facts.has(flag::TPROXY) => set(Setting::Mode),
        Rule::ProxyMark => vec![Ground::Always("all of ztunnel's sockets have its mark")],
        Rule::HandedOn => vec![Ground::Always("what ztunnel hands to the app is not for ztunnel again")],
        Rule::FromNode => vec![Ground::Always("the kubelet's probes reach the app without ztunnel")],
        Rule::OwnerGroup => set(Setting::OwnerGroups),
        Rule::BeforeProxy => set(Setting::BeforeProxy),
        Rule::Localhost => {
            vec![Ground::Always("localhost is never captured"), Ground::Setting(Setting::Loopback)]
        }
        Rule::NoAddressOfFamily => vec![Ground::Netns("the pod's netns has no address of this family")],
        Rule::Ipv6NotCaptured | Rule::Ipv6NotCapturedInbound => ipv6(facts),
        Rule::ExcludedRange => set(Setting::ExcludedRanges),
        Rule::AllOutbound | Rule::IncludedRange => set(Setting::IncludedRanges),
        Rule::NotIncluded => {
            vec![Ground::Setting(Setting::IncludedRanges), Ground::Setting(Setting::IncludedOutboundPorts)]
        }
        Rule::WithinPod | Rule::OverLoopback => stays(facts),
        Rule::TunnelPort => tunnel(facts),
        Rule::ExcludedInboundPort if PROXY_OWN_PORTS.contains(&facts.port()) => {
            vec![Ground::Always("15020, 15021 and 15090 are the proxy's own")]
        }
        Rule::ExcludedInboundPort => set(Setting::ExcludedInboundPorts),
        Rule::AllInbound | Rule::IncludedInboundPort | Rule::NotIncludedInbound => {
            set(Setting::IncludedInboundPorts)
        }
    }
}

/// Why the tunnel port is left alone: with TPROXY it is not.
fn tunnel(facts: &Facts<'_>) -> Vec<Ground> {
    let mut grounds = vec![Ground::Always("the tunnel port is the proxy's own")];
    grounds.extend((!facts.has(flag::AMBIENT)).then_some(Ground::Setting(Setting::Mode)));
    grounds
}

/// Why IPv6 is not captured.
fn ipv6(facts: &Facts<'_>) -> Vec<Ground> {
    let why = if facts.has(flag::HAS_V6) {
        "the pod's netns has IPv4, too"
    } else {
        "the pod's netns has no IPv6 address that it could be sent from"
    };
    vec![Ground::Setting(Setting::DualStack), Ground::Netns(why)]
}

/// An id that is the proxy's, and what else makes the proxy where that is not enough.
fn by_id(setting: Setting, facts: &Facts<'_>) -> Vec<Ground> {
    let mut grounds = vec![Ground::Setting(setting)];
    if facts.has(flag::BY_CONTAINER) {
        grounds.push(Ground::Setting(Setting::ProxyIdentity));
    }
    grounds
}

/// By what the dialler is the proxy within its pod.
fn proxys(facts: &Facts<'_>) -> Vec<Ground> {
    let by_uid = match facts.connection {
        Connection::Outbound(outbound) | Connection::Datagram(outbound) => {
            outbound.uid == facts.policy.proxy_uid
        }
        Connection::Inbound(_) => true,
    };
    if by_uid {
        by_id(Setting::ProxyUid, facts)
    } else {
        let mut grounds = by_id(Setting::ProxyGid, facts);
        grounds.push(Ground::Setting(Setting::Mode));
        grounds
    }
}

/// What kept the gid of a TPROXY pod's proxy from being the proxy's.
fn by_inbound_ports(facts: &Facts<'_>) -> Vec<Ground> {
    let is_by_gid = match facts.connection {
        Connection::Outbound(outbound) | Connection::Datagram(outbound) => {
            outbound.is_proxy_by_gid(facts.policy)
        }
        Connection::Inbound(_) => false,
    };
    if !is_by_gid || !facts.has(flag::TPROXY) {
        return vec![];
    }
    let all = facts.has(flag::INBOUND_ALL);
    let list = if all { Setting::ExcludedInboundPorts } else { Setting::IncludedInboundPorts };
    vec![Ground::Setting(Setting::Mode), Ground::Setting(list)]
}

/// Why the connection does not leave the pod.
fn stays(facts: &Facts<'_>) -> Vec<Ground> {
    let address = match facts.connection {
        Connection::Outbound(outbound) | Connection::Datagram(outbound) => outbound.effective_destination(),
        Connection::Inbound(inbound) if inbound.local.is_loopback() => inbound.local,
        Connection::Inbound(inbound) => inbound.remote,
    };
    if address.is_loopback() {
        vec![Ground::Always("loopback does not leave the pod")]
    } else if facts.lists.own(&address) {
        vec![Ground::OwnAddress(IpAddr::from(address))]
    } else {
        vec![Ground::Always("127.0.0.6 and ::6 are the proxy's towards its app")]
    }
}
