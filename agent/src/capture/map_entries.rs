//! What the maps hold of a pod.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use veer_common::address::{Address, Port};
use veer_common::maps::{
    NetnsCookie, OwnAddressKey, PodPolicy, PortList, PortListKey, PortSet, RangeList, RangeMatch, flag,
};

use super::addresses::OwnAddresses;
use super::interfaces::InterfaceEntries;
use crate::model::{
    self, BeforeProxy, Capture, Driver, InboundPorts, InterceptionMode, OutboundRanges, OwnerGroups,
    Presence, ProxyIdentity,
};

/// Where outbound connections go.
const OUTBOUND_PORT: u16 = 15001;
/// Where inbound connections go.
const INBOUND_PORT: u16 = 15006;
/// The proxy's own tunnel (HBONE).
const TUNNEL_PORT: u16 = 15008;
/// Where captured DNS goes.
const DNS_PORT: u16 = 15053;

/// Everything that the maps hold of a pod. The lists are sorted and without duplicates, so that two
/// pods' entries, or a pod's before and after, can be compared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapEntries {
    /// Value in `PODS`.
    pub policy: PodPolicy,
    /// Entries in `PORTS`: the lists that are not empty.
    pub ports: Vec<(PortListKey, Box<PortSet>)>,
    /// Keys in `RANGES`: how many bits of the entry must match, and the entry.
    pub ranges: Vec<(u32, RangeMatch)>,
    /// Keys in `OWN_ADDRESSES`.
    pub own_addresses: Vec<OwnAddressKey>,
    /// Entries of the interfaces that the annotations name.
    pub interfaces: InterfaceEntries,
}

/// The map entries of a pod. The proxy's uid and gid are taken as they stand: where
/// [`Capture::ids`] is the pod's own, they must have been translated. Of interfaces it has the names:
/// [`InterfaceEntries::in_netns`] finds them.
pub fn map_entries(cookie: NetnsCookie, capture: &Capture, own: &OwnAddresses) -> MapEntries {
    MapEntries {
        policy: policy(capture, own),
        ports: port_lists(cookie, capture),
        ranges: range_keys(cookie, capture),
        own_addresses: own_address_keys(cookie, own),
        interfaces: InterfaceEntries::named(cookie, capture),
    }
}

fn policy(capture: &Capture, own: &OwnAddresses) -> PodPolicy {
    PodPolicy {
        flags: flags(capture, own),
        proxy_uid: capture.proxy_uid,
        proxy_gid: capture.proxy_gid,
        outbound_port: Port::new(OUTBOUND_PORT),
        inbound_port: Port::new(INBOUND_PORT),
        tunnel_port: Port::new(TUNNEL_PORT),
        dns_port: Port::new(DNS_PORT),
        _reserved: [0; 4],
        localhost: word(capture.loopback.network()),
        localhost_mask: word(capture.loopback.netmask()),
        source_v4: own.source_v4.map_or(Address::UNSPECIFIED, Address::from),
        source_v6: own.source_v6.map_or(Address::UNSPECIFIED, Address::from),
    }
}

fn flags(capture: &Capture, own: &OwnAddresses) -> u32 {
    let inbound_all = matches!(capture.inbound, InboundPorts::All { .. });
    let has_v6 = own.source_v6.is_some();
    // istio-init's rule: IPv6 is left alone in a pod that has IPv4 and a proxy that is not told to
    // serve both. Such a proxy has no IPv6 listener, so capturing would refuse what worked.
    // A pod that leaves keeps ::6, which open connections of its proxy come from: nothing takes it away with the rest.
    let is_leaving = capture.presence == Presence::Leaving;
    let captures_v6 = has_v6 && !is_leaving && (capture.dual_stack || own.is_ipv6_only());
    let excludes_groups =
        matches!(&capture.owner_groups, OwnerGroups::AllExcept(groups) if !groups.is_empty());
    let conditions = [
        (flag::INBOUND_ALL, inbound_all),
        (flag::OUTBOUND_ALL, capture.outbound == OutboundRanges::All),
        (flag::EXCLUDES_OUTBOUND_PORTS, !capture.excluded_outbound_ports.is_empty()),
        (flag::INCLUDES_OUTBOUND_PORTS, !capture.included_outbound_ports.is_empty()),
        (flag::EXCLUDES_RANGES, !capture.excluded_ranges.is_empty()),
        (flag::INCLUDES_LOOPBACK, capture.outbound.begin_in_loopback()),
        (flag::EXCLUDES_GROUPS, excludes_groups),
        (flag::INCLUDES_GROUPS, matches!(capture.owner_groups, OwnerGroups::Only(_))),
        (flag::TPROXY, capture.mode == InterceptionMode::Tproxy),
        (flag::HAS_V4, own.source_v4.is_some()),
        (flag::HAS_V6, has_v6),
        (flag::CAPTURES_V6, captures_v6),
        (flag::DUAL_STACK, capture.dual_stack),
        (flag::DNS_CAPTURE, capture.dns_capture),
        (flag::BY_CONTAINER, capture.proxy_identity == ProxyIdentity::Container),
        (flag::DIRECT_BEFORE_PROXY, capture.before_proxy == BeforeProxy::Direct),
        // While it sleeps, too: what ztunnel has accepted before it hands to the app all the same.
        (flag::AMBIENT, capture.driver == Driver::Ztunnel),
        (flag::EXCLUDES_INTERFACES, !capture.excluded_interfaces.is_empty()),
        (flag::REROUTES_INTERFACES, !capture.rerouted_interfaces.is_empty()),
        (flag::ASLEEP, capture.presence != Presence::Full),
    ];
    with_flags(0, &conditions)
}

