//! What each rule compared, and how it came out, in words.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use veer_common::address::Address;
use veer_common::interface::kind;
use veer_common::maps::{PodPolicy, PortList, RangeList, flag};
use veer_common::rule::Rule;
use veer_common::verdict::{Inbound, Outbound};

use super::lists::Lists;
use super::{Connection, ambient, interfaces};

/// The port of resolvers.
const DNS: u16 = 53;

/// What a rule looks at.
pub(super) struct Facts<'a> {
    pub(super) policy: &'a PodPolicy,
    pub(super) lists: Lists<'a>,
    pub(super) connection: &'a Connection,
}

impl Facts<'_> {
    pub(super) const fn has(&self, bit: u32) -> bool {
        self.policy.flags & bit != 0
    }

    pub(super) const fn port(&self) -> u16 {
        match self.connection {
            Connection::Outbound(outbound) | Connection::Datagram(outbound) => outbound.port.get(),
            Connection::Inbound(inbound) => inbound.port.get(),
        }
    }

    fn captures_inbound(&self) -> bool {
        let all = self.has(flag::INBOUND_ALL);
        let list = if all { PortList::ExcludedInbound } else { PortList::IncludedInbound };
        self.lists.has_port(list, self.port()) != all
    }
}

/// What a rule compared, as a statement that is true of the connection.
pub(super) fn compared(rule: Rule, matched: bool, facts: &Facts<'_>) -> String {
    match facts.connection {
        Connection::Outbound(outbound) | Connection::Datagram(outbound) => {
            of_outbound(rule, matched, facts, outbound)
        }
        Connection::Inbound(inbound) => of_inbound(rule, matched, facts, inbound),
    }
}

fn of_outbound(rule: Rule, matched: bool, facts: &Facts<'_>, connection: &Outbound) -> String {
    let destination = connection.effective_destination();
    let to = IpAddr::from(destination);
    let v4 = destination.is_v4();
    match rule {
        Rule::NotDns | Rule::Dns => dns(facts, &destination),
        Rule::ExcludedInterface => interfaces::outbound(facts, connection, to),
        Rule::ExcludedPort => in_ports(facts, PortList::ExcludedOutbound, "excludes no outbound port"),
        Rule::IncludedPort => in_ports(facts, PortList::IncludedOutbound, "includes no outbound port"),
        Rule::PassthroughSource => source(connection, matched),
        Rule::ProxyToOwnAddress | Rule::ProxyWithinPod => proxy_within_pod(facts, connection, matched),
        Rule::ProxyGroupToOwnAddress | Rule::ProxyGroupWithinPod => {
            if connection.is_proxy_by_gid(facts.policy) && !matched {
                not_own_service(facts, connection)
            } else {
                gid(facts, connection)
            }
        }
        Rule::AppToOwnAddress => app_within_pod(facts, to, matched),
        Rule::Proxy => uid(facts, connection),
        Rule::ProxyGroup => gid(facts, connection),
        Rule::ProxyMark if facts.has(flag::TPROXY) => ambient::tproxy_mark(matched),
        Rule::ProxyMark | Rule::OverLoopback => ambient::outbound(rule, matched, to),
        Rule::OwnerGroup => owner_group(facts, connection, matched),
        Rule::BeforeProxy => before_proxy(facts, matched),
        Rule::Localhost => format!("{to} is {}{}", not(matched), localhost(facts)),
        Rule::NoAddressOfFamily => family(facts, &destination, matched),
        Rule::Ipv6NotCaptured => ipv6(facts, &destination),
        Rule::ExcludedRange => {
            let list = if v4 { RangeList::ExcludedV4 } else { RangeList::ExcludedV6 };
            in_ranges(facts, list, &destination, "excludes no range of this family")
        }
        Rule::AllOutbound => {
            if matched {
                "the pod includes *, all addresses".to_owned()
            } else {
                let included =
                    [RangeList::IncludedV4, RangeList::IncludedV6].map(|list| facts.lists.ranges(list));
                let included: Vec<String> = included.into_iter().flatten().collect();
                let ranges = if included.is_empty() { "nothing".to_owned() } else { included.join(", ") };
                format!("the pod does not include *, but {ranges}")
            }
        }
        Rule::IncludedRange => {
            let list = if v4 { RangeList::IncludedV4 } else { RangeList::IncludedV6 };
            in_ranges(facts, list, &destination, "includes no range of this family")
        }
        Rule::NotIncluded => format!("neither {to} nor port {} is included", facts.port()),
        Rule::WithinPod
        | Rule::HandedOn
        | Rule::FromNode
        | Rule::ReroutedInterface
        | Rule::ReroutedNotIncluded
        | Rule::ExcludedInterfaceInbound
        | Rule::Ipv6NotCapturedInbound
        | Rule::TunnelPort
        | Rule::ExcludedInboundPort
        | Rule::AllInbound
        | Rule::IncludedInboundPort
        | Rule::NotIncludedInbound => rule.sentence().to_owned(),
    }
}

