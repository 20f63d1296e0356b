//! What the kernel holds of a pod, held against what its manifest says by now.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use veer_common::address::Address;
use veer_common::interface::{Name, kind};
use veer_common::maps::{NetnsCookie, PortList, PortListKey, PortSet, RangeList, flag};

use super::addresses::OwnAddresses;
use super::map_entries::{MapEntries, map_entries};
use crate::model::{Capture, IdSpace, Setting};

/// The settings that `held` does not have as `capture` says. The addresses are those in `held`, so an
/// address that came or went is no difference.
pub fn differences(cookie: NetnsCookie, held: &MapEntries, capture: &Capture) -> Vec<Setting> {
    let said = map_entries(cookie, capture, &own_addresses(held));
    let flags = |bits: u32| (held.policy.flags ^ said.policy.flags) & bits != 0;
    let ports = |list| port_list(cookie, held, list) != port_list(cookie, &said, list);
    let ranges = |list| range_list(held, list) != range_list(&said, list);
    // The kernel has the ids that the node counts; the pod's own are not to be compared with them.
    let ids = capture.ids == IdSpace::Node;
    let differs = |setting: &Setting| match setting {
        Setting::ProxyUid => ids && held.policy.proxy_uid != said.policy.proxy_uid,
        Setting::ProxyGid => ids && held.policy.proxy_gid != said.policy.proxy_gid,
        Setting::Mode => flags(flag::TPROXY),
        Setting::IncludedInboundPorts => flags(flag::INBOUND_ALL) || ports(PortList::IncludedInbound),
        // Where ports are included, or were, no exclude list means anything.
        Setting::ExcludedInboundPorts => !flags(flag::INBOUND_ALL) && ports(PortList::ExcludedInbound),
        Setting::IncludedRanges => {
            flags(flag::OUTBOUND_ALL | flag::INCLUDES_LOOPBACK)
                || ranges(RangeList::IncludedV4)
                || ranges(RangeList::IncludedV6)
        }
        Setting::ExcludedRanges => ranges(RangeList::ExcludedV4) || ranges(RangeList::ExcludedV6),
        Setting::IncludedOutboundPorts => ports(PortList::IncludedOutbound),
        Setting::ExcludedOutboundPorts => ports(PortList::ExcludedOutbound),
        Setting::DualStack => flags(flag::CAPTURES_V6),
        Setting::DnsCapture => flags(flag::DNS_CAPTURE),
        Setting::OwnerGroups => {
            ids && (flags(flag::EXCLUDES_GROUPS | flag::INCLUDES_GROUPS) || ranges(RangeList::Groups))
        }
        Setting::Loopback => {
            (held.policy.localhost, held.policy.localhost_mask)
                != (said.policy.localhost, said.policy.localhost_mask)
        }
        Setting::ProxyIdentity => flags(flag::BY_CONTAINER),
        Setting::BeforeProxy => flags(flag::DIRECT_BEFORE_PROXY),
        Setting::ExcludedInterfaces => named(held, kind::EXCLUDED) != named(&said, kind::EXCLUDED),
        Setting::ReroutedInterfaces => named(held, kind::REROUTED) != named(&said, kind::REROUTED),
        // Nothing in the maps says it; and a pod whose driver is another one moves.
        Setting::HostUsers | Setting::Driver => false,
    };
    Setting::ALL.into_iter().filter(differs).collect()
}

/// The pod's addresses as they were when the entries were made, IPv4 first as netlink has them.
fn own_addresses(held: &MapEntries) -> OwnAddresses {
    let source = |address: Address| (address != Address::UNSPECIFIED).then(|| IpAddr::from(address));
    let mut addresses: Vec<IpAddr> = held.own_addresses.iter().map(|key| IpAddr::from(key.address)).collect();
    addresses.sort_unstable();
    OwnAddresses {
        addresses,
        source_v4: source(held.policy.source_v4).and_then(v4),
        source_v6: source(held.policy.source_v6).and_then(v6),
    }
}

const fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    }
}

const fn v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(v6) => Some(v6),
        IpAddr::V4(_) => None,
    }
}

