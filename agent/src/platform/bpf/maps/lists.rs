//! The keys of a pod's lists, and comparing them.

use std::collections::HashSet;
use std::hash::Hash;

use veer_common::maps::{OwnAddressKey, PortListKey, RangeMatch};

use crate::capture::InterfaceEntries;

/// The keys of all list entries of a pod, as they are in the maps.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ListEntries {
    /// The port lists. Only which there are: the sets are 8 KiB each, and are kept in the map alone.
    pub ports: Vec<PortListKey>,
    /// Entries of the range lists, each with its prefix length in bits.
    pub ranges: Vec<(u32, RangeMatch)>,
    /// Addresses of the netns.
    pub own_addresses: Vec<OwnAddressKey>,
    /// Interfaces that annotations name.
    pub interfaces: InterfaceEntries,
}

impl ListEntries {
    /// What is in these and not in `other`. Interfaces are left as they are: their entries have values, and are
    /// written all or not at all.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self {
            ports: difference(&self.ports, &other.ports),
            ranges: difference(&self.ranges, &other.ranges),
            own_addresses: difference(&self.own_addresses, &other.own_addresses),
            interfaces: self.interfaces.clone(),
        }
    }

    /// Whether something in these is not in `there`.
    pub fn lacks_in(&self, there: &Self) -> bool {
        let Self { ports, ranges, own_addresses, interfaces } = self.without(there);
        let lacks_interfaces = interfaces.names.iter().any(|entry| !there.interfaces.names.contains(entry))
            || interfaces.interfaces.iter().any(|entry| !there.interfaces.interfaces.contains(entry))
            || interfaces.routes.iter().any(|entry| !there.interfaces.routes.contains(entry));
        !(ports.is_empty() && ranges.is_empty() && own_addresses.is_empty()) || lacks_interfaces
    }
}

fn difference<T: Copy + Eq + Hash>(these: &[T], others: &[T]) -> Vec<T> {
    let others: HashSet<&T> = others.iter().collect();
    these.iter().filter(|entry| !others.contains(entry)).copied().collect()
}
