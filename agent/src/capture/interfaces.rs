//! The interfaces that a pod's annotations name: what of them is there, and which routes lead out of them.
//!
//! iptables asks a packet by which interface it leaves. A connection is decided on before it has a route, so the
//! routes of the pod's netns are in the maps, too: of those to an address the longest prefix decides, and of
//! equally long ones the lowest metric, as in the kernel. A route of several hops is excluded if all of them are. Of the kernel's rules on which table to ask, none is
//! followed: the table is main.

use std::collections::{BTreeMap, HashSet};

use ipnet::IpNet;
use veer_common::interface::{IndexKey, Interface, Name, NameKey, ROUTE_NOT_EXCLUDED, RouteMatch, kind};
use veer_common::maps::NetnsCookie;

use crate::model::{Capture, InterfaceName};

/// An interface of the pod's netns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is up: one that is not has no routes, whatever the kernel still lists while it goes down.
    pub is_up: bool,
}

/// A route of table main.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// The lower one counts, of two to the same network.
    pub metric: u32,
    /// Indexes of the interfaces that it leads out of: several for a route of several hops, none for one that
    /// forbids.
    pub interfaces: Vec<u32>,
}

/// What the netns has.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Links {
    /// Its interfaces.
    pub links: Vec<Link>,
    /// Its routes.
    pub routes: Vec<Route>,
}

/// What the maps hold of a pod's interfaces, sorted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct InterfaceEntries {
    /// Entries in `INTERFACE_NAMES`: what the annotations name.
    pub names: Vec<(NameKey, u32)>,
    /// Entries in `INTERFACES`: which of them exist.
    pub interfaces: Vec<(IndexKey, Interface)>,
    /// Entries in `ROUTES`, each with its prefix length in bits; none where nothing is excluded.
    pub routes: Vec<((u32, RouteMatch), u32)>,
}

impl InterfaceEntries {
    /// What the annotations name, before anything is known of the netns.
    pub fn named(cookie: NetnsCookie, capture: &Capture) -> Self {
        let excluded = capture.excluded_interfaces.iter().map(|name| (name, kind::EXCLUDED));
        let rerouted = capture.rerouted_interfaces.iter().map(|name| (name, kind::REROUTED));
        let mut names: BTreeMap<NameKey, u32> = BTreeMap::new();
        for (name, kind) in excluded.chain(rerouted) {
            *names.entry(NameKey { cookie, name: padded(name.as_str()) }).or_default() |= kind;
        }
        Self { names: names.into_iter().collect(), ..Self::default() }
    }

    /// The same names, in a netns that has these interfaces and routes.
    #[must_use]
    pub fn in_netns(&self, links: &Links) -> Self {
        let named = links.links.iter().filter_map(|link| {
            let name = padded(&link.name);
            let (key, kinds) = self.names.iter().find(|(key, _)| key.name == name)?;
            Some((link, IndexKey::new(key.cookie, link.index), Interface { kinds: *kinds, name }))
        });
        let mut interfaces: Vec<(IndexKey, Interface)> = Vec::new();
        let mut excluded = Vec::new();
        for (link, key, interface) in named {
            interfaces.push((key, interface));
            if interface.kinds & kind::EXCLUDED != 0 {
                excluded.push(link.index);
            }
        }
        interfaces.sort_unstable_by_key(|(key, _)| *key);
        let routes = match interfaces.first() {
            Some((key, _)) if !excluded.is_empty() => routes(key.cookie, links, &excluded),
            Some(_) | None => Vec::new(),
        };
        Self { names: self.names.clone(), interfaces, routes }
    }

    /// Whether these are the same entries, in whatever order the kernel lists them.
    pub fn is_same(&self, other: &Self) -> bool {
        let set = |routes: &[((u32, RouteMatch), u32)]| routes.iter().copied().collect::<HashSet<_>>();
        self.names == other.names
            && self.interfaces == other.interfaces
            && self.routes.len() == other.routes.len()
            && set(&self.routes) == set(&other.routes)
    }

    /// Whether no annotation names an interface.
    pub const fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

fn routes(cookie: NetnsCookie, links: &Links, excluded: &[u32]) -> Vec<((u32, RouteMatch), u32)> {
    let is_down = |index: &u32| links.links.iter().any(|link| link.index == *index && !link.is_up);
    let mut best: BTreeMap<IpNet, Vec<&Route>> = BTreeMap::new();
    for route in &links.routes {
        if is_of_mapped(&route.destination) || route.interfaces.iter().any(is_down) {
            continue;
        }
        let kept = best.entry(route.destination).or_default();
        if kept.first().is_some_and(|first| route.metric < first.metric) {
            kept.clear();
        }
        // IPv6 has two of the same metric on two interfaces: fe80::/64.
        if kept.first().is_none_or(|first| route.metric == first.metric) {
            kept.push(route);
        }
    }
    let leads_out = |route: &&Route| {
        !route.interfaces.is_empty() && route.interfaces.iter().all(|index| excluded.contains(index))
    };
    let entry = |(network, routes): (IpNet, Vec<&Route>)| {
        let first = routes.first().and_then(|route| route.interfaces.first().copied());
        let value = if routes.iter().all(leads_out) { first } else { None };
        let bits = RouteMatch::FIXED_BITS + u32::from(network.prefix_len());
        let network = RouteMatch::of_address(cookie, &network.network().into());
        ((bits, network), value.unwrap_or(ROUTE_NOT_EXCLUDED))
    };
    best.into_iter().map(entry).collect()
}

/// Distributions forbid `::ffff:0.0.0.0/96`. It is asked for nothing: what a v4-mapped address stands for has routes
/// of IPv4.
fn is_of_mapped(network: &IpNet) -> bool {
    matches!(network, IpNet::V6(network) if network.network().to_ipv4_mapped().is_some())
}

/// A name as the maps hold it. The kernel's are of at most 15 bytes; what would be longer names nothing.
pub fn padded(name: &str) -> Name {
    let mut padded = Name::default();
    if name.len() <= InterfaceName::MAX_BYTES {
        padded.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    }
    padded
}

/// The name in such a field.
pub fn unpadded(name: &Name) -> String {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(name.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests;
