//! The maps that the eBPF programs and the agent share: names, capacities, keys and values.
//!
//! Every key starts with the pod's netns cookie: two pods with the same address never meet. No map
//! that a live connection needs is an LRU; what lives as long as a connection sits in socket storage.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::address::{Address, Port};
use crate::reason::COUNTERS;

mod capacity;
mod proxy;

pub use self::capacity::*;
pub use self::proxy::ProxyContainer;

/// Identity of a pod: its network namespace's cookie (`SO_NETNS_COOKIE`), never reused until reboot.
pub type NetnsCookie = u64;

/// Names of the maps, and of their pins below the pin directory.
pub mod name {
    /// `cookie -> `[`PodPolicy`](super::PodPolicy): a pod is enrolled exactly while it has an entry.
    pub const PODS: &str = "PODS";
    /// `cookie -> `[`Enrolment`](super::Enrolment): who the pod is; read by the agent alone.
    pub const ENROLMENTS: &str = "ENROLMENTS";
    /// `cookie -> `[`Counters`](super::Counters).
    pub const COUNTERS: &str = "COUNTERS";
    /// [`PortListKey`](super::PortListKey)` -> `[`PortSet`](super::PortSet): the lists that are not empty.
    pub const PORTS: &str = "PORTS";
    /// [`RangeMatch`](super::RangeMatch)` -> u32`, a longest-prefix trie: membership in a CIDR list.
    pub const RANGES: &str = "RANGES";
    /// [`OwnAddressKey`](super::OwnAddressKey)` -> u32`: the addresses of the pod's netns.
    pub const OWN_ADDRESSES: &str = "OWN_ADDRESSES";
    /// [`interface::IndexKey`](crate::interface::IndexKey)` -> `[`interface::Interface`](crate::interface::Interface):
    /// the interfaces that annotations name and that exist.
    pub const INTERFACES: &str = "INTERFACES";
    /// [`interface::NameKey`](crate::interface::NameKey)` -> u32`, bits of [`interface::kind`](crate::interface::kind):
    /// what annotations name, whether it exists or not; read by the agent and the commands alone.
    pub const INTERFACE_NAMES: &str = "INTERFACE_NAMES";
    /// [`interface::RouteMatch`](crate::interface::RouteMatch)` -> u32`, a longest-prefix trie: the routes of pods
    /// that exclude interfaces.
    pub const ROUTES: &str = "ROUTES";
    /// [`ListenerKey`](super::ListenerKey)` -> socket`: the proxy's listeners, every worker of them.
    pub const LISTENERS: &str = "LISTENERS";
    /// [`HandOffKey`](super::HandOffKey)` -> `[`HandOff`](super::HandOff): redirected connections on their
    /// way from connect() to the proxy's accept queue. Empty when nothing is being opened.
    pub const HAND_OFFS: &str = "HAND_OFFS";
    /// `cookie -> `[`ProxyContainer`](super::ProxyContainer), of pods with [`flag::BY_CONTAINER`](super::flag).
    pub const PROXIES: &str = "PROXIES";
    /// `cookie -> u32`: the pods whose proxy has not listened yet, and whose connections go direct until it does.
    /// The agent puts a pod in once, before its first policy; after that it is only ever taken out, by programs and
    /// agent alike, so that no writing of a policy can bring it back.
    pub const BEFORE_PROXY: &str = "BEFORE_PROXY";
    /// [`Address`](super::Address)` -> u32`: the node's own, from which the pods of ambient mode are probed.
    pub const NODE_ADDRESSES: &str = "NODE_ADDRESSES";
    /// Socket storage with a [`SocketRecord`](super::SocketRecord), inherited by accepted sockets.
    pub const SOCKETS: &str = "SOCKETS";
    /// Socket storage with a [`DatagramRecord`](super::DatagramRecord), for UDP of pods that capture DNS.
    pub const DATAGRAMS: &str = "DATAGRAMS";
    /// At index 0 the inbound program, which the program of each netns jumps to.
    pub const INBOUND: &str = "INBOUND";
    /// For each CPU the [`Arrival`](crate::interface::Arrival) that the inbound program decides on.
    pub const ARRIVAL: &str = "ARRIVAL";
    /// One [`Settings`](super::Settings) at index 0.
    pub const SETTINGS: &str = "SETTINGS";
    /// Ring buffer of [`Event`](crate::event::Event)s, filled while somebody watches, and when a pod's proxy
    /// begins or ceases to listen.
    pub const EVENTS: &str = "EVENTS";
}

