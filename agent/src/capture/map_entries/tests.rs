use proptest::prelude::*;

use super::*;
use crate::capture::testing::{any_capture, any_own_addresses, default_capture, own_addresses};

const COOKIE: NetnsCookie = 0x1234_5678_9abc;

fn flags_of(capture: &Capture, own: &[&str]) -> u32 {
    map_entries(COOKIE, capture, &own_addresses(own)).policy.flags
}

fn networks(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn ports(numbers: &[u16]) -> BTreeSet<model::Port> {
    numbers.iter().copied().map(model::Port::new).collect()
}

#[test]
fn a_default_pods_entries_are_these() {
    let entries = map_entries(COOKIE, &default_capture(), &own_addresses(&["10.0.0.5", "fe80::5"]));
    let list = |list: PortList, ports: &[u16]| {
        let set = ports.iter().copied().map(Port::new).collect();
        (PortListKey::new(COOKIE, list), Box::new(set))
    };
    let own = |text: &str| OwnAddressKey { cookie: COOKIE, address: text.parse::<IpAddr>().unwrap().into() };
    let expected = MapEntries {
        interfaces: InterfaceEntries::default(),
        policy: PodPolicy {
            flags: flag::INBOUND_ALL | flag::OUTBOUND_ALL | flag::EXCLUDES_OUTBOUND_PORTS | flag::HAS_V4,
            proxy_uid: 1337,
            proxy_gid: 1337,
            outbound_port: Port::new(15001),
            inbound_port: Port::new(15006),
            tunnel_port: Port::new(15008),
            dns_port: Port::new(15053),
            _reserved: [0; 4],
            localhost: u32::from_ne_bytes([127, 0, 0, 1]),
            localhost_mask: u32::MAX,
            source_v4: Address::v4([10, 0, 0, 5]),
            source_v6: Address::UNSPECIFIED,
        },
        ports: vec![
            list(PortList::ExcludedOutbound, &[15020]),
            list(PortList::ExcludedInbound, &[15020, 15021, 15090]),
        ],
        ranges: vec![],
        own_addresses: vec![own("10.0.0.5"), own("fe80::5")],
    };
    assert_eq!(entries, expected);
}

#[test]
fn each_part_of_a_capture_has_its_flag() {
    let base = flags_of(&default_capture(), &["10.0.0.5"]);
    let with = |change: fn(&mut Capture)| {
        let mut capture = default_capture();
        change(&mut capture);
        flags_of(&capture, &["10.0.0.5"]) ^ base
    };
    assert_eq!(with(|capture| capture.inbound = InboundPorts::Only(ports(&[80]))), flag::INBOUND_ALL);
    assert_eq!(with(|capture| capture.outbound = OutboundRanges::Only(BTreeSet::new())), flag::OUTBOUND_ALL);
    assert_eq!(with(|capture| capture.excluded_outbound_ports.clear()), flag::EXCLUDES_OUTBOUND_PORTS);
    assert_eq!(with(|capture| capture.included_outbound_ports = ports(&[1])), flag::INCLUDES_OUTBOUND_PORTS);
    assert_eq!(with(|capture| capture.excluded_ranges = networks(&["::/0"])), flag::EXCLUDES_RANGES);
    assert_eq!(with(|capture| capture.mode = InterceptionMode::Tproxy), flag::TPROXY);
    let loopback =
        |capture: &mut Capture| capture.outbound = OutboundRanges::Only(networks(&["127.0.0.0/8"]));
    assert_eq!(with(loopback), flag::OUTBOUND_ALL | flag::INCLUDES_LOOPBACK);
}

/// As istio-init: without `ISTIO_DUAL_STACK` the first address decides, and IPv4 comes first.
#[test]
fn ipv6_is_captured_alone_or_with_dual_stack() {
    let families = flag::HAS_V4 | flag::HAS_V6 | flag::CAPTURES_V6;
    let both = Capture { dual_stack: true, ..default_capture() };
    for (own, single, dual) in [
        (vec!["10.0.0.5"], flag::HAS_V4, flag::HAS_V4),
        (vec!["10.0.0.5", "fe80::5"], flag::HAS_V4, flag::HAS_V4),
        (vec!["10.0.0.5", "2001:db8::5"], flag::HAS_V4 | flag::HAS_V6, families),
        (vec!["2001:db8::5"], flag::HAS_V6 | flag::CAPTURES_V6, flag::HAS_V6 | flag::CAPTURES_V6),
        (vec!["169.254.172.3", "2001:db8::5"], families, families),
        (vec![], 0, 0),
    ] {
        assert_eq!(flags_of(&default_capture(), &own) & families, single, "{own:?}");
        assert_eq!(flags_of(&both, &own) & families, dual, "{own:?} with dual stack");
    }
}

#[test]
fn a_range_is_its_network_and_its_length_behind_the_fixed_bits() {
    let capture = Capture {
        outbound: OutboundRanges::Only(networks(&[
            "10.1.2.3/8",
            "10.0.0.0/8",
            "0.0.0.0/0",
            "2001:db8::1/32",
        ])),
        excluded_ranges: networks(&["::/0", "10.9.8.7/32"]),
        ..default_capture()
    };
    let entries = map_entries(COOKIE, &capture, &own_addresses(&[]));
    let range = |bits: u32, list, address: &str| {
        let address = Address::from(address.parse::<IpAddr>().unwrap());
        (96_u32 + bits, RangeMatch::of_address(COOKIE, list, &address))
    };
    let expected = [
        range(0, RangeList::IncludedV4, "0.0.0.0"),
        range(8, RangeList::IncludedV4, "10.0.0.0"),
        range(32, RangeList::IncludedV6, "2001:db8::"),
        range(32, RangeList::ExcludedV4, "10.9.8.7"),
        range(0, RangeList::ExcludedV6, "::"),
    ];
    assert_eq!(entries.ranges, expected);
}

/// In the trie a mapped range must not become one of IPv4: Istio gives it to ip6tables, where it never
/// matches anything.
#[test]
fn a_mapped_range_stays_in_the_list_of_ipv6() {
    let capture = Capture { excluded_ranges: networks(&["::ffff:10.0.0.0/104"]), ..default_capture() };
    let entries = map_entries(COOKIE, &capture, &own_addresses(&[]));
    let (bits, range) = entries.ranges[0];
    assert_eq!(bits, 96 + 104);
    assert_eq!(range.list, (RangeList::ExcludedV6 as u32).to_ne_bytes());
}

#[test]
fn loopback_is_no_entry_and_the_passthrough_source_is() {
    let own = own_addresses(&["127.0.0.1", "127.0.0.53", "10.0.0.5", "::1", "::6", "fe80::5"]);
    let entries = map_entries(COOKIE, &default_capture(), &own);
    let addresses: Vec<_> =
        entries.own_addresses.iter().map(|key| IpAddr::from(key.address).to_string()).collect();
    assert_eq!(addresses, ["10.0.0.5", "::6", "fe80::5"]);
}

proptest! {
    #[test]
    fn entries_are_whole_stable_and_without_duplicates(capture in any_capture(), own in any_own_addresses()) {
        let entries = map_entries(COOKIE, &capture, &own);
        prop_assert_eq!(&entries, &map_entries(COOKIE, &capture.clone(), &own.clone()));

        let inbound = match &capture.inbound {
            InboundPorts::All { excluded } => (PortList::ExcludedInbound, excluded),
            InboundPorts::Only(included) => (PortList::IncludedInbound, included),
        };
        let lists = [
            (PortList::ExcludedOutbound, &capture.excluded_outbound_ports),
            (PortList::IncludedOutbound, &capture.included_outbound_ports),
            inbound,
        ];
        let not_empty = lists.iter().filter(|(_, ports)| !ports.is_empty());
        let keys: Vec<_> = not_empty.map(|(list, _)| PortListKey::new(COOKIE, *list)).collect();
        prop_assert_eq!(entries.ports.iter().map(|(key, _)| *key).collect::<Vec<_>>(), keys);
        let held: u32 = entries.ports.iter().flat_map(|(_, set)| set.0).map(u64::count_ones).sum();
        let said: usize = lists.iter().map(|(_, ports)| ports.len()).sum();
        prop_assert_eq!(usize::try_from(held).unwrap(), said);

        let included = match &capture.outbound {
            OutboundRanges::All => BTreeSet::new(),
            OutboundRanges::Only(ranges) => ranges.iter().map(IpNet::trunc).collect(),
        };
        let excluded: BTreeSet<_> = capture.excluded_ranges.iter().map(IpNet::trunc).collect();
        let (OwnerGroups::AllExcept(groups) | OwnerGroups::Only(groups)) = &capture.owner_groups;
        prop_assert_eq!(entries.ranges.len(), included.len() + excluded.len() + groups.len());
        for (index, (bits, range)) in entries.ranges.iter().enumerate() {
            prop_assert!((RangeMatch::FIXED_BITS..=RangeMatch::ALL_BITS).contains(bits));
            prop_assert!(!entries.ranges[..index].contains(&(*bits, *range)));
        }
        prop_assert!(entries.own_addresses.iter().all(|key| key.cookie == COOKIE));
    }
}

/// The policy after the pod's addresses went through these sets.
fn policy_after(capture: &Capture, sets: &[&[&str]]) -> PodPolicy {
    let mut sets = sets.iter().map(|own| own_addresses(own));
    let first = map_entries(COOKIE, capture, &sets.next().unwrap()).policy;
    sets.fold(first, |policy, own| policy_of_addresses(&policy, &own))
}

#[test]
fn sources_and_families_follow_the_addresses() {
    let both = policy_after(&default_capture(), &[&["10.0.0.5"], &["10.0.0.6", "fd00::6"]]);
    assert_eq!(both.source_v4, Address::v4([10, 0, 0, 6]));
    assert_eq!(
        both,
        map_entries(COOKIE, &default_capture(), &own_addresses(&["10.0.0.6", "fd00::6"])).policy
    );
    let none = policy_after(&default_capture(), &[&["10.0.0.5", "fd00::5"], &["fe80::5"]]);
    assert_eq!(none.flags & (flag::HAS_V4 | flag::HAS_V6), 0);
    assert_eq!((none.source_v4, none.source_v6), (Address::UNSPECIFIED, Address::UNSPECIFIED));
}

#[test]
fn whether_ipv6_is_captured_is_decided_once() {
    let captured =
        |capture: &Capture, sets: &[&[&str]]| policy_after(capture, sets).flags & flag::CAPTURES_V6 != 0;
    let single = default_capture();
    let dual = Capture { dual_stack: true, ..default_capture() };
    assert!(!captured(&single, &[&["10.0.0.5"], &["10.0.0.5", "fd00::5"]]));
    assert!(!captured(&single, &[&["10.0.0.5", "fd00::5"], &["fd00::5"]]), "the proxy serves IPv4 alone");
    assert!(!captured(&single, &[&[], &["10.0.0.5", "fd00::5"]]));
    assert!(captured(&single, &[&[], &["fd00::5"]]), "it had nothing to decide by");
    assert!(captured(&single, &[&["fd00::5"], &["fd00::5", "10.0.0.5"]]));
    assert!(captured(&single, &[&["fd00::5"], &[]]));
    assert!(captured(&dual, &[&["10.0.0.5"], &["10.0.0.5", "fd00::5"]]));
    assert!(!captured(&dual, &[&["10.0.0.5"], &["10.0.0.6"]]));
}
