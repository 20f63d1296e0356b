//! The contract between the eBPF programs, the agent and the CNI plugin.
//!
//! Owns: the map ABI ([`maps`], [`interface`], [`event`]), the verdict on a connection ([`verdict`]) with a named
//! [`reason`] for every outcome and a [`rule`] for every test, and the messages between plugin and agent
//! (`cni`, feature `std`).
//! Never does: I/O, allocation (outside `cni`), or anything that knows how a fact was obtained.
//! Used by: the eBPF programs, the agent, the plugin and the tests. The same verdict
//! code runs in all of them.
//!
//! # ABI
//! Everything in [`maps`], [`interface`] and [`event`] is `repr(C)` without implicit padding. Addresses are 16 bytes in
//! network order, IPv4 in its v4-mapped form (see [`address::Address`]). Ports are two bytes in network
//! order ([`address::Port`]). All other integers are in the byte order of the host. A change of any of
//! these types bumps [`ABI_VERSION`]; the golden bytes in `tests/abi.rs` make forgetting that a failure.

#![cfg_attr(not(any(feature = "std", test)), no_std)]

pub mod address;
#[cfg(feature = "std")]
pub mod cni;
pub mod event;
pub mod interface;
pub mod maps;
#[cfg(feature = "user")]
mod pod;
pub mod reason;
pub mod rule;
pub mod verdict;

/// Version of the map ABI. Part of the pin directory's name, so that two versions never share a map.
///
/// Builds with one version work side by side: while one replaces the other, and after that was interrupted, programs
/// of both share the maps and pass connections on to each other. So it changes not with the shape of a map alone, but
/// with the meaning of what is in it.
pub const ABI_VERSION: u32 = 2;