fn of_inbound(rule: Rule, matched: bool, facts: &Facts<'_>, connection: &Inbound) -> String {
    let port = facts.port();
    let tunnel = facts.policy.tunnel_port.get();
    match rule {
        Rule::WithinPod => within_pod(facts, connection),
        Rule::HandedOn if facts.has(flag::TPROXY) => ambient::tproxy_handed_on(matched, connection),
        Rule::HandedOn | Rule::FromNode => ambient::inbound(rule, matched, connection),
        Rule::Ipv6NotCapturedInbound => ipv6(facts, &connection.local),
        Rule::ReroutedInterface | Rule::ReroutedNotIncluded => interfaces::rerouted(facts, connection),
        Rule::ExcludedInterfaceInbound => interfaces::inbound(facts, connection, kind::EXCLUDED),
        Rule::TunnelPort if matched => format!("{port} is the tunnel port"),
        Rule::TunnelPort if port == tunnel => {
            format!("{port} is the tunnel port, which TPROXY captures, too")
        }
        Rule::TunnelPort => format!("{port} is not the tunnel port {tunnel}"),
        Rule::ExcludedInboundPort if !facts.has(flag::INBOUND_ALL) => {
            "the pod includes ports, so an exclude list means nothing".to_owned()
        }
        Rule::ExcludedInboundPort => in_ports(facts, PortList::ExcludedInbound, "excludes no inbound port"),
        Rule::AllInbound if matched => "the pod includes *, all ports".to_owned(),
        Rule::AllInbound => {
            let ports = facts.lists.ports(PortList::IncludedInbound);
            format!("the pod does not include *, but {}", ports.as_deref().unwrap_or("nothing"))
        }
        Rule::IncludedInboundPort => in_ports(facts, PortList::IncludedInbound, "includes no inbound port"),
        Rule::NotIncludedInbound => format!("port {port} is not included"),
        Rule::NotDns
        | Rule::ExcludedInterface
        | Rule::ExcludedPort
        | Rule::PassthroughSource
        | Rule::ProxyToOwnAddress
        | Rule::ProxyWithinPod
        | Rule::AppToOwnAddress
        | Rule::ProxyGroupToOwnAddress
        | Rule::ProxyGroupWithinPod
        | Rule::Proxy
        | Rule::ProxyGroup
        | Rule::ProxyMark
        | Rule::OwnerGroup
        | Rule::BeforeProxy
        | Rule::Dns
        | Rule::Localhost
        | Rule::OverLoopback
        | Rule::NoAddressOfFamily
        | Rule::Ipv6NotCaptured
        | Rule::ExcludedRange
        | Rule::IncludedPort
        | Rule::AllOutbound
        | Rule::IncludedRange
        | Rule::NotIncluded => rule.sentence().to_owned(),
    }
}

const fn not(matched: bool) -> &'static str {
    if matched { "" } else { "not " }
}

fn in_ports(facts: &Facts<'_>, list: PortList, none: &str) -> String {
    let port = facts.port();
    match facts.lists.ports(list) {
        None => format!("the pod {none}"),
        Some(ports) if facts.lists.has_port(list, port) => format!("port {port} is one of {ports}"),
        Some(ports) => format!("port {port} is none of {ports}"),
    }
}

