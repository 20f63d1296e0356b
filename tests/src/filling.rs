//! Filling maps to their capacity, with entries of pods that are not there, and emptying them again.
//!
//! Owns: nobody's keys: their cookies count down from the highest, which no netns ever gets. Never does: touch
//! anybody's entry.

use anyhow::{Context, Result, bail};
use aya::maps::{HashMap, Map, MapData, MapError};
use nix::errno::Errno;
use veer_common::address::{Address, Port};
use veer_common::maps::{
    Counters, Enrolment, HandOff, HandOffKey, MAX_HAND_OFFS, MAX_OWN_ADDRESSES, MAX_PODS, MAX_PORT_LISTS,
    NetnsCookie, OwnAddressKey, PodPolicy, PortListKey, PortSet, name,
};
use zerocopy::FromZeros;

use crate::pinned::Pinned;

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
        other => bail!("nobody knows how to fill {other}"),
    }
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
        Act::Fill => (keys.try_for_each(|key| map.insert(key, value, 0)), Errno::E2BIG),
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