/// Bits of [`PodPolicy::flags`].
pub mod flag {
    /// All inbound ports are captured, except the exclude list; else only the include list.
    pub const INBOUND_ALL: u32 = 1 << 0;
    /// All outbound addresses are captured (`*`); else only the include lists.
    pub const OUTBOUND_ALL: u32 = 1 << 1;
    /// The list of excluded outbound ports has entries.
    pub const EXCLUDES_OUTBOUND_PORTS: u32 = 1 << 2;
    /// The list of included outbound ports has entries.
    pub const INCLUDES_OUTBOUND_PORTS: u32 = 1 << 3;
    /// The list of excluded ranges has entries.
    pub const EXCLUDES_RANGES: u32 = 1 << 4;
    /// An included range begins in loopback (O15).
    pub const INCLUDES_LOOPBACK: u32 = 1 << 5;
    /// Interception mode TPROXY: the tunnel port is captured, too.
    pub const TPROXY: u32 = 1 << 6;
    /// The pod has an IPv4 address other than loopback.
    pub const HAS_V4: u32 = 1 << 7;
    /// The pod has an IPv6 address other than loopback and link-local.
    pub const HAS_V6: u32 = 1 << 8;
    /// IPv6 is captured: the pod has no IPv4, or its proxy serves both (`ISTIO_DUAL_STACK`).
    pub const CAPTURES_V6: u32 = 1 << 9;
    /// Connections of the listed owner groups are not captured.
    pub const EXCLUDES_GROUPS: u32 = 1 << 10;
    /// Only connections of the listed owner groups are captured.
    pub const INCLUDES_GROUPS: u32 = 1 << 11;
    /// `ISTIO_DUAL_STACK`: a pod that gets its IPv6 address later has IPv6 captured from then on.
    pub const DUAL_STACK: u32 = 1 << 12;
    /// `ISTIO_META_DNS_CAPTURE`: TCP and UDP to port 53 go to the proxy's DNS port.
    pub const DNS_CAPTURE: u32 = 1 << 13;
    /// The pod names interfaces whose traffic is left alone.
    pub const EXCLUDES_INTERFACES: u32 = 1 << 14;
    /// The pod names interfaces behind which virtual machines are.
    pub const REROUTES_INTERFACES: u32 = 1 << 15;
    /// The proxy's ids alone do not make the proxy: the socket must have been created in its container.
    pub const BY_CONTAINER: u32 = 1 << 16;
    /// The node lets connections go direct until the proxy listens: whether that is so still is in
    /// [`name::BEFORE_PROXY`](super::name::BEFORE_PROXY).
    pub const DIRECT_BEFORE_PROXY: u32 = 1 << 17;
    /// Ambient mode: ztunnel is the pod's proxy, known by the mark of its sockets, and other rules hold.
    pub const AMBIENT: u32 = 1 << 18;
    /// Nothing is captured, because the pod is on its way into the mesh or out of it: its proxy begins or ceases to listen.
    /// For the agent alone: to a program it is a pod that captures nothing.
    pub const ASLEEP: u32 = 1 << 24;
}

/// What the verdict needs of a pod at once; lists are in their own maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PodPolicy {
    /// Bits of [`flag`].
    pub flags: u32,
    /// The proxy's uid, as the initial user namespace counts.
    pub proxy_uid: u32,
    /// The proxy's primary gid, as the initial user namespace counts.
    pub proxy_gid: u32,
    /// Where outbound connections go; 15001.
    pub outbound_port: Port,
    /// Where inbound connections go; 15006.
    pub inbound_port: Port,
    /// The proxy's own tunnel port; 15008.
    pub tunnel_port: Port,
    /// Where DNS goes, if it is captured; 15053.
    pub dns_port: Port,
    /// Zero.
    pub _reserved: [u8; 4],
    /// The IPv4 addresses that count as the pod's localhost, 127.0.0.1 by default: their network, as
    /// [`Address::words`] has an IPv4 address in its last word.
    pub localhost: u32,
    /// The mask of that network, likewise.
    pub localhost_mask: u32,
    /// Source of redirected IPv4 connections; [`Address::UNSPECIFIED`] for none.
    pub source_v4: Address,
    /// Source of redirected IPv6 connections; [`Address::UNSPECIFIED`] for none.
    pub source_v6: Address,
}