pub(super) fn in_ranges(facts: &Facts<'_>, list: RangeList, address: &Address, none: &str) -> String {
    let to = IpAddr::from(*address);
    match (facts.lists.range_of(list, address), facts.lists.ranges(list)) {
        (Some(range), _) => format!("{to} is in {range}"),
        (None, Some(ranges)) => format!("{to} is in none of {ranges}"),
        (None, None) => format!("the pod {none}"),
    }
}

/// Whether it is DNS that is captured, or what is missing for that.
fn dns(facts: &Facts<'_>, destination: &Address) -> String {
    let port = facts.port();
    let to = IpAddr::from(*destination);
    if port != DNS {
        format!("port {port} is not {DNS}")
    } else if !facts.has(flag::DNS_CAPTURE) {
        format!("port {port} is DNS, which the pod does not capture")
    } else if !destination.is_v4() && !facts.has(flag::CAPTURES_V6) {
        format!("port {port} is DNS, but {to} is IPv6, which is not captured in this pod")
    } else if facts.has(flag::AMBIENT) && to.to_canonical().is_loopback() {
        format!("port {port} is DNS, and {to} is loopback")
    } else {
        format!("port {port} is DNS, which the pod captures")
    }
}

fn source(connection: &Outbound, matched: bool) -> String {
    let source = IpAddr::from(connection.source);
    if connection.source.is_unspecified() {
        "the socket is bound to no address".to_owned()
    } else if matched {
        format!("the socket is bound to {source}")
    } else {
        format!("the socket is bound to {source}, not to 127.0.0.6 or ::6")
    }
}

fn uid(facts: &Facts<'_>, connection: &Outbound) -> String {
    id("uid", connection.uid, facts.policy.proxy_uid, facts, connection)
}

fn gid(facts: &Facts<'_>, connection: &Outbound) -> String {
    id("gid", connection.gid, facts.policy.proxy_gid, facts, connection)
}

fn id(what: &str, id: u32, proxy: u32, facts: &Facts<'_>, connection: &Outbound) -> String {
    let container = match (id == proxy, connection.is_impostor) {
        (true, true) => ", but the socket was created in another container",
        (true, false) if facts.has(flag::BY_CONTAINER) => ", and so is its container",
        _ => "",
    };
    format!("{what} {id} is {}the proxy's{}{container}", not(id == proxy), other(id, proxy))
}

/// The proxy's id where it is another one.
fn other(id: u32, proxy: u32) -> String {
    if id == proxy { String::new() } else { format!(", {proxy}") }
}

fn proxy_within_pod(facts: &Facts<'_>, connection: &Outbound, matched: bool) -> String {
    let by_uid = connection.is_proxy_by_uid(facts.policy);
    let by_gid = facts.has(flag::TPROXY) && connection.is_proxy_by_gid(facts.policy);
    if by_gid && !by_uid && !facts.captures_inbound() {
        let port = facts.port();
        format!(
            "{}; {}, but inbound port {port} is not captured",
            uid(facts, connection),
            gid(facts, connection)
        )
    } else if (by_uid || by_gid) && !matched {
        not_own_service(facts, connection)
    } else if !by_uid && facts.has(flag::TPROXY) {
        format!("{}; {}", uid(facts, connection), gid(facts, connection))
    } else {
        uid(facts, connection)
    }
}

/// Why what the proxy dials is no service of its pod.
fn not_own_service(facts: &Facts<'_>, connection: &Outbound) -> String {
    let destination = connection.effective_destination();
    if facts.port() == DNS && facts.has(flag::DNS_CAPTURE) {
        format!("port {DNS} is DNS, which the proxy asks by itself")
    } else if facts.port() == facts.policy.tunnel_port.get() {
        format!("port {} is the tunnel port, the proxy's own", facts.port())
    } else if destination.is_v4() || facts.has(flag::CAPTURES_V6) {
        format!("{} is {}, where no service is", IpAddr::from(destination), localhost(facts))
    } else {
        "IPv6 is not captured in this pod".to_owned()
    }
}

