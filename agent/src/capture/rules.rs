//! A pod's lists as the verdict asks for them, from either of their two forms.
//!
//! The two know nothing of each other, so that a test can hold one against the other: what was parsed,
//! and what the kernel would find in the maps.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use veer_common::address::{Address, Port};
use veer_common::maps::{NetnsCookie, OwnAddressKey, PortList, PortListKey, PortSet, RangeList, RangeMatch};
use veer_common::verdict::Rules;
use zerocopy::IntoBytes;

use super::addresses::OwnAddresses;
use super::map_entries::MapEntries;
use crate::model::{self, Capture, InboundPorts, OutboundRanges, OwnerGroups};

/// The lists as they were parsed.
#[derive(Clone, Copy, Debug)]
pub struct CaptureRules<'a> {
    capture: &'a Capture,
    own: &'a OwnAddresses,
}

/// The lists as the maps hold them, looked up as the kernel does: hash and longest prefix.
#[derive(Clone, Debug)]
pub struct MapRules {
    cookie: NetnsCookie,
    ports: HashMap<PortListKey, Box<PortSet>>,
    ranges: Vec<(u32, RangeMatch)>,
    own_addresses: HashSet<OwnAddressKey>,
}

impl<'a> CaptureRules<'a> {
    /// The lists of this pod.
    pub const fn new(capture: &'a Capture, own: &'a OwnAddresses) -> Self {
        Self { capture, own }
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
}

impl MapRules {
    /// The lists that these entries of one pod make.
    pub fn new(cookie: NetnsCookie, entries: &MapEntries) -> Self {
        Self {
            cookie,
            ports: entries.ports.iter().cloned().collect(),
            ranges: entries.ranges.clone(),
            own_addresses: entries.own_addresses.iter().copied().collect(),
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