/// A list of ports of a pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum PortList {
    /// `excludeOutboundPorts`.
    ExcludedOutbound = 1,
    /// `includeOutboundPorts`.
    IncludedOutbound = 2,
    /// `excludeInboundPorts`, the proxy's own ports included.
    ExcludedInbound = 3,
    /// `includeInboundPorts`.
    IncludedInbound = 4,
}

/// Key of a list of ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PortListKey {
    /// The pod.
    pub cookie: NetnsCookie,
    /// A [`PortList`].
    pub list: u32,
    /// Zero.
    pub _reserved: u32,
}

impl PortListKey {
    /// The key of a pod's list.
    #[inline(always)]
    pub const fn new(cookie: NetnsCookie, list: PortList) -> Self {
        Self { cookie, list: list as u32, _reserved: 0 }
    }
}

/// The ports of a list, a bit for each: port `p` is bit `p % 64` of word `p / 64`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PortSet(pub [u64; Self::WORDS]);

impl PortSet {
    /// Words of a set.
    pub const WORDS: usize = 1024;
    /// Without any port.
    pub const EMPTY: Self = Self([0; Self::WORDS]);

    /// The word that holds a port.
    #[inline(always)]
    pub const fn word(port: Port) -> usize {
        (port.get() >> 6) as usize
    }

    /// The port's bit in its word.
    #[inline(always)]
    pub const fn bit(port: Port) -> u64 {
        1 << (port.get() & 63)
    }

    /// Whether the port is one of them.
    pub fn contains(&self, port: Port) -> bool {
        self.0.get(Self::word(port)).is_some_and(|word| word & Self::bit(port) != 0)
    }

    /// Adds a port.
    pub fn insert(&mut self, port: Port) {
        if let Some(word) = self.0.get_mut(Self::word(port)) {
            *word |= Self::bit(port);
        }
    }
}

impl FromIterator<Port> for PortSet {
    fn from_iter<T: IntoIterator<Item = Port>>(ports: T) -> Self {
        let mut set = Self::EMPTY;
        ports.into_iter().for_each(|port| set.insert(port));
        set
    }
}

/// A list of address ranges of a pod, for one family: `::/0` must not hold the v4-mapped addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum RangeList {
    /// `includeOutboundIPRanges`, IPv4.
    IncludedV4 = 1,
    /// `excludeOutboundIPRanges`, IPv4.
    ExcludedV4 = 2,
    /// `includeOutboundIPRanges`, IPv6.
    IncludedV6 = 3,
    /// `excludeOutboundIPRanges`, IPv6.
    ExcludedV6 = 4,
    /// The owner groups, each in the place of an address. Which are meant is in the flags.
    Groups = 5,
}

/// The matched bytes of a CIDR entry, without the trie's leading prefix length.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RangeMatch {
    /// The pod's cookie in host order, as bytes: the trie's data has no alignment.
    pub cookie: [u8; 8],
    /// A [`RangeList`] in host order, as bytes.
    pub list: [u8; 4],
    /// The range's address; in the lists of IPv4 its four bytes come first and zeros follow.
    pub address: Address,
}

impl RangeMatch {
    /// Length in bits of what must match exactly before the address begins.
    pub const FIXED_BITS: u32 = 96;
    /// Prefix length of a lookup: everything.
    pub const ALL_BITS: u32 = Self::FIXED_BITS + 128;