fn with_flags(flags: u32, conditions: &[(u32, bool)]) -> u32 {
    conditions.iter().fold(flags, |flags, (bit, holds)| if *holds { flags | bit } else { flags & !bit })
}

/// The policy of an enrolled pod whose addresses have changed.
///
/// Whether IPv6 is captured is decided once, as istio-init does it once: a pod that loses its IPv4 must not
/// find its IPv6 sent to a proxy that does not serve it. It is decided later for a pod that had no address
/// to decide by, and for one that was to have both.
pub fn policy_of_addresses(before: &PodPolicy, own: &OwnAddresses) -> PodPolicy {
    let had = |bit| before.flags & bit != 0;
    let has_v6 = own.source_v6.is_some();
    let undecided = !had(flag::HAS_V4) && !had(flag::HAS_V6);
    let decided_now = has_v6 && (had(flag::DUAL_STACK) || undecided && own.is_ipv6_only());
    let conditions = [
        (flag::HAS_V4, own.source_v4.is_some()),
        (flag::HAS_V6, has_v6),
        (flag::CAPTURES_V6, had(flag::CAPTURES_V6) || decided_now),
    ];
    PodPolicy {
        flags: with_flags(before.flags, &conditions),
        source_v4: own.source_v4.map_or(Address::UNSPECIFIED, Address::from),
        source_v6: own.source_v6.map_or(Address::UNSPECIFIED, Address::from),
        ..*before
    }
}

/// An IPv4 address as the last word of an [`Address`].
fn word(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

fn port_lists(cookie: NetnsCookie, capture: &Capture) -> Vec<(PortListKey, Box<PortSet>)> {
    let (inbound_list, inbound) = match &capture.inbound {
        InboundPorts::All { excluded } => (PortList::ExcludedInbound, excluded),
        InboundPorts::Only(included) => (PortList::IncludedInbound, included),
    };
    let lists = [
        (PortList::ExcludedOutbound, &capture.excluded_outbound_ports),
        (PortList::IncludedOutbound, &capture.included_outbound_ports),
        (inbound_list, inbound),
    ];
    let not_empty = lists.into_iter().filter(|(_, ports)| !ports.is_empty());
    let entry = |(list, ports): (PortList, &BTreeSet<model::Port>)| {
        let set: PortSet = ports.iter().copied().map(Port::from).collect();
        (PortListKey::new(cookie, list), Box::new(set))
    };
    not_empty.map(entry).collect()
}

fn range_keys(cookie: NetnsCookie, capture: &Capture) -> Vec<(u32, RangeMatch)> {
    let none = BTreeSet::new();
    let included = match &capture.outbound {
        OutboundRanges::All => &none,
        OutboundRanges::Only(ranges) => ranges,
    };
    let mut keys = Vec::new();
    for (ranges, v4_list, v6_list) in [
        (included, RangeList::IncludedV4, RangeList::IncludedV6),
        (&capture.excluded_ranges, RangeList::ExcludedV4, RangeList::ExcludedV6),
    ] {
        // Without their host bits, two ranges may turn out to be one.
        let networks: BTreeSet<IpNet> = ranges.iter().map(IpNet::trunc).collect();
        keys.extend(networks.into_iter().map(|network| {
            let list = if matches!(network, IpNet::V4(_)) { v4_list } else { v6_list };
            let bits = RangeMatch::FIXED_BITS + u32::from(network.prefix_len());
            (bits, RangeMatch::of_address(cookie, list, &Address::from(network.network())))
        }));
    }
    let (OwnerGroups::AllExcept(groups) | OwnerGroups::Only(groups)) = &capture.owner_groups;
    keys.extend(groups.iter().map(|gid| (RangeMatch::ALL_BITS, RangeMatch::of_group(cookie, *gid))));
    keys
}

/// Keys in `OWN_ADDRESSES`.
pub fn own_address_keys(cookie: NetnsCookie, own: &OwnAddresses) -> Vec<OwnAddressKey> {
    // The verdict knows loopback by itself.
    let addresses: BTreeSet<IpAddr> =
        own.addresses.iter().map(IpAddr::to_canonical).filter(|address| !address.is_loopback()).collect();
    addresses.into_iter().map(|address| OwnAddressKey { cookie, address: address.into() }).collect()
}

#[cfg(test)]
mod tests;