/// What counts as localhost.
fn localhost(facts: &Facts<'_>) -> String {
    let word = |word: u32| Ipv4Addr::from(word.to_ne_bytes());
    let network = Ipv4Net::with_netmask(word(facts.policy.localhost), word(facts.policy.localhost_mask));
    match network {
        Ok(network) if network.prefix_len() < 32 => format!("in {network} or ::1"),
        Ok(_) | Err(_) => format!("{} or ::1", word(facts.policy.localhost)),
    }
}

fn owner_group(facts: &Facts<'_>, connection: &Outbound, matched: bool) -> String {
    let gid = connection.gid;
    let groups = facts.lists.groups();
    match (facts.has(flag::EXCLUDES_GROUPS), facts.has(flag::INCLUDES_GROUPS), matched) {
        (true, _, true) => format!("gid {gid} is one of the groups that are left alone: {groups}"),
        (true, _, false) => format!("gid {gid} is none of the groups that are left alone: {groups}"),
        (false, true, true) => format!("gid {gid} is none of the groups that are captured: {groups}"),
        (false, true, false) => format!("gid {gid} is one of the groups that are captured: {groups}"),
        (false, false, _) => "the node captures all groups".to_owned(),
    }
}

fn before_proxy(facts: &Facts<'_>, matched: bool) -> String {
    let (outbound, inbound) = (facts.policy.outbound_port.get(), facts.policy.inbound_port.get());
    if matched {
        format!("nobody has listened on {outbound} or {inbound} yet")
    } else if facts.has(flag::DIRECT_BEFORE_PROXY) {
        format!("somebody listens on {outbound} or {inbound}, or has before")
    } else {
        "the node refuses what comes before the proxy".to_owned()
    }
}

fn app_within_pod(facts: &Facts<'_>, to: IpAddr, matched: bool) -> String {
    if !matched && !facts.has(flag::INCLUDES_LOOPBACK) {
        return format!("port {DNS} is DNS, which the pod captures on loopback, too");
    }
    if !matched {
        let ranges = facts.lists.loopback_ranges();
        return format!("the pod includes loopback: {}", ranges.as_deref().unwrap_or("by a range"));
    }
    format!("{to} is {}, and no included range begins in loopback", loopback_or_own(to))
}

pub(super) fn loopback_or_own(address: IpAddr) -> &'static str {
    if address.to_canonical().is_loopback() { "loopback" } else { "the pod's own" }
}

fn family(facts: &Facts<'_>, destination: &Address, matched: bool) -> String {
    let (family, source) =
        if destination.is_v4() { ("IPv4", facts.policy.source_v4) } else { ("IPv6", facts.policy.source_v6) };
    if matched {
        format!("the pod has no {family} address")
    } else if source.is_unspecified() {
        format!("{} is loopback", IpAddr::from(*destination))
    } else {
        format!("the pod has the {family} address {}", IpAddr::from(source))
    }
}

fn ipv6(facts: &Facts<'_>, address: &Address) -> String {
    let ip = IpAddr::from(*address);
    if address.is_v4() {
        format!("{ip} is IPv4")
    } else if facts.has(flag::CAPTURES_V6) {
        "IPv6 is captured in this pod".to_owned()
    } else {
        format!("{ip} is IPv6, which is not captured in this pod")
    }
}

fn within_pod(facts: &Facts<'_>, connection: &Inbound) -> String {
    let (remote, local) = (IpAddr::from(connection.remote), IpAddr::from(connection.local));
    if connection.local.is_loopback() {
        format!("{local} is loopback")
    } else if connection.remote.is_loopback() {
        format!("{remote} is loopback")
    } else if connection.remote.is_passthrough() {
        format!("{remote} is where the proxy hands on to its app from")
    } else if facts.lists.own(&connection.remote) {
        format!("{remote} is an address of the pod's netns")
    } else {
        format!("neither {remote} nor {local} is loopback, and {remote} is no address of the pod's netns")
    }
}