    /// The key's bytes for an address in a list. In the trie an IPv4 address stands in the first four
    /// bytes, so that a range of `/n` has a prefix of [`Self::FIXED_BITS`]` + n` in both families.
    #[inline(always)]
    pub const fn of_address(cookie: NetnsCookie, list: RangeList, address: &Address) -> Self {
        let address = match list {
            RangeList::IncludedV4 | RangeList::ExcludedV4 => {
                let [_, _, _, v4] = address.words();
                Address::from_words([v4, 0, 0, 0])
            }
            RangeList::IncludedV6 | RangeList::ExcludedV6 | RangeList::Groups => *address,
        };
        Self { cookie: cookie.to_ne_bytes(), list: (list as u32).to_ne_bytes(), address }
    }

    /// The key's bytes for an owner group. It always matches whole, in [`Self::ALL_BITS`].
    #[inline(always)]
    pub const fn of_group(cookie: NetnsCookie, gid: u32) -> Self {
        Self::of_address(cookie, RangeList::Groups, &Address::from_words([gid, 0, 0, 0]))
    }
}

/// Key of an address of the pod's own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OwnAddressKey {
    /// The pod.
    pub cookie: NetnsCookie,
    /// The address.
    pub address: Address,
}

/// Key of a listener: the workers of one port are slots 0, 1, 2, …
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ListenerKey {
    /// The pod.
    pub cookie: NetnsCookie,
    /// The port that the socket listens on.
    pub port: Port,
    /// Zero.
    pub _reserved: [u8; 2],
    /// Slot, below [`MAX_LISTENER_SLOTS`].
    pub slot: u32,
}

/// Key of a redirected connection that the proxy has not got yet.
///
/// The listener's port is part of it: the kernel may give one source port to two connections as long
/// as they go to different ports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HandOffKey {
    /// The pod.
    pub cookie: NetnsCookie,
    /// The dialler's source address.
    pub source: Address,
    /// The dialler's source port.
    pub source_port: Port,
    /// The proxy's port that was dialled instead.
    pub listener_port: Port,
    /// 0 if the proxy was dialled at 127.0.0.1 or ::1, 1 if at the pod's own address: the kernel may give
    /// one source to a connection of each kind. 2 for what ztunnel hands to its app, whose port is
    /// [`Self::listener_port`] then.
    pub to_own_address: u32,
}

/// What the proxy must learn of a redirected connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HandOff {
    /// The dialled address: what `SO_ORIGINAL_DST` answers.
    pub destination: Address,
    /// The dialled port.
    pub port: Port,
    /// Zero.
    pub _reserved: [u8; 6],
}

/// Values of [`SocketRecord::role`]. A record is on both ends of a redirected connection, and
/// accept(2) fires the getpeername hook, too, so every hook looks at the role first.
pub mod role {
    /// A socket whose creator is known; nothing is redirected.
    pub const NONE: u32 = 0;
    /// The app's end of a redirected connection.
    pub const DIALLER: u32 = 1;
    /// A listener of the proxy.
    pub const LISTENER: u32 = 2;
    /// The proxy's end of a connection.
    pub const ACCEPTED: u32 = 3;
    /// ztunnel's end of a connection to its app, made from the address of its own client.
    pub const HANDING_ON: u32 = 4;
}

/// What is known of a socket, kept in its storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketRecord {
    /// The netns that the socket was created in.
    pub cookie: NetnsCookie,
    /// Creator's uid, as the initial user namespace counts.
    pub uid: u32,
    /// Creator's primary gid, as the initial user namespace counts.
    pub gid: u32,
    /// One of [`role`].
    pub role: u32,
    /// 1 for a listener that is counted in [`ProxyContainer::listening`]. What it accepts inherits that, and
    /// means nothing by it.
    pub is_counted: u32,
    /// The id of the cgroup (v2) that the creator was in.
    pub cgroup: u64,
    /// The dialled address, for diallers and accepted sockets.
    pub destination: Address,
    /// Where a dialler was sent instead.
    pub target: Address,
    /// The dialled port.
    pub port: Port,
    /// The port a dialler was sent to instead; of a listener its own, which what it accepts inherits.
    pub target_port: Port,
    /// Zero.
    pub _reserved_end: [u8; 4],
}

