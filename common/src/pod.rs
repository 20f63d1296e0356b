//! `aya::Pod` for the map types, proven by zerocopy rather than promised.

#![expect(unsafe_code, reason = "aya::Pod is an unsafe marker; zerocopy proves what it asks for")]

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{address, event, interface, maps};

const fn is_plain_bytes<T: FromBytes + IntoBytes + Immutable + Copy + 'static>() {}

macro_rules! pod {
    ($($type:ty),* $(,)?) => {$(
        const _: () = is_plain_bytes::<$type>();
        // SAFETY: FromBytes says that every bit pattern is valid, IntoBytes that there is no padding.
        unsafe impl aya::Pod for $type {}
    )*};
}

pod!(
    address::Address,
    maps::PodPolicy,
    maps::PortListKey,
    maps::PortSet,
    maps::RangeMatch,
    maps::OwnAddressKey,
    maps::ListenerKey,
    maps::HandOffKey,
    maps::HandOff,
    maps::SocketRecord,
    maps::ProxyContainer,
    maps::Settings,
    maps::Counters,
    maps::Enrolment,
    interface::NameKey,
    interface::IndexKey,
    interface::Interface,
    interface::RouteMatch,
    event::Event,
);
