//! Lists of ports and ranges as disjoint intervals, which is what a set of nftables holds.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::model::Port;

/// All values from the first to the last one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Interval<T> {
    /// The first.
    pub first: T,
    /// The last.
    pub last: T,
}

/// Ports, neighbours together.
pub(super) fn ports(ports: &BTreeSet<Port>) -> Vec<Interval<u16>> {
    let of = |port: &Port| (u128::from(port.get()), u128::from(port.get()));
    merged(ports.iter().map(of)).filter_map(|(first, last)| interval(first, last)).collect()
}

/// The IPv4 ranges among these.
pub(super) fn v4(ranges: &BTreeSet<IpNet>) -> Vec<Interval<Ipv4Addr>> {
    let number = |address: Ipv4Addr| u128::from(u32::from(address));
    let of = |range: &IpNet| match range {
        IpNet::V4(range) => Some((number(range.network()), number(range.broadcast()))),
        IpNet::V6(_) => None,
    };
    let whole = merged(ranges.iter().filter_map(of));
    whole.filter_map(|(first, last)| interval::<u32>(first, last)).map(addresses).collect()
}

/// The IPv6 ranges among these.
pub(super) fn v6(ranges: &BTreeSet<IpNet>) -> Vec<Interval<Ipv6Addr>> {
    let of = |range: &IpNet| match range {
        IpNet::V6(range) => Some((u128::from(range.network()), u128::from(range.broadcast()))),
        IpNet::V4(_) => None,
    };
    let whole = merged(ranges.iter().filter_map(of));
    whole.map(|(first, last)| addresses(Interval { first, last })).collect()
}

fn interval<T: TryFrom<u128>>(first: u128, last: u128) -> Option<Interval<T>> {
    Some(Interval { first: first.try_into().ok()?, last: last.try_into().ok()? })
}

fn addresses<N, A: From<N>>(numbers: Interval<N>) -> Interval<A> {
    Interval { first: numbers.first.into(), last: numbers.last.into() }
}

/// Intervals that overlap or touch are one: the kernel refuses the former.
fn merged(intervals: impl Iterator<Item = (u128, u128)>) -> impl Iterator<Item = (u128, u128)> {
    let mut sorted: Vec<_> = intervals.collect();
    sorted.sort_unstable();
    let mut whole: Vec<(u128, u128)> = Vec::new();
    for (first, last) in sorted {
        match whole.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            Some(_) | None => whole.push((first, last)),
        }
    }
    whole.into_iter()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbours_and_overlaps_become_one() {
        let ports = ports(&[1, 2, 3, 80, 65534, 65535].map(Port::new).into());
        let as_pairs: Vec<_> = ports.iter().map(|ports| (ports.first, ports.last)).collect();
        assert_eq!(as_pairs, [(1, 3), (80, 80), (65534, 65535)]);
        let ranges = ["10.1.2.3/8", "10.0.0.0/9", "11.0.0.0/8", "::/0", "fd00::/8"];
        let ranges = ranges.map(|text| text.parse().unwrap()).into();
        assert_eq!(v4(&ranges), [Interval { first: [10, 0, 0, 0].into(), last: [11, 255, 255, 255].into() }]);
        assert_eq!(v6(&ranges), [Interval { first: Ipv6Addr::UNSPECIFIED, last: Ipv6Addr::from(u128::MAX) }]);
    }

    proptest! {
        #[test]
        fn a_port_is_in_an_interval_exactly_if_it_is_in_the_list(
            list in proptest::collection::btree_set(0_u16..200, 0..60),
        ) {
            let intervals = ports(&list.iter().copied().map(Port::new).collect());
            for port in 0..200 {
                let held = intervals.iter().filter(|i| i.first <= port && port <= i.last).count();
                prop_assert_eq!(held, usize::from(list.contains(&port)));
            }
        }
    }
}