/// What is known of a UDP socket of a pod that captures DNS, kept in its storage: who made it, and whom it
/// has asked. Replies come from the proxy, and are shown as coming from there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DatagramRecord {
    /// The netns that the socket was created in.
    pub cookie: NetnsCookie,
    /// Creator's uid, as the initial user namespace counts.
    pub uid: u32,
    /// Creator's primary gid, as the initial user namespace counts.
    pub gid: u32,
    /// The id of the cgroup (v2) that the creator was in.
    pub cgroup: u64,
    /// The resolver that the socket is connected to; [`Address::UNSPECIFIED`] if it was not redirected.
    pub connected: Address,
    /// The IPv6 resolver that was last asked without connect(); [`Address::UNSPECIFIED`] for none.
    pub asked_v6: Address,
    /// The IPv4 resolvers that were asked without connect(), as [`Address::words`] has them in its last word;
    /// zero for none. The place of each is the slot whose source its questions have: see
    /// [`slot_source`](Self::slot_source).
    pub asked_v4: [u32; Self::SLOTS],
    /// The proxy's port that the questions went to instead.
    pub dns_port: Port,
    /// Zero.
    pub _reserved: [u8; 6],
}

impl DatagramRecord {
    /// IPv4 resolvers that one socket may ask without connect() and tell the replies apart.
    pub const SLOTS: usize = 4;

    /// The source of questions from a slot but the first: 127.53.0.2 for the second. The proxy's replies go
    /// there, and come from there: all that a program can see of a message which is not the sender's word.
    #[inline(always)]
    pub const fn slot_source(slot: u8) -> Address {
        Address::v4([127, 53, 0, slot + 1])
    }

    /// The slot whose questions have this source.
    #[inline(always)]
    pub const fn slot_of_source(source: &Address) -> Option<u8> {
        let [a, b, c, number] = source.v4_octets();
        let is_one = source.is_v4() && a == 127 && b == 53 && c == 0 && number > 1;
        if is_one && number as usize <= Self::SLOTS { Some(number - 1) } else { None }
    }
}

/// What the agent tells all programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Settings {
    /// [`crate::ABI_VERSION`] of whoever made the maps.
    pub abi_version: u32,
    /// Not zero while somebody reads events: without a reader none is written.
    pub watched: u32,
    /// Which build's programs are attached; 0 while they are being replaced, and after that was interrupted.
    pub build: u64,
}

/// A pod's counters: index is a [`Reason`](crate::reason::Reason) or [`Fault`](crate::reason::Fault).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Counters(pub [u64; COUNTERS]);

/// Who an enrolled pod is. The agent's memory across restarts: it lives and dies with the datapath,
/// so the two cannot disagree. Texts are UTF-8, padded with zero bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Enrolment {
    /// CNI container id.
    pub container_id: [u8; 128],
    /// The netns path that the runtime named.
    pub netns_path: [u8; 256],
    /// Kubernetes namespace.
    pub namespace: [u8; 64],
    /// Pod name.
    pub name: [u8; 256],
    /// The interface that the runtime named.
    pub interface: [u8; 16],
    /// The CNI network of that interface: a GC of another one leaves the pod alone.
    pub network: [u8; 128],
    /// Device number of the netns file.
    pub netns_device: u64,
    /// Inode number of the netns file.
    pub netns_inode: u64,
    /// When it was enrolled, seconds since the epoch.
    pub enrolled_at: u64,
    /// Who drives its proxy: [`driver`].
    pub driver: u64,
}

/// Values of [`Enrolment::driver`].
pub mod driver {
    /// The pod has its own.
    pub const SIDECAR: u64 = 0;
    /// The agent: the node's proxy serves it.
    pub const NODE: u64 = 1;
    /// Istio: the node's ztunnel serves it.
    pub const ZTUNNEL: u64 = 2;
}

macro_rules! layout {
    ($($type:ty: $size:literal),* $(,)?) => {
        $(const _: () = assert!(size_of::<$type>() == $size && align_of::<$type>() <= 8);)*
    };
}

layout! {
    PodPolicy: 64, PortListKey: 16, PortSet: 8192, RangeMatch: 28, OwnAddressKey: 24, ListenerKey: 16,
    HandOffKey: 32, HandOff: 24, SocketRecord: 72, DatagramRecord: 80, ProxyContainer: 16, Settings: 16, Counters: 512,
    Enrolment: 880,
}

#[cfg(test)]
mod tests;
