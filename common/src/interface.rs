//! The interfaces of a pod that annotations name, in the maps.
//!
//! Owns: which interfaces are excluded or rerouted, by name (what was asked for) and by index (what is there),
//! and the routes that lead out of excluded ones. Part of the map ABI, as [`maps`](crate::maps).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::address::Address;
use crate::maps::NetnsCookie;

/// Named interfaces of all pods, and so the most of them that exist.
pub const MAX_INTERFACES: u32 = 65_536;
/// Routes of all pods that exclude interfaces.
pub const MAX_ROUTES: u32 = 1_048_576;
/// Index of `lo` in every netns (`LOOPBACK_IFINDEX`, include/net/flow.h).
pub const LOOPBACK: u32 = 1;

/// What an interface is named for: bits.
pub mod kind {
    /// `excludeInterfaces`: what arrives on it or leaves by it is left alone.
    pub const EXCLUDED: u32 = 1 << 0;
    /// `istio.io/reroute-virtual-interfaces`: TCP that arrives on it goes to the proxy's outbound port.
    pub const REROUTED: u32 = 1 << 1;
}

/// An interface's name, padded with zero bytes (`IFNAMSIZ`).
pub type Name = [u8; 16];

/// Key of an interface that is named for something, whether it exists or not.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct NameKey {
    /// The pod.
    pub cookie: NetnsCookie,
    /// Its name.
    pub name: Name,
}

/// Key of a named interface that exists.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct IndexKey {
    /// The pod.
    pub cookie: NetnsCookie,
    /// Its index in the pod's netns.
    pub index: u32,
    /// Zero.
    pub _reserved: u32,
}

/// A named interface that exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Interface {
    /// Bits of [`kind`].
    pub kinds: u32,
    /// Its name.
    pub name: Name,
}

/// The matched bytes of a route, without the trie's leading prefix length.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RouteMatch {
    /// The pod's cookie in host order, as bytes: the trie's data has no alignment.
    pub cookie: [u8; 8],
    /// 4 or 6 in host order, as bytes: `::/0` must not hold the v4-mapped addresses.
    pub family: [u8; 4],
    /// The route's network; of IPv4 its four bytes come first and zeros follow.
    pub network: Address,
}

/// What the program of a netns tells the inbound program that it jumps to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Arrival {
    /// The pod.
    pub cookie: NetnsCookie,
    /// Index of the interface that the connection arrived on; 0 where no annotation names one.
    pub interface: u32,
    /// Zero.
    pub _reserved: u32,
}

/// Value of a route that does not lead out of excluded interfaces alone: it is there because it may be the longer
/// prefix. Any other has the index of the excluded interface, of several the first.
pub const ROUTE_NOT_EXCLUDED: u32 = 0;

impl IndexKey {
    /// The key of a pod's interface.
    #[inline(always)]
    pub const fn new(cookie: NetnsCookie, index: u32) -> Self {
        Self { cookie, index, _reserved: 0 }
    }
}

impl RouteMatch {
    /// Length in bits of what must match exactly before the network begins.
    pub const FIXED_BITS: u32 = 96;
    /// Prefix length of a lookup: everything.
    pub const ALL_BITS: u32 = Self::FIXED_BITS + 128;

    /// The key's bytes for an address.
    #[inline(always)]
    pub const fn of_address(cookie: NetnsCookie, address: &Address) -> Self {
        let [first, second, third, last] = address.words();
        let (family, words): (u32, _) =
            if address.is_v4() { (4, [last, 0, 0, 0]) } else { (6, [first, second, third, last]) };
        Self {
            cookie: cookie.to_ne_bytes(),
            family: family.to_ne_bytes(),
            network: Address::from_words(words),
        }
    }
}

const _: () =
    assert!(size_of::<NameKey>() == 24 && size_of::<IndexKey>() == 16 && size_of::<Interface>() == 20);
const _: () = assert!(size_of::<RouteMatch>() == 28 && size_of::<Arrival>() == 16);
