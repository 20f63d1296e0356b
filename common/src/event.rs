//! Records of the ring buffer: one for each decision, written only while somebody watches; and one whenever a pod's proxy
//! begins or ceases to listen, which the agent waits for.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::address::{Address, Port};
use crate::maps::NetnsCookie;

/// One decision, or news of a proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Event {
    /// When, in nanoseconds of CLOCK_MONOTONIC.
    pub monotonic_ns: u64,
    /// The pod.
    pub cookie: NetnsCookie,
    /// A [`Reason`](crate::reason::Reason); [`PROXY_BEGAN`] or [`PROXY_CEASED`], with the proxy's port as [`port`](Self::port).
    pub reason: u32,
    /// Uid of the socket's creator for outbound, [`NO_ID`] for inbound.
    pub uid: u32,
    /// Gid of the socket's creator for outbound, [`NO_ID`] for inbound.
    pub gid: u32,
    /// What was decided on: [`TCP`] or [`UDP`].
    pub protocol: u32,
    /// Source address; [`Address::UNSPECIFIED`] when the socket was not bound yet.
    pub source: Address,
    /// The dialled address.
    pub destination: Address,
    /// Source port; [`Port::NONE`] when the socket was not bound yet.
    pub source_port: Port,
    /// The dialled port.
    pub port: Port,
    /// 1 if the creator has one of the proxy's ids and was in another container than the proxy's, in a pod
    /// where that counts.
    pub is_impostor: u32,
    /// Index of the interface that it arrived on, where an annotation names one of the pod's; of what the pod
    /// dials the one that the socket is tied to. 0 for none.
    pub interface: u32,
    /// Zero.
    pub _reserved: u32,
}

/// [`Event::reason`] of no decision: a socket of the proxy's has begun to listen.
pub const PROXY_BEGAN: u32 = 62;
/// [`Event::reason`] of no decision: one has ceased to.
pub const PROXY_CEASED: u32 = 61;
/// Of a pod's proxy nothing more is told for so long after it was told that something has changed, in nanoseconds: a pod
/// that begins and ceases to listen without end shall not keep the agent busy. Who is told looks later than that, and
/// so sees what has become of it.
pub const PROXY_QUIET_NS: u64 = 200_000_000;
/// [`Event::protocol`] of a connection, `IPPROTO_TCP`.
pub const TCP: u32 = 6;
/// [`Event::protocol`] of a datagram, or of a UDP socket's connect(), `IPPROTO_UDP`.
pub const UDP: u32 = 17;
/// No uid or gid: the other end of the connection is elsewhere.
pub const NO_ID: u32 = u32::MAX;

const _: () = assert!(size_of::<Event>() == 80 && align_of::<Event>() == 8);
// The index of the counter that is stamped at the same moment.
const _: () = assert!(PROXY_BEGAN as usize == crate::reason::PROXY_BEGAN);
const _: () = assert!(PROXY_CEASED as usize == crate::reason::PROXY_CEASED);
