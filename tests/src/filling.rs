//! Filling maps to their capacity, with entries of pods that are not there, and emptying them again.
//!
//! Owns: nobody's keys: their cookies count down from the highest, which no netns ever gets; and smaller maps in the
//! place of those that would take minutes to fill. Never does: touch anybody's entry.

use std::ffi::c_int;
use std::fs;
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use aya::maps::{HashMap, Map, MapData, MapError, MapInfo};
use nix::errno::Errno;
use socket2::{Domain, Socket, Type};
use veer_common::address::{Address, Port};
use veer_common::maps::{
    Counters, Enrolment, HandOff, HandOffKey, ListenerKey, MAX_HAND_OFFS, MAX_LISTENERS, MAX_OWN_ADDRESSES,
    MAX_PODS, MAX_PORT_LISTS, NetnsCookie, OwnAddressKey, PodPolicy, PortListKey, PortSet, ProxyContainer,
    name,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::bpf;
use crate::netns::NetNs;
use crate::pinned::Pinned;
use crate::wait;

/// What becomes of nobody's entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    Fill,
    Empty,
}

/// Takes all the room that is left in a map.
pub fn fill(pinned: &Pinned, map: &'static str) -> Result<()> {
    act(pinned, map, Act::Fill).with_context(|| format!("fill {map}"))
}

/// Gives it back.
pub fn empty(pinned: &Pinned, map: &'static str) -> Result<()> {
    act(pinned, map, Act::Empty).with_context(|| format!("empty {map}"))
}

fn act(pinned: &Pinned, map: &'static str, act: Act) -> Result<()> {
    let of = pinned.map(map)?;
    match map {
        name::PODS => all::<_, PodPolicy>(of, MAX_PODS, act, cookie),
        name::ENROLMENTS => all::<_, Enrolment>(of, MAX_PODS, act, cookie),
        name::COUNTERS => all::<_, Counters>(of, MAX_PODS, act, cookie),
        name::PORTS => all::<_, PortSet>(of, MAX_PORT_LISTS, act, |number| PortListKey {
            cookie: cookie(number),
            ..PortListKey::new_zeroed()
        }),
        name::OWN_ADDRESSES => all::<_, u32>(of, MAX_OWN_ADDRESSES, act, |number| OwnAddressKey {
            cookie: cookie(number),
            address: Address::UNSPECIFIED,
        }),
        name::HAND_OFFS => all::<_, HandOff>(of, MAX_HAND_OFFS, act, |number| HandOffKey {
            cookie: cookie(number),
            source: Address::UNSPECIFIED,
            source_port: Port::NONE,
            listener_port: Port::NONE,
            to_own_address: 0,
        }),
        name::PROXIES => all::<_, ProxyContainer>(of, MAX_PODS, act, cookie),
        other => bail!("nobody knows how to fill {other}"),
    }
}

/// All the room for listeners, taken by some that nothing can reach. It is given back with the guard: an entry dies with
/// its socket.
#[derive(Debug)]
pub struct Listening {
    _sockets: Vec<Socket>,
    _netns: NetNs,
}

impl Listening {
    /// Entries of one socket. Closing it walks all of them for each, so there are not too many.
    const EACH: u32 = 512;

    /// Takes the room.
    pub fn fill(pinned: &Pinned) -> Result<Self> {
        let netns = NetNs::new()?;
        let map = pinned.map(name::LISTENERS)?;
        let mut sockets = Vec::new();
        for begin in (0..MAX_LISTENERS).step_by(Self::EACH as usize) {
            let socket = netns.run(|| Socket::new(Domain::IPV4, Type::STREAM, None))??;
            socket.listen(1).context("listen where nobody is")?;
            for number in begin..begin + Self::EACH {
                let key =
                    ListenerKey { cookie: cookie(number), port: Port::new(1), _reserved: [0; 2], slot: 0 };
                match bpf::insert_socket(map.fd().as_fd(), key.as_bytes(), socket.as_fd()) {
                    Err(error) if error.raw_os_error() == Some(Errno::E2BIG as i32) => break,
                    other => other.context("fill LISTENERS")?,
                }
            }
            sockets.push(socket);
        }
        Ok(Self { _sockets: sockets, _netns: netns })
    }
}

/// Puts a map with room for so few entries in the place of one; it takes what programs and agents find that start from
/// now on.
pub fn make_smaller(pinned: &Pinned, map: &str, entries: u32) -> Result<()> {
    /// What BPF_MAP_CREATE takes.
    #[repr(C)]
    struct Create {
        kind: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        flags: u32,
        inner: u32,
        numa_node: u32,
        name: [u8; 16],
    }
    const MAP_CREATE: c_int = 0;
    let path = pinned.root().join("maps").join(map);
    let like = MapInfo::from_pin(&path).with_context(|| format!("look at {}", path.display()))?;
    let mut create = Create {
        kind: like.map_type()? as u32,
        key_size: like.key_size(),
        value_size: like.value_size(),
        max_entries: entries,
        flags: like.map_flags(),
        inner: 0,
        numa_node: 0,
        name: [0; 16],
    };
    let smaller = bpf::open(MAP_CREATE, &mut create).with_context(|| format!("make a smaller {map}"))?;
    fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    bpf::pin(smaller.as_fd(), &path).with_context(|| format!("pin {}", path.display()))
}

fn cookie(number: u32) -> NetnsCookie {
    NetnsCookie::MAX - NetnsCookie::from(number)
}

fn all<K: aya::Pod, V: aya::Pod + FromZeros>(
    map: MapData,
    capacity: u32,
    act: Act,
    key: impl Fn(u32) -> K,
) -> Result<()> {
    let mut map: HashMap<_, K, V> = Map::HashMap(map).try_into()?;
    let value = V::new_zeroed();
    let mut keys = (0..capacity).map(key);
    let (outcome, end) = match act {
        // As the kernel says that a hash is full.
        Act::Fill => {
            let mut insert = |key| {
                let mut outcome = Ok(());
                // One that is not allocated beforehand may have no memory for a moment.
                wait::until("memory for an entry", wait::LIMIT, || {
                    outcome = map.insert(key, value, 0);
                    !outcome.as_ref().is_err_and(|error| is(error, Errno::ENOMEM))
                })
                .map(|()| outcome)
            };
            let mut outcome = Ok(());
            for key in keys {
                outcome = insert(key)?;
                if outcome.is_err() {
                    break;
                }
            }
            (outcome, Errno::E2BIG)
        }
        Act::Empty => (keys.try_for_each(|key| map.remove(&key)), Errno::ENOENT),
    };
    match outcome {
        Err(error) if !is(&error, end) => Err(error.into()),
        Err(_) | Ok(()) => Ok(()),
    }
}

fn is(error: &MapError, errno: Errno) -> bool {
    matches!(error, MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(errno as i32))
}
