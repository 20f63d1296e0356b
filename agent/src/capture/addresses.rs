//! The addresses of a pod's netns: which are its own, and which stand in as a connection's source.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address of an interface, as netlink reports it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InterfaceAddress {
    /// The interface's name.
    pub interface: String,
    /// The address (`IFA_LOCAL` where there is one: on a point-to-point link `IFA_ADDRESS` is the peer).
    pub address: IpAddr,
    /// `ifa_scope`: 0 is global, 253 link, 254 host.
    pub scope: u8,
    /// `IFA_FLAGS`, or the older `ifa_flags`.
    pub flags: u32,
}

/// The addresses of a pod's netns.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OwnAddresses {
    /// All of them, loopback and link-local included: what iptables sees as `-o lo`. In netlink's order.
    pub addresses: Vec<IpAddr>,
    /// What redirected IPv4 connections are sent from, so that the proxy sees the pod as its client.
    pub source_v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub source_v6: Option<Ipv6Addr>,
}

const LOOPBACK_INTERFACE: &str = "lo";
const SCOPE_GLOBAL: u8 = 0;
const FLAG_TEMPORARY: u32 = 0x01;
const FLAG_DAD_FAILED: u32 = 0x08;
const FLAG_DEPRECATED: u32 = 0x20;
const FLAG_TENTATIVE: u32 = 0x40;
/// `::6`, which istio-init puts on `lo` as the source of the proxy's connections to the app.
const PASSTHROUGH_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

impl OwnAddresses {
    /// Sorts out a netns' addresses. `interface` is the one that the runtime named (`CNI_IFNAME`); its
    /// addresses come first, then those of any other but `lo`. Of one interface's, a global address is
    /// preferred to one of narrower scope, and a lasting one to a temporary. Never a source: a link-local
    /// IPv6 address, which needs an interface to mean anything, and one that somebody else has, too.
    pub fn choose(addresses: &[InterfaceAddress], interface: &str) -> Self {
        let outside = || addresses.iter().filter(|address| address.interface != LOOPBACK_INTERFACE);
        let foreign = |address: &InterfaceAddress| address.interface != interface;
        let v4 = outside().filter_map(|address| match address.address {
            IpAddr::V4(v4) if !v4.is_loopback() => {
                Some(((foreign(address), address.scope != SCOPE_GLOBAL), v4))
            }
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        });
        let v6 = outside().filter_map(|address| match address.address {
            IpAddr::V6(v6) if may_be_source(v6, address.flags) => {
                Some(((foreign(address), unwelcome(address.flags)), v6))
            }
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        });
        // `min_by_key` keeps the first of equals: the kernel lists primary addresses first.
        Self {
            addresses: unique(addresses.iter().map(|address| address.address)),
            source_v4: v4.min_by_key(|(rank, _)| *rank).map(|(_, address)| address),
            source_v6: v6.min_by_key(|(rank, _)| *rank).map(|(_, address)| address),
        }
    }

    /// Whether istio-init would program IPv6 rules, apart from the pod's own wish for dual stack: it
    /// looks at the first address that is neither loopback nor link-local, and netlink lists IPv4 first.
    pub(super) fn is_ipv6_only(&self) -> bool {
        let routable = |address: &IpAddr| match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && *v6 != PASSTHROUGH_V6,
        };
        let mut routable = self.addresses.iter().filter(|address| routable(address)).peekable();
        routable.peek().is_some() && routable.all(IpAddr::is_ipv6)
    }
}

const fn may_be_source(address: Ipv6Addr, flags: u32) -> bool {
    !address.is_loopback() && !address.is_unicast_link_local() && flags & FLAG_DAD_FAILED == 0
}

/// How little an IPv6 address suits as a source.
const fn unwelcome(flags: u32) -> u8 {
    if flags & FLAG_TENTATIVE != 0 {
        3
    } else if flags & FLAG_DEPRECATED != 0 {
        2
    } else if flags & FLAG_TEMPORARY != 0 {
        1
    } else {
        0
    }
}

fn unique(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut seen = BTreeSet::new();
    addresses.filter(|address| seen.insert(*address)).collect()
}

#[cfg(test)]
mod tests;
