//! From how a pod is to be captured to what the datapath is told.
//!
//! Owns: the map entries of a pod ([`map_entries()`]), the choice among its addresses
//! ([`OwnAddresses`]), what is there of the interfaces that it names ([`InterfaceEntries`]), the pod's lists as the
//! verdict asks for them ([`CaptureRules`] from the parsed lists, [`MapRules`] from the entries), its rules of
//! nftables ([`nft`]), and where the entries differ from a manifest of today
//! ([`differences()`]). Never does: I/O; it neither reads addresses nor writes
//! maps. Called by: enrolment; the rules by tests, which compare them with the maps.

mod addresses;
mod differences;
mod interfaces;
mod map_entries;
pub mod nft;
mod rules;
#[cfg(test)]
pub(crate) mod testing;

pub use self::addresses::{InterfaceAddress, OwnAddresses};
pub use self::differences::differences;
pub use self::interfaces::{InterfaceEntries, Link, Links, Route, padded, unpadded};
pub use self::map_entries::{MapEntries, map_entries, own_address_keys, policy_of_addresses};
pub use self::rules::{CaptureRules, MapRules};
