//! Typed access to the pinned maps: what the agent writes, what the commands read.
//!
//! Owns: the map handles. Never does: build a policy (that is `capture`), or know the order in which
//! entries must appear (that is `enrol`).

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, SkStorage};
use nix::errno::Errno;
use veer_common::address::{Address, Port};
use veer_common::maps::{
    Counters, Enrolment, HandOff, HandOffKey, LISTENER_SLOTS, ListenerKey, MAX_LISTENER_SLOTS, MAX_LISTENERS,
    MAX_OWN_ADDRESSES, MAX_PODS, MAX_PORT_LISTS, MAX_RANGES, NetnsCookie, OwnAddressKey, PodPolicy,
    PortListKey, PortSet, ProxyContainer, RangeMatch, Settings, SocketRecord, name,
};
use veer_common::reason::COUNTERS;

use self::inserted::inserted;
use self::interfaces::InterfaceMaps;
pub use self::lists::ListEntries;
use super::pins::Pins;
use super::{BpfError, sys};
use crate::capture::MapEntries;

mod inserted;
mod interfaces;
mod lists;
mod node;
mod proxies;
mod settings;

/// Membership maps have no value worth the name.
const MEMBER: u32 = 1;

/// The shared maps, opened by their pins.
pub struct Maps {
    pods: HashMap<MapData, NetnsCookie, PodPolicy>,
    enrolments: HashMap<MapData, NetnsCookie, Enrolment>,
    counters: HashMap<MapData, NetnsCookie, Counters>,
    ports: HashMap<MapData, PortListKey, PortSet>,
    ranges: LpmTrie<MapData, RangeMatch, u32>,
    own_addresses: HashMap<MapData, OwnAddressKey, u32>,
    hand_offs: HashMap<MapData, HandOffKey, HandOff>,
    sockets: SkStorage<MapData, SocketRecord>,
    proxies: HashMap<MapData, NetnsCookie, ProxyContainer>,
    before_proxy: HashMap<MapData, NetnsCookie, u32>,
    node_addresses: HashMap<MapData, Address, u32>,
    settings: Array<MapData, Settings>,
    interfaces: InterfaceMaps,
    listeners: MapData,
    inbound: MapData,
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

macro_rules! open {
    ($pins:expr, $variant:ident, $name:expr) => {{
        let data = MapData::from_pin($pins.map($name)).map_err(failed("open", $name))?;
        Map::$variant(data).try_into().map_err(failed("open", $name))?
    }};
}

use open;

fn failed(attempt: &'static str, map: &'static str) -> impl FnOnce(MapError) -> BpfError {
    move |source| BpfError::Map { attempt, map, source }
}

/// Whether the kernel answered with this error.
fn is(error: &MapError, errno: Errno) -> bool {
    matches!(error, MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(errno as i32))
}

fn ignore_missing(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(Errno::ENOENT as i32) => {
            Ok(())
        }
        other => other,
    }
}

