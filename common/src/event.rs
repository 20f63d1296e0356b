//! Records of the ring buffer: one for each decision, written only while somebody watches.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::address::{Address, Port};
use crate::maps::NetnsCookie;

/// One decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Event {
    /// When, in nanoseconds of CLOCK_MONOTONIC.
    pub monotonic_ns: u64,
    /// The pod.
    pub cookie: NetnsCookie,
    /// A [`Reason`](crate::reason::Reason).
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

/// [`Event::protocol`] of a connection, `IPPROTO_TCP`.
pub const TCP: u32 = 6;
/// [`Event::protocol`] of a datagram, or of a UDP socket's connect(), `IPPROTO_UDP`.
pub const UDP: u32 = 17;
/// No uid or gid: the other end of the connection is elsewhere.
pub const NO_ID: u32 = u32::MAX;

const _: () = assert!(size_of::<Event>() == 80 && align_of::<Event>() == 8);
