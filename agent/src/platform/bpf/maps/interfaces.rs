//! The maps of the interfaces that annotations name.
//!
//! Entries have values: one whose value changes is written over, and only what has gone by its key is removed.

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData};
use veer_common::interface::{IndexKey, Interface, MAX_INTERFACES, MAX_ROUTES, NameKey, RouteMatch};
use veer_common::maps::{NetnsCookie, name};

use super::super::{BpfError, pins::Pins};
use super::inserted::inserted;
use super::{failed, ignore_missing};
use crate::capture::InterfaceEntries;

/// The three maps.
pub(super) struct InterfaceMaps {
    names: HashMap<MapData, NameKey, u32>,
    interfaces: HashMap<MapData, IndexKey, Interface>,
    routes: LpmTrie<MapData, RouteMatch, u32>,
}

impl InterfaceMaps {
    pub(super) fn open(pins: &Pins) -> Result<Self, BpfError> {
        use aya::maps::Map;
        Ok(Self {
            names: super::open!(pins, HashMap, name::INTERFACE_NAMES),
            interfaces: super::open!(pins, HashMap, name::INTERFACES),
            routes: super::open!(pins, LpmTrie, name::ROUTES),
        })
    }

    /// All entries by pod, each pod's sorted.
    pub(super) fn entries(&self) -> Result<BTreeMap<NetnsCookie, InterfaceEntries>, BpfError> {
        let mut pods: BTreeMap<NetnsCookie, InterfaceEntries> = BTreeMap::new();
        for entry in &self.names {
            let (key, kinds) = entry.map_err(failed("list", name::INTERFACE_NAMES))?;
            pods.entry(key.cookie).or_default().names.push((key, kinds));
        }
        for entry in &self.interfaces {
            let (key, interface) = entry.map_err(failed("list", name::INTERFACES))?;
            pods.entry(key.cookie).or_default().interfaces.push((key, interface));
        }
        for entry in &self.routes {
            let (key, value) = entry.map_err(failed("list", name::ROUTES))?;
            let data = key.data();
            let cookie = NetnsCookie::from_ne_bytes(data.cookie);
            pods.entry(cookie).or_default().routes.push(((key.prefix_len(), data), value));
        }
        for entries in pods.values_mut() {
            entries.names.sort_unstable_by_key(|(key, _)| *key);
            entries.interfaces.sort_unstable_by_key(|(key, _)| *key);
        }
        Ok(pods)
    }

    /// Writes all of them, over what has the same keys.
    pub(super) fn insert(&mut self, entries: &InterfaceEntries) -> Result<(), BpfError> {
        for (key, kinds) in &entries.names {
            inserted(name::INTERFACE_NAMES, MAX_INTERFACES, || self.names.insert(key, kinds, 0))?;
        }
        for (key, interface) in &entries.interfaces {
            inserted(name::INTERFACES, MAX_INTERFACES, || self.interfaces.insert(key, interface, 0))?;
        }
        for ((bits, route), value) in &entries.routes {
            let key = Key::new(*bits, *route);
            inserted(name::ROUTES, MAX_ROUTES, || self.routes.insert(&key, value, 0))?;
        }
        Ok(())
    }

    /// Removes what is in `entries` and, by its key, not in `but`; what is gone is fine.
    pub(super) fn remove(
        &mut self,
        entries: &InterfaceEntries,
        but: &InterfaceEntries,
    ) -> Result<(), BpfError> {
        let mut outcome = Ok(());
        for key in gone(&entries.names, &but.names) {
            let removed = ignore_missing(self.names.remove(&key));
            outcome = outcome.and(removed.map_err(failed("remove from", name::INTERFACE_NAMES)));
        }
        for key in gone(&entries.interfaces, &but.interfaces) {
            let removed = ignore_missing(self.interfaces.remove(&key));
            outcome = outcome.and(removed.map_err(failed("remove from", name::INTERFACES)));
        }
        for (bits, route) in gone(&entries.routes, &but.routes) {
            let removed = ignore_missing(self.routes.remove(&Key::new(bits, route)));
            outcome = outcome.and(removed.map_err(failed("remove from", name::ROUTES)));
        }
        outcome
    }
}

/// The keys of these that the others do not have.
fn gone<K: Copy + Eq + Hash, V>(these: &[(K, V)], others: &[(K, V)]) -> Vec<K> {
    let others: HashSet<&K> = others.iter().map(|(key, _)| key).collect();
    these.iter().map(|(key, _)| *key).filter(|key| !others.contains(key)).collect()
}
