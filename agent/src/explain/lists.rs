//! The lists of a pod as texts.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use veer_common::address::{Address, Port};
use veer_common::interface::{IndexKey, Interface, ROUTE_NOT_EXCLUDED, RouteMatch};
use veer_common::maps::{NetnsCookie, PortList, PortListKey, RangeList, RangeMatch};

use crate::capture::{MapEntries, unpadded};

/// Elements of a list that a text has; a person does not read more.
const MOST: usize = 12;

/// The lists of one pod.
pub(super) struct Lists<'a> {
    cookie: NetnsCookie,
    entries: &'a MapEntries,
}

impl<'a> Lists<'a> {
    pub(super) const fn new(cookie: NetnsCookie, entries: &'a MapEntries) -> Self {
        Self { cookie, entries }
    }

    /// The ports of a list, `25, 8000-8005`; `None` for an empty one.
    pub(super) fn ports(&self, list: PortList) -> Option<String> {
        let key = PortListKey::new(self.cookie, list);
        let (_, set) = self.entries.ports.iter().find(|(other, _)| *other == key)?;
        let mut runs: Vec<(u16, u16)> = Vec::new();
        // Nearly all words are empty.
        let words = set.0.iter().zip((0..=u16::MAX).step_by(64)).filter(|(word, _)| **word != 0);
        let ports = words.flat_map(|(_, first)| first..=first.saturating_add(63));
        for port in ports.filter(|port| set.contains(Port::new(*port))) {
            match runs.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
                Some(_) | None => runs.push((port, port)),
            }
        }
        let run = |(first, last): &(u16, u16)| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        };
        listed(runs.iter().map(run))
    }

    /// Whether a port is in a list.
    pub(super) fn has_port(&self, list: PortList, port: u16) -> bool {
        let key = PortListKey::new(self.cookie, list);
        self.entries.ports.iter().any(|(other, set)| *other == key && set.contains(Port::new(port)))
    }

    /// The ranges of a list; `None` for an empty one.
    pub(super) fn ranges(&self, list: RangeList) -> Option<String> {
        listed(self.networks(list).iter().map(ToString::to_string))
    }

    /// The range of a list that holds an address, the longest of them.
    pub(super) fn range_of(&self, list: RangeList, address: &Address) -> Option<IpNet> {
        let address = IpAddr::from(*address);
        let holding = self.networks(list).into_iter().filter(|network| network.contains(&address));
        holding.max_by_key(IpNet::prefix_len)
    }

    /// The ranges that begin in loopback.
    pub(super) fn loopback_ranges(&self) -> Option<String> {
        let ranges = [RangeList::IncludedV4, RangeList::IncludedV6].into_iter();
        let ranges = ranges.flat_map(|list| self.networks(list));
        listed(
            ranges.filter(|range| range.addr().to_canonical().is_loopback()).map(|range| range.to_string()),
        )
    }

    /// The owner groups that are listed.
    pub(super) fn groups(&self) -> String {
        let list = (RangeList::Groups as u32).to_ne_bytes();
        let listed_groups = self.entries.ranges.iter().filter(|(_, range)| range.list == list);
        let mut groups: Vec<u32> = listed_groups
            .map(|(_, range)| {
                let [gid, ..] = range.address.words();
                gid
            })
            .collect();
        groups.sort_unstable();
        listed(groups.iter().map(ToString::to_string)).unwrap_or_else(|| "none".to_owned())
    }

    /// Whether the pod's netns has an address.
    pub(super) fn own(&self, address: &Address) -> bool {
        self.entries.own_addresses.iter().any(|key| key.address == *address)
    }

    /// The interfaces that are named for this kind; `None` for none.
    pub(super) fn interfaces(&self, kind: u32) -> Option<String> {
        let names = self.entries.interfaces.names.iter().filter(|(_, kinds)| kinds & kind != 0);
        listed(names.map(|(key, _)| unpadded(&key.name)))
    }

    /// Whether the interface with this index is named for this kind.
    pub(super) fn interface_is(&self, index: u32, kind: u32) -> bool {
        self.interface(index).is_some_and(|interface| interface.kinds & kind != 0)
    }

    /// The name of the interface with this index, if it is one that is named for something.
    pub(super) fn interface_name(&self, index: u32) -> Option<String> {
        self.interface(index).map(|interface| unpadded(&interface.name))
    }

    fn interface(&self, index: u32) -> Option<&Interface> {
        let key = IndexKey::new(self.cookie, index);
        self.entries
            .interfaces
            .interfaces
            .iter()
            .find(|(other, _)| *other == key)
            .map(|(_, interface)| interface)
    }

    /// The longest route to an address, and the excluded interface that it leads out of.
    pub(super) fn route(&self, address: &Address) -> Option<(IpNet, Option<String>)> {
        let ip = IpAddr::from(*address);
        let routes = self.entries.interfaces.routes.iter();
        let networks =
            routes.filter_map(|((bits, route), value)| Some((routed_network(*bits, route)?, *value)));
        let holding = networks.filter(|(network, _)| network.contains(&ip));
        let (network, index) = holding.max_by_key(|(network, _)| network.prefix_len())?;
        Some((network, (index != ROUTE_NOT_EXCLUDED).then(|| self.interface_name(index)).flatten()))
    }

    fn networks(&self, list: RangeList) -> Vec<IpNet> {
        let of_list =
            self.entries.ranges.iter().filter(|(_, range)| range.list == (list as u32).to_ne_bytes());
        let mut networks: Vec<IpNet> =
            of_list.filter_map(|(bits, range)| network(list, *bits, range)).collect();
        networks.sort_unstable();
        networks
    }
}

fn network(list: RangeList, bits: u32, range: &RangeMatch) -> Option<IpNet> {
    let length = u8::try_from(bits.checked_sub(RangeMatch::FIXED_BITS)?).ok()?;
    let address = match list {
        RangeList::IncludedV4 | RangeList::ExcludedV4 => {
            let [a, b, c, d, ..] = range.address.octets();
            IpAddr::from(Ipv4Addr::new(a, b, c, d))
        }
        RangeList::IncludedV6 | RangeList::ExcludedV6 => IpAddr::from(range.address.octets()),
        RangeList::Groups => return None,
    };
    IpNet::new(address, length).ok()
}

fn routed_network(bits: u32, route: &RouteMatch) -> Option<IpNet> {
    let length = u8::try_from(bits.checked_sub(RouteMatch::FIXED_BITS)?).ok()?;
    let octets = route.network.octets();
    let address = match (u32::from_ne_bytes(route.family), octets) {
        (4, [a, b, c, d, ..]) => IpAddr::from(Ipv4Addr::new(a, b, c, d)),
        _ => IpAddr::from(octets),
    };
    IpNet::new(address, length).ok()
}

fn listed(elements: impl Iterator<Item = String>) -> Option<String> {
    let elements: Vec<String> = elements.collect();
    let mut text = elements.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    if let Some(more @ 1..) = elements.len().checked_sub(MOST) {
        text = format!("{text} and {more} more");
    }
    (!text.is_empty()).then_some(text)
}
