//! IP addresses and ports as the maps hold them.
//!
//! One 16-byte form for both families keeps every key the same and makes an `AF_INET` socket and a
//! v4-mapped `AF_INET6` socket (all of Java's) the same thing, which they are on the wire.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IPv6 address in network order, or an IPv4 address in its v4-mapped form `::ffff:a.b.c.d`.
///
/// In memory these are the sixteen bytes of the address. Held as four words, because that is how the
/// kernel's contexts have them: as bytes, LLVM takes them apart and the eBPF stack of 512 bytes is gone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Address([u32; 4]);

/// A TCP or UDP port in network order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Port(pub [u8; 2]);

impl Port {
    /// No port: what an unbound socket has.
    pub const NONE: Self = Self([0, 0]);

    /// From a number in host order.
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self(port.to_be_bytes())
    }

    /// As a number in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

/// Third word of a v4-mapped address.
const MAPPED: u32 = 0xffff_u32.to_be();

impl core::fmt::Debug for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Debug::fmt(&IpAddr::from(*self), f)
    }
}

impl Address {
    /// `::`, which stands for "none" where an address is optional.
    pub const UNSPECIFIED: Self = Self([0; 4]);
    /// `::1`.
    pub const LOOPBACK_V6: Self = Self::v6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    /// `127.0.0.1`.
    pub const LOOPBACK_V4: Self = Self::v4([127, 0, 0, 1]);
    /// `127.0.0.6`: the source of a proxy's inbound connections to the app.
    pub const PASSTHROUGH_V4: Self = Self::v4([127, 0, 0, 6]);
    /// `::6`: the same for IPv6.
    pub const PASSTHROUGH_V6: Self = Self::v6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6]);

    /// From four bytes in network order.
    #[inline(always)]
    pub const fn v4(a: [u8; 4]) -> Self {
        Self([0, 0, MAPPED, u32::from_ne_bytes(a)])
    }

    /// From sixteen bytes in network order. A v4-mapped address is the IPv4 address it stands for.
    #[inline(always)]
    pub const fn v6(a: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([a[0], a[1], a[2], a[3]]),
            u32::from_ne_bytes([a[4], a[5], a[6], a[7]]),
            u32::from_ne_bytes([a[8], a[9], a[10], a[11]]),
            u32::from_ne_bytes([a[12], a[13], a[14], a[15]]),
        ])
    }

    /// From four words whose bytes in memory are in network order, as kernel contexts have them.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The four words whose bytes in memory are in network order.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.0
    }

    /// The sixteen bytes in network order.
    pub const fn octets(&self) -> [u8; 16] {
        let [a, b, c, d] = self.0;
        let (a, b, c, d) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes());
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }

    /// Whether this is IPv4.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// The four bytes of an IPv4 address, in network order; meaningless for IPv6.
    #[inline(always)]
    pub const fn v4_octets(&self) -> [u8; 4] {
        self.0[3].to_ne_bytes()
    }

    /// The last word as a number, if this is IPv4.
    #[inline(always)]
    const fn v4_number(&self) -> Option<u32> {
        if self.is_v4() { Some(u32::from_be(self.0[3])) } else { None }
    }

    /// The last word as a number, if the address is IPv6 and everything before it is zero.
    #[inline(always)]
    const fn low_v6_number(&self) -> Option<u32> {
        if self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 { Some(u32::from_be(self.0[3])) } else { None }
    }

    /// `0.0.0.0` or `::`.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && (self.0[2] == 0 || self.0[2] == MAPPED) && self.0[3] == 0
    }

    /// `127.0.0.0/8` or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        matches!(self.v4_number(), Some(number) if number >> 24 == 127)
            || matches!(self.low_v6_number(), Some(1))
    }

    /// `127.0.0.1` or `::1`: the one loopback address that istio-init lets the proxy reach.
    #[inline(always)]
    pub const fn is_localhost(&self) -> bool {
        matches!(self.v4_number(), Some(0x7f00_0001)) || matches!(self.low_v6_number(), Some(1))
    }

    /// `127.0.0.6` or `::6`: the source of the proxy's inbound connections.
    #[inline(always)]
    pub const fn is_passthrough(&self) -> bool {
        matches!(self.v4_number(), Some(0x7f00_0006)) || matches!(self.low_v6_number(), Some(6))
    }

    /// `127.0.0.1` for an IPv4 address, `::1` for an IPv6 address.
    #[must_use]
    #[inline(always)]
    pub const fn localhost_of_same_family(&self) -> Self {
        if self.is_v4() { Self::LOOPBACK_V4 } else { Self::LOOPBACK_V6 }
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(ip: Ipv4Addr) -> Self {
        Self::v4(ip.octets())
    }
}

impl From<Ipv6Addr> for Address {
    fn from(ip: Ipv6Addr) -> Self {
        Self::v6(ip.octets())
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_v4() {
            Self::V4(Ipv4Addr::from(address.v4_octets()))
        } else {
            Self::V6(Ipv6Addr::from(address.octets()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Address {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn ipv4_and_its_mapped_form_are_one_address() {
        assert_eq!(parse("10.1.2.3"), parse("::ffff:10.1.2.3"));
        assert_eq!(IpAddr::from(parse("::ffff:10.1.2.3")), "10.1.2.3".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn classes_of_addresses_are_told_apart() {
        let rows = [
            // address, v4, unspecified, loopback, localhost, passthrough
            ("127.0.0.1", true, false, true, true, false),
            ("127.0.0.6", true, false, true, false, true),
            ("127.255.255.255", true, false, true, false, false),
            ("128.0.0.1", true, false, false, false, false),
            ("126.255.255.255", true, false, false, false, false),
            ("0.0.0.0", true, true, false, false, false),
            ("10.0.0.1", true, false, false, false, false),
            ("::", false, true, false, false, false),
            ("::1", false, false, true, true, false),
            ("::6", false, false, false, false, true),
            ("::7f00:1", false, false, false, false, false),
            ("fe80::1", false, false, false, false, false),
            ("2001:db8::1", false, false, false, false, false),
            ("::ffff:127.0.0.1", true, false, true, true, false),
        ];
        for (text, v4, unspecified, loopback, localhost, passthrough) in rows {
            let a = parse(text);
            let got = (a.is_v4(), a.is_unspecified(), a.is_loopback(), a.is_localhost(), a.is_passthrough());
            assert_eq!(got, (v4, unspecified, loopback, localhost, passthrough), "{text}");
        }
    }

    #[test]
    fn localhost_follows_the_family() {
        assert_eq!(parse("0.0.0.0").localhost_of_same_family(), Address::LOOPBACK_V4);
        assert_eq!(parse("10.0.0.1").localhost_of_same_family(), Address::LOOPBACK_V4);
        assert_eq!(parse("::").localhost_of_same_family(), Address::LOOPBACK_V6);
        assert_eq!(parse("2001:db8::1").localhost_of_same_family(), Address::LOOPBACK_V6);
    }

    #[test]
    fn ports_are_in_network_order() {
        assert_eq!(Port::new(15001).0, [0x3a, 0x99]);
        assert_eq!(Port::new(15001).get(), 15001);
    }
}