fn none_if_missing<V>(result: Result<V, MapError>) -> Result<Option<V>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Maps {
    /// Opens all maps.
    ///
    /// # Errors
    /// Where no agent has made them yet.
    pub fn open(pins: &Pins) -> Result<Self, BpfError> {
        Ok(Self {
            pods: open!(pins, HashMap, name::PODS),
            enrolments: open!(pins, HashMap, name::ENROLMENTS),
            counters: open!(pins, HashMap, name::COUNTERS),
            ports: open!(pins, HashMap, name::PORTS),
            ranges: open!(pins, LpmTrie, name::RANGES),
            own_addresses: open!(pins, HashMap, name::OWN_ADDRESSES),
            hand_offs: open!(pins, HashMap, name::HAND_OFFS),
            sockets: open!(pins, SkStorage, name::SOCKETS),
            proxies: open!(pins, HashMap, name::PROXIES),
            before_proxy: open!(pins, HashMap, name::BEFORE_PROXY),
            node_addresses: open!(pins, HashMap, name::NODE_ADDRESSES),
            settings: open!(pins, Array, name::SETTINGS),
            interfaces: InterfaceMaps::open(pins)?,
            listeners: open_untyped(pins, name::LISTENERS)?,
            inbound: open_untyped(pins, name::INBOUND)?,
        })
    }

    /// The enrolled pods, where other maps may be missing.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn enrolments_of(pins: &Pins) -> Result<Vec<(NetnsCookie, Enrolment)>, BpfError> {
        let enrolments: HashMap<MapData, NetnsCookie, Enrolment> = open!(pins, HashMap, name::ENROLMENTS);
        sorted(enrolments.iter(), name::ENROLMENTS)
    }

    /// Id of the program that all pods' netns jump to.
    ///
    /// # Errors
    /// As the kernel says; ENOENT without one.
    pub fn inbound(&self) -> io::Result<u32> {
        sys::program_in(self.inbound.fd().as_fd(), 0)
    }

    /// Makes a program the one that all pods' netns jump to.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn set_inbound(&mut self, program: BorrowedFd<'_>) -> Result<(), BpfError> {
        sys::set_program(self.inbound.fd().as_fd(), 0, program).map_err(|source| BpfError::RawMap {
            attempt: "write to",
            map: name::INBOUND,
            source,
        })
    }

    /// All enrolled pods, in the order of their cookies.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn enrolments(&self) -> Result<Vec<(NetnsCookie, Enrolment)>, BpfError> {
        sorted(self.enrolments.iter(), name::ENROLMENTS)
    }

    /// A pod's policy.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn policy(&self, cookie: NetnsCookie) -> Result<Option<PodPolicy>, BpfError> {
        none_if_missing(self.pods.get(&cookie, 0)).map_err(failed("read", name::PODS))
    }

    /// A pod's counters; zeros for an unknown pod.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn counters(&self, cookie: NetnsCookie) -> Result<Counters, BpfError> {
        none_if_missing(self.counters.get(&cookie, 0))
            .map(|counters| counters.unwrap_or(Counters([0; COUNTERS])))
            .map_err(failed("read", name::COUNTERS))
    }

    /// Whether the pod has counters.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn has_counters(&self, cookie: NetnsCookie) -> Result<bool, BpfError> {
        let found = none_if_missing(self.counters.get(&cookie, 0)).map_err(failed("read", name::COUNTERS))?;
        Ok(found.is_some())
    }

    /// Who the pod is.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn enrolment(&self, cookie: NetnsCookie) -> Result<Option<Enrolment>, BpfError> {
        none_if_missing(self.enrolments.get(&cookie, 0)).map_err(failed("read", name::ENROLMENTS))
    }

    /// How many redirected connections have not reached the proxy yet.
    pub fn hand_offs(&self) -> usize {
        self.hand_offs.keys().flatten().count()
    }

    /// All list entries by pod, in one pass: what a new agent remembers of the last one.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn list_entries(&self) -> Result<BTreeMap<NetnsCookie, ListEntries>, BpfError> {
        let mut pods: BTreeMap<NetnsCookie, ListEntries> = BTreeMap::new();
        for key in self.ports.keys() {
            let key = key.map_err(failed("list", name::PORTS))?;
            pods.entry(key.cookie).or_default().ports.push(key);
        }
        for key in self.ranges.keys() {
            let key = key.map_err(failed("list", name::RANGES))?;
            let data = key.data();
            let cookie = NetnsCookie::from_ne_bytes(data.cookie);
            pods.entry(cookie).or_default().ranges.push((key.prefix_len(), data));
        }
        for key in self.own_addresses.keys() {
            let key = key.map_err(failed("list", name::OWN_ADDRESSES))?;
            pods.entry(key.cookie).or_default().own_addresses.push(key);
        }
        for (cookie, interfaces) in self.interfaces.entries()? {
            pods.entry(cookie).or_default().interfaces = interfaces;
        }
        Ok(pods)
    }

    /// Port lists with their sets; those that are not there are left out.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn port_lists(&self, keys: &[PortListKey]) -> Result<Vec<(PortListKey, Box<PortSet>)>, BpfError> {
        let set = |key: &PortListKey| {
            let set = none_if_missing(self.ports.get(key, 0)).map_err(failed("read", name::PORTS));
            set.map(|set| Some((*key, Box::new(set?)))).transpose()
        };
        keys.iter().filter_map(set).collect()
    }

    /// What is in the maps for a pod with this policy and these lists.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn entries(&self, policy: PodPolicy, lists: ListEntries) -> Result<MapEntries, BpfError> {
        let ListEntries { ports, ranges, own_addresses, interfaces } = lists;
        Ok(MapEntries { policy, ports: self.port_lists(&ports)?, ranges, own_addresses, interfaces })
    }

    /// Writes port lists, each whole at once: who looks meanwhile sees the old one or the new one.
    ///
    /// # Errors
    /// `Full`, or as the kernel says.
    pub fn insert_port_lists(&mut self, lists: &[(PortListKey, Box<PortSet>)]) -> Result<(), BpfError> {
        lists.iter().try_for_each(|(key, set)| {
            inserted(name::PORTS, MAX_PORT_LISTS, || self.ports.insert(key, set.as_ref(), 0))
        })
    }

    /// Writes the pod's lists: the sets of `ports`, and of `entries` the rest. Without a policy nobody looks
    /// at them.
    ///
    /// # Errors
    /// `Full`, or as the kernel says; the caller removes what was written.
    pub fn insert_lists(
        &mut self,
        ports: &[(PortListKey, Box<PortSet>)],
        entries: &ListEntries,
    ) -> Result<(), BpfError> {
        self.insert_port_lists(ports)?;
        for (prefix, range) in &entries.ranges {
            let key = Key::new(*prefix, *range);
            inserted(name::RANGES, MAX_RANGES, || self.ranges.insert(&key, MEMBER, 0))?;
        }
        for key in &entries.own_addresses {
            let own_addresses = &mut self.own_addresses;
            inserted(name::OWN_ADDRESSES, MAX_OWN_ADDRESSES, || own_addresses.insert(key, MEMBER, 0))?;
        }
        self.interfaces.insert(&entries.interfaces)
    }

    /// Removes the pod's lists; what is gone is fine.
    ///
    /// # Errors
    /// The first failure, after all was tried.
    pub fn remove_lists(&mut self, entries: &ListEntries) -> Result<(), BpfError> {
        self.remove_lists_but(entries, &ListEntries::default())
    }

    /// Removes of the pod's lists what is not in `but`.
    ///
    /// # Errors
    /// The first failure, after all was tried.
    pub fn remove_lists_but(&mut self, entries: &ListEntries, but: &ListEntries) -> Result<(), BpfError> {
        let entries = entries.without(but);
        let mut outcome = self.interfaces.remove(&entries.interfaces, &but.interfaces);
        for key in &entries.ports {
            let removed = ignore_missing(self.ports.remove(key)).map_err(failed("remove from", name::PORTS));
            outcome = outcome.and(removed);
        }
        for (prefix, range) in &entries.ranges {
            let removed = ignore_missing(self.ranges.remove(&Key::new(*prefix, *range)));
            outcome = outcome.and(removed.map_err(failed("remove from", name::RANGES)));
        }
        for key in &entries.own_addresses {
            let removed = ignore_missing(self.own_addresses.remove(key));
            outcome = outcome.and(removed.map_err(failed("remove from", name::OWN_ADDRESSES)));
        }
        outcome
    }

    /// Writes who the pod is.
    ///
    /// # Errors
    /// `Full`, or as the kernel says.
    pub fn insert_enrolment(&mut self, cookie: NetnsCookie, enrolment: &Enrolment) -> Result<(), BpfError> {
        insert(&mut self.enrolments, cookie, *enrolment, name::ENROLMENTS)
    }

    /// Gives the pod counters that start at 0.
    ///
    /// # Errors
    /// `Full`, or as the kernel says.
    pub fn insert_counters(&mut self, cookie: NetnsCookie) -> Result<(), BpfError> {
        insert(&mut self.counters, cookie, Counters([0; COUNTERS]), name::COUNTERS)
    }

    /// Enrols the pod: from here on its connections get verdicts.
    ///
    /// # Errors
    /// `Full`, or as the kernel says.
    pub fn insert_policy(&mut self, cookie: NetnsCookie, policy: &PodPolicy) -> Result<(), BpfError> {
        insert(&mut self.pods, cookie, *policy, name::PODS)
    }

    /// Takes the pod's policy away: from here on its connections go where they are dialled.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn remove_policy(&mut self, cookie: NetnsCookie) -> Result<(), BpfError> {
        ignore_missing(self.pods.remove(&cookie)).map_err(failed("remove from", name::PODS))
    }

    /// Forgets the pod's counters.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn remove_counters(&mut self, cookie: NetnsCookie) -> Result<(), BpfError> {
        ignore_missing(self.counters.remove(&cookie)).map_err(failed("remove from", name::COUNTERS))
    }

    /// Forgets who the pod is.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn remove_enrolment(&mut self, cookie: NetnsCookie) -> Result<(), BpfError> {
        ignore_missing(self.enrolments.remove(&cookie)).map_err(failed("remove from", name::ENROLMENTS))
    }

    /// Socket cookies of the listeners that are registered for a port.
    pub fn listeners(&self, cookie: NetnsCookie, port: Port) -> Vec<u64> {
        self.slots(cookie, port).collect()
    }

    /// Whether a listener is registered, by its socket's cookie; mostly it is in one of the first slots.
    pub fn has_listener(&self, cookie: NetnsCookie, port: Port, socket: u64) -> bool {
        self.slots(cookie, port).any(|registered| registered == socket)
    }

    /// Whether a listener is registered for a port.
    pub fn is_listened_on(&self, cookie: NetnsCookie, port: Port) -> bool {
        self.slots(cookie, port).next().is_some()
    }

    fn slots(&self, cookie: NetnsCookie, port: Port) -> impl Iterator<Item = u64> {
        let lookup = move |slot| sys::lookup_u64(self.listeners_fd(), &listener_key(cookie, port, slot)).ok();
        (0..MAX_LISTENER_SLOTS).filter_map(lookup)
    }

    /// Registers a listener that is older than the agent: its record, so that what it accepts can be
    /// told apart, then a slot.
    ///
    /// # Errors
    /// `Full`, or as the kernel says; ENOSPC when all slots of the port are taken.
    pub fn insert_listener(
        &mut self,
        record: &SocketRecord,
        port: Port,
        socket: BorrowedFd<'_>,
        is_proxys: bool,
    ) -> Result<(), BpfError> {
        let raw = std::os::fd::AsRawFd::as_raw_fd(&socket);
        self.sockets.insert(&raw, record, 0).map_err(failed("write to", name::SOCKETS))?;
        let domain = socket2::SockRef::from(&socket).domain();
        let [v4s, v6s, others] = LISTENER_SLOTS;
        let first = match (is_proxys, domain.is_ok_and(|domain| domain == socket2::Domain::IPV6)) {
            (true, false) => v4s,
            (true, true) => v6s,
            (false, _) => others,
        };
        for slot in first..MAX_LISTENER_SLOTS {
            let key = listener_key(record.cookie, port, slot);
            match sys::insert_socket(self.listeners_fd(), &key, socket) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                // As the kernel says that a sockhash is full.
                Err(error) if error.raw_os_error() == Some(Errno::E2BIG as i32) => {
                    return Err(BpfError::Full { map: name::LISTENERS, capacity: MAX_LISTENERS });
                }
                Err(source) => {
                    return Err(BpfError::RawMap { attempt: "write to", map: name::LISTENERS, source });
                }
            }
        }
        let source = io::Error::from(Errno::ENOSPC);
        Err(BpfError::RawMap { attempt: "write to", map: name::LISTENERS, source })
    }

    /// The record of a socket that we hold.
    pub fn socket_record(&self, socket: BorrowedFd<'_>) -> Option<SocketRecord> {
        self.sockets.get(&std::os::fd::AsRawFd::as_raw_fd(&socket), 0).ok()
    }

    /// Forgets the listeners of a port.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn remove_listeners(&mut self, cookie: NetnsCookie, port: Port) -> Result<(), BpfError> {
        for slot in 0..MAX_LISTENER_SLOTS {
            match sys::delete(self.listeners_fd(), &listener_key(cookie, port, slot)) {
                Err(error)
                    if error.kind() != io::ErrorKind::NotFound
                        && error.raw_os_error() != Some(libc::EINVAL) =>
                {
                    return Err(BpfError::RawMap {
                        attempt: "remove from",
                        map: name::LISTENERS,
                        source: error,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn listeners_fd(&self) -> BorrowedFd<'_> {
        self.listeners.fd().as_fd()
    }
}

fn open_untyped(pins: &Pins, name: &'static str) -> Result<MapData, BpfError> {
    MapData::from_pin(pins.map(name)).map_err(failed("open", name))
}

fn listener_key(cookie: NetnsCookie, port: Port, slot: u32) -> ListenerKey {
    ListenerKey { cookie, port, _reserved: [0; 2], slot }
}

fn insert<V: Pod>(
    map: &mut HashMap<MapData, NetnsCookie, V>,
    cookie: NetnsCookie,
    value: V,
    name: &'static str,
) -> Result<(), BpfError> {
    inserted(name, MAX_PODS, || map.insert(cookie, value, 0))
}

fn sorted<V: Pod>(
    entries: impl Iterator<Item = Result<(NetnsCookie, V), MapError>>,
    name: &'static str,
) -> Result<Vec<(NetnsCookie, V)>, BpfError> {
    let mut entries = entries.collect::<Result<Vec<_>, _>>().map_err(failed("list", name))?;
    entries.sort_unstable_by_key(|(cookie, _)| *cookie);
    Ok(entries)
}

/// Opens the ring buffer of events.
///
/// # Errors
/// Where no agent has made it yet.
pub fn open_events(pins: &Pins) -> Result<aya::maps::RingBuf<MapData>, BpfError> {
    let path: &Path = &pins.map(name::EVENTS);
    let data = MapData::from_pin(path).map_err(failed("open", name::EVENTS))?;
    Map::RingBuf(data).try_into().map_err(failed("open", name::EVENTS))
}