fn port_list(cookie: NetnsCookie, entries: &MapEntries, list: PortList) -> Option<&PortSet> {
    let key = PortListKey::new(cookie, list);
    entries.ports.iter().find(|(other, _)| *other == key).map(|(_, set)| set.as_ref())
}

/// The interfaces that are named for something.
fn named(entries: &MapEntries, kind: u32) -> Vec<Name> {
    let names = entries.interfaces.names.iter();
    names.filter(|(_, kinds)| kinds & kind != 0).map(|(key, _)| key.name).collect()
}

/// The list's ranges in one order, whoever made them.
fn range_list(entries: &MapEntries, list: RangeList) -> Vec<(u32, [u32; 4])> {
    let of_list = entries.ranges.iter().filter(|(_, range)| range.list == (list as u32).to_ne_bytes());
    let mut ranges: Vec<_> = of_list.map(|(bits, range)| (*bits, range.address.words())).collect();
    ranges.sort_unstable();
    ranges
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{any_capture, any_own_addresses, default_capture, own_addresses};
    use super::*;
    use crate::model::{
        BeforeProxy, InboundPorts, InterceptionMode, InterfaceName, OutboundRanges, OwnerGroups, Port,
        ProxyIdentity,
    };

    const COOKIE: NetnsCookie = 7;

    #[test]
    fn each_setting_that_changed_is_named_and_no_other() {
        let own = own_addresses(&["127.0.0.1", "10.0.0.5", "::1", "2001:db8::5"]);
        let before = default_capture();
        let held = map_entries(COOKIE, &before, &own);
        let range = |text: &str| [text.parse().unwrap()].into();
        let interface = |name: &str| [InterfaceName::parse(name).unwrap()].into();
        let rows = [
            (Capture { proxy_uid: 2000, ..before.clone() }, Setting::ProxyUid),
            (Capture { proxy_gid: 2000, ..before.clone() }, Setting::ProxyGid),
            (Capture { mode: InterceptionMode::Tproxy, ..before.clone() }, Setting::Mode),
            (
                Capture {
                    inbound: InboundPorts::All { excluded: [Port::new(15020)].into() },
                    ..before.clone()
                },
                Setting::ExcludedInboundPorts,
            ),
            (
                Capture { outbound: OutboundRanges::Only(range("10.0.0.0/8")), ..before.clone() },
                Setting::IncludedRanges,
            ),
            (Capture { excluded_ranges: range("fd00::/8"), ..before.clone() }, Setting::ExcludedRanges),
            (
                Capture { included_outbound_ports: [Port::new(1)].into(), ..before.clone() },
                Setting::IncludedOutboundPorts,
            ),
            (
                Capture { excluded_outbound_ports: [].into(), ..before.clone() },
                Setting::ExcludedOutboundPorts,
            ),
            (Capture { dual_stack: true, ..before.clone() }, Setting::DualStack),
            (Capture { dns_capture: true, ..before.clone() }, Setting::DnsCapture),
            (Capture { owner_groups: OwnerGroups::Only([7].into()), ..before.clone() }, Setting::OwnerGroups),
            (Capture { loopback: "127.0.0.0/8".parse().unwrap(), ..before.clone() }, Setting::Loopback),
            (Capture { proxy_identity: ProxyIdentity::Container, ..before.clone() }, Setting::ProxyIdentity),
            (Capture { before_proxy: BeforeProxy::Direct, ..before.clone() }, Setting::BeforeProxy),
            (
                Capture { excluded_interfaces: interface("net1"), ..before.clone() },
                Setting::ExcludedInterfaces,
            ),
            (
                Capture { rerouted_interfaces: interface("net1"), ..before.clone() },
                Setting::ReroutedInterfaces,
            ),
        ];
        for (now, changed) in rows {
            assert_eq!(differences(COOKIE, &held, &now), [changed]);
        }
    }

    proptest! {
        #[test]
        fn a_manifest_that_did_not_change_makes_no_difference(
            capture in any_capture(), own in any_own_addresses()
        ) {
            let held = map_entries(COOKIE, &capture, &own);
            prop_assert_eq!(differences(COOKIE, &held, &capture), []);
        }
    }
}
