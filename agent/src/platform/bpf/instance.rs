//! The pods' programs: one object, loaded anew for each pod with its constants.
//!
//! Owns: the object, the one loader that is kept for it, and descriptors of the maps that the program knows.
//! Never does: attach a program. Called by: `load`.
//!
//! The loader opens maps by their pins and makes those that are not pinned. With such a one the program jumps nowhere: all that
//! the pod is sent would be refused, and the next agent would find empty maps. Somebody may remove the pins at any
//! moment. So they are put right before, and what the loader has found is looked at before it is used.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use aya::maps::{Map, MapInfo};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use veer_common::maps::{NetnsCookie, PodPolicy, flag, name};

use super::BpfError;
use super::load::{load_program, loader};
use super::pins::Pins;
use super::sys;

pub(super) static NETNS_OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/veer-netns"));

/// The program of a netns.
pub(super) const NETNS_PROGRAM: &str = "veer_netns";
/// The constant of the netns object that says whether it reads the interface of what arrives: 0 or 1.
pub(super) const READS_INTERFACE: &str = "READS_INTERFACE";
/// The maps that it knows.
const NETNS_MAPS: [&str; 2] = [name::INBOUND, name::ARRIVAL];
/// How often it is tried, while somebody removes pins.
const ATTEMPTS: usize = 3;

/// What the program of a netns is loaded with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Instance {
    /// The pod.
    pub cookie: NetnsCookie,
    /// Whether it tells the inbound program the interface of what arrives.
    pub reads_interface: Reads,
}

/// Whether a program reads the interface of what arrives: Linux 5.17 and later alone let it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reads {
    /// Annotations of the pod name interfaces.
    Yes,
    /// None does.
    No,
}

impl Instance {
    /// That of a pod with this policy.
    pub const fn of(cookie: NetnsCookie, policy: &PodPolicy) -> Self {
        let named = policy.flags & flag::EXCLUDES_INTERFACES != 0;
        Self { cookie, reads_interface: if named { Reads::Yes } else { Reads::No } }
    }
}

/// What instances are loaded with.
pub(super) struct Instances {
    pins: Pins,
    loader: EbpfLoader<'static>,
    maps: Vec<OwnMap>,
}

/// A map that outlives its pin.
struct OwnMap {
    name: &'static str,
    path: PathBuf,
    map: OwnedFd,
    id: u32,
}

impl Instances {
    /// With the maps that are pinned now.
    ///
    /// # Errors
    /// If one of them is not there.
    pub(super) fn new(pins: &Pins) -> Result<Self, BpfError> {
        let maps = NETNS_MAPS.map(|name| {
            let path = pins.map(name);
            let opened = sys::get(&path);
            let map =
                opened.map_err(|source| BpfError::Pin { attempt: "open", path: path.clone(), source })?;
            let info = MapInfo::from_pin(&path);
            let id = info
                .map_err(|source| BpfError::Map { attempt: "ask for the id of", map: name, source })?
                .id();
            Ok(OwnMap { name, path, map, id })
        });
        let maps = maps.into_iter().collect::<Result<_, BpfError>>()?;
        Ok(Self { pins: pins.clone(), loader: loader(pins), maps })
    }

    /// Loads one.
    ///
    /// # Errors
    /// Whatever the kernel refuses; `OtherMaps` while somebody else removes pins.
    pub(super) fn load(&mut self, instance: Instance) -> Result<OwnedFd, BpfError> {
        for _attempt in 0..ATTEMPTS {
            self.pin_maps()?;
            let mut ebpf = load_with_globals(&mut self.loader, instance)
                .map_err(|source| BpfError::Object { object: "netns", source })?;
            if !self.has_our_maps(&ebpf) {
                continue;
            }
            return match load_program(&mut ebpf, NETNS_PROGRAM) {
                Err(BpfError::Program { source, .. }) if instance.reads_interface == Reads::Yes => {
                    Err(BpfError::NoIngressInterface { source })
                }
                other => other,
            };
        }
        // What the loader has made is not to be found by anyone.
        self.pin_maps()?;
        Err(BpfError::OtherMaps { path: self.pins.root().join("maps") })
    }

    /// Pins the maps that are not pinned, or in whose place others are.
    fn pin_maps(&self) -> Result<(), BpfError> {
        for own in &self.maps {
            if !MapInfo::from_pin(&own.path).is_ok_and(|info| info.id() == own.id) {
                self.pins.replace(&own.path, own.map.as_fd())?;
            }
        }
        Ok(())
    }

    fn has_our_maps(&self, ebpf: &Ebpf) -> bool {
        self.maps.iter().all(|own| ebpf.map(own.name).and_then(id_of) == Some(own.id))
    }
}

/// The id of a map of one of the kinds that the netns object has.
fn id_of(map: &Map) -> Option<u32> {
    let (Map::ProgramArray(map) | Map::PerCpuArray(map)) = map else { return None };
    Some(map.info().ok()?.id())
}

/// Loads an instance of the netns object.
#[expect(unsafe_code, reason = "the kept loader outlives the value that it is lent")]
fn load_with_globals(loader: &mut EbpfLoader<'static>, instance: Instance) -> Result<Ebpf, aya::EbpfError> {
    const COOKIE: &str = "NETNS_COOKIE";
    static NONE: NetnsCookie = 0;
    static NO: u32 = 0;
    static YES: u32 = 1;
    let cookie = instance.cookie;
    let reads = if instance.reads_interface == Reads::Yes { &YES } else { &NO };
    // A loader of its own for each instance would parse the kernel's BTF each time: 15 ms instead of 1.
    // SAFETY: the reference is only used by the load below and replaced before `cookie` goes out of scope;
    // a panic in between ends the process.
    let lent: &'static NetnsCookie = unsafe { &*std::ptr::from_ref(&cookie) };
    loader.override_global(READS_INTERFACE, reads, true);
    let loaded = loader.override_global(COOKIE, lent, true).load(NETNS_OBJECT);
    loader.override_global(COOKIE, &NONE, true);
    loaded
}

#[cfg(test)]
mod tests {
    use super::super::load::NODE_OBJECT;
    use super::NETNS_OBJECT;

    #[test]
    fn what_is_parsed_for_each_pod_is_next_to_nothing() {
        let has = |object: &[u8], what: &[u8]| object.windows(what.len()).any(|bytes| bytes == what);
        assert!(has(NETNS_OBJECT, b"sk_lookup"), "the object is empty");
        assert!(NETNS_OBJECT.len() < 4096, "{} bytes", NETNS_OBJECT.len());
        // The kernel would keep a copy of it for each pod, and the agent open maps that the program does not know.
        for unneeded in [b".BTF".as_slice(), b".maps", b"COUNTERS", b"LISTENERS"] {
            assert!(!has(NETNS_OBJECT, unneeded), "{unneeded:?}");
        }
        assert!(has(NODE_OBJECT, b".BTF"), "three of its maps are defined by it");
        assert!(!has(NODE_OBJECT, b".debug_"), "nobody reads it");
    }
}
