//! A pod's lists as the verdict asks for them, from either of their two forms.
//!
//! The two know nothing of each other, so that a test can hold one against the other: what was parsed,
//! and what the kernel would find in the maps.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use veer_common::address::{Address, Port};
use veer_common::interface::{IndexKey, Interface, ROUTE_NOT_EXCLUDED, RouteMatch, kind};
use veer_common::maps::{NetnsCookie, OwnAddressKey, PortList, PortListKey, PortSet, RangeList, RangeMatch};
use veer_common::verdict::Rules;
use zerocopy::IntoBytes;

use super::addresses::OwnAddresses;
use super::interfaces::Links;
use super::map_entries::MapEntries;
use crate::model::{self, Capture, InboundPorts, OutboundRanges, OwnerGroups};

/// The lists as they were parsed.
#[derive(Clone, Copy, Debug)]
pub struct CaptureRules<'a> {
    capture: &'a Capture,
    own: &'a OwnAddresses,
    links: &'a Links,
}

/// The lists as the maps hold them, looked up as the kernel does: hash and longest prefix.
#[derive(Clone, Debug)]
pub struct MapRules {
    cookie: NetnsCookie,
    ports: HashMap<PortListKey, Box<PortSet>>,
    ranges: Vec<(u32, RangeMatch)>,
    own_addresses: HashSet<OwnAddressKey>,
    interfaces: HashMap<IndexKey, Interface>,
    routes: Vec<((u32, RouteMatch), u32)>,
}

impl<'a> CaptureRules<'a> {
    /// The lists of this pod, in a netns that has these interfaces.
    pub const fn new(capture: &'a Capture, own: &'a OwnAddresses, links: &'a Links) -> Self {
        Self { capture, own, links }
    }
}

impl Rules for CaptureRules<'_> {
    fn port_listed(&self, list: PortList, port: Port) -> bool {
        let port = model::Port::new(port.get());
        match (list, &self.capture.inbound) {
            (PortList::ExcludedOutbound, _) => self.capture.excluded_outbound_ports.contains(&port),
            (PortList::IncludedOutbound, _) => self.capture.included_outbound_ports.contains(&port),
            (PortList::ExcludedInbound, InboundPorts::All { excluded }) => excluded.contains(&port),
            (PortList::IncludedInbound, InboundPorts::Only(included)) => included.contains(&port),
            (PortList::ExcludedInbound, InboundPorts::Only(_))
            | (PortList::IncludedInbound, InboundPorts::All { .. }) => false,
        }
    }

    fn range_listed(&self, list: RangeList, address: &Address) -> bool {
        let address = IpAddr::from(*address);
        let ranges = match (list, &self.capture.outbound) {
            (RangeList::ExcludedV4 | RangeList::ExcludedV6, _) => &self.capture.excluded_ranges,
            (RangeList::IncludedV4 | RangeList::IncludedV6, OutboundRanges::Only(ranges)) => ranges,
            (RangeList::IncludedV4 | RangeList::IncludedV6, OutboundRanges::All) | (RangeList::Groups, _) => {
                return false;
            }
        };
        let of_family = |range: &IpNet| match list {
            RangeList::IncludedV4 | RangeList::ExcludedV4 => matches!(range, IpNet::V4(_)),
            RangeList::IncludedV6 | RangeList::ExcludedV6 => matches!(range, IpNet::V6(_)),
            RangeList::Groups => false,
        };
        ranges.iter().any(|range| of_family(range) && range.contains(&address))
    }

    fn own_address(&self, address: &Address) -> bool {
        self.own.addresses.contains(&IpAddr::from(*address))
    }

    fn group_listed(&self, gid: u32) -> bool {
        let (OwnerGroups::AllExcept(groups) | OwnerGroups::Only(groups)) = &self.capture.owner_groups;
        groups.contains(&gid)
    }

    fn interface_is(&self, index: u32, kind: u32) -> bool {
        let names = match kind {
            kind::EXCLUDED => &self.capture.excluded_interfaces,
            _ => &self.capture.rerouted_interfaces,
        };
        let mut links = self.links.links.iter().filter(|link| link.index == index);
        links.any(|link| names.iter().any(|name| name.as_str() == link.name))
    }

    fn route_excluded(&self, destination: &Address) -> bool {
        let address = IpAddr::from(*destination);
        let holding = || self.links.routes.iter().filter(|route| route.destination.contains(&address));
        let Some(length) = holding().map(|route| route.destination.prefix_len()).max() else { return false };
        let longest = || holding().filter(|route| route.destination.prefix_len() == length);
        let metric = longest().map(|route| route.metric).min();
        longest().filter(|route| Some(route.metric) == metric).all(|route| {
            let excluded = |index: &u32| self.interface_is(*index, kind::EXCLUDED);
            !route.interfaces.is_empty() && route.interfaces.iter().all(excluded)
        })
    }
}

impl MapRules {
    /// The lists that these entries of one pod make.
    pub fn new(cookie: NetnsCookie, entries: &MapEntries) -> Self {
        Self {
            cookie,
            ports: entries.ports.iter().cloned().collect(),
            ranges: entries.ranges.clone(),
            own_addresses: entries.own_addresses.iter().copied().collect(),
            interfaces: entries.interfaces.interfaces.iter().copied().collect(),
            routes: entries.interfaces.routes.clone(),
        }
    }
}

impl Rules for MapRules {
    fn port_listed(&self, list: PortList, port: Port) -> bool {
        self.ports.get(&PortListKey::new(self.cookie, list)).is_some_and(|set| set.contains(port))
    }

    fn range_listed(&self, list: RangeList, address: &Address) -> bool {
        let key = RangeMatch::of_address(self.cookie, list, address);
        self.ranges.iter().any(|(bits, entry)| begin_alike(*bits, entry.as_bytes(), key.as_bytes()))
    }

    fn own_address(&self, address: &Address) -> bool {
        self.own_addresses.contains(&OwnAddressKey { cookie: self.cookie, address: *address })
    }

    fn group_listed(&self, gid: u32) -> bool {
        self.ranges.contains(&(RangeMatch::ALL_BITS, RangeMatch::of_group(self.cookie, gid)))
    }

    fn interface_is(&self, index: u32, kind: u32) -> bool {
        let interface = self.interfaces.get(&IndexKey::new(self.cookie, index));
        interface.is_some_and(|interface| interface.kinds & kind != 0)
    }

    fn route_excluded(&self, destination: &Address) -> bool {
        let key = RouteMatch::of_address(self.cookie, destination);
        let holds = |(bits, route): &(u32, RouteMatch)| begin_alike(*bits, route.as_bytes(), key.as_bytes());
        let holding = self.routes.iter().filter(|(route, _)| holds(route));
        holding.max_by_key(|((bits, _), _)| *bits).is_some_and(|(_, value)| *value != ROUTE_NOT_EXCLUDED)
    }
}

/// Whether the first `bits` of two keys are the same.
fn begin_alike(bits: u32, left: &[u8], right: &[u8]) -> bool {
    let mut remaining = bits;
    left.iter().zip(right).all(|(left, right)| {
        let taken = remaining.min(8);
        remaining -= taken;
        u32::from(left ^ right) >> (8 - taken) == 0
    })
}

#[cfg(test)]
mod tests;
