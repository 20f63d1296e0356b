use proptest::prelude::*;
use proptest::sample::select;
use veer_common::verdict::{self, Inbound, Outbound, Sender};

use super::*;
use crate::capture::map_entries;
use crate::capture::testing::{any_capture, any_links, any_own_addresses, default_capture, own_addresses};

const COOKIE: NetnsCookie = 7;
const PORT_LISTS: [PortList; 4] = [
    PortList::ExcludedOutbound,
    PortList::IncludedOutbound,
    PortList::ExcludedInbound,
    PortList::IncludedInbound,
];
const RANGE_LISTS: [RangeList; 4] =
    [RangeList::IncludedV4, RangeList::ExcludedV4, RangeList::IncludedV6, RangeList::ExcludedV6];

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

#[test]
fn a_range_holds_its_addresses_and_no_other_in_both_forms() {
    let mut capture = default_capture();
    let texts = ["10.1.2.3/8", "192.0.2.1/32", "2001:db8::/33", "0.0.0.0/1"];
    capture.excluded_ranges = texts.iter().map(|text| text.parse().unwrap()).collect();
    let own = own_addresses(&[]);
    let entries = map_entries(COOKIE, &capture, &own);
    let maps = MapRules::new(COOKIE, &entries);
    let links = Links::default();
    let lists = CaptureRules::new(&capture, &own, &links);
    for (list, text, held) in [
        (RangeList::ExcludedV4, "10.255.255.255", true),
        (RangeList::ExcludedV4, "192.0.2.1", true),
        (RangeList::ExcludedV4, "192.0.2.2", false),
        (RangeList::ExcludedV4, "127.255.255.255", true),
        (RangeList::ExcludedV4, "128.0.0.0", false),
        (RangeList::ExcludedV6, "2001:db8:7fff::1", true),
        (RangeList::ExcludedV6, "2001:db8:8000::1", false),
        (RangeList::IncludedV4, "10.0.0.1", false),
        (RangeList::IncludedV6, "2001:db8::1", false),
    ] {
        assert_eq!(maps.range_listed(list, &address(text)), held, "{text} in the maps");
        assert_eq!(lists.range_listed(list, &address(text)), held, "{text} in the lists");
    }
}

#[test]
fn entries_of_one_pod_say_nothing_of_another() {
    let (capture, own) = (default_capture(), own_addresses(&["10.0.0.5"]));
    let entries = map_entries(COOKIE, &capture, &own);
    let other = MapRules::new(COOKIE + 1, &entries);
    assert!(!other.port_listed(PortList::ExcludedInbound, Port::new(15020)));
    assert!(!other.own_address(&address("10.0.0.5")));
}

#[test]
fn keys_that_begin_alike_do_so_bit_by_bit() {
    assert!(begin_alike(0, &[0xff], &[0x00]));
    assert!(begin_alike(1, &[0xff], &[0x80]));
    assert!(!begin_alike(2, &[0xff], &[0x80]));
    assert!(begin_alike(8, &[0xab, 0], &[0xab, 0xff]));
    assert!(begin_alike(9, &[0xab, 0x00], &[0xab, 0x7f]));
    assert!(!begin_alike(9, &[0xab, 0x00], &[0xab, 0x80]));
    assert!(!begin_alike(16, &[0xab, 0x00], &[0xab, 0x01]));
}

/// Addresses near the ranges that [`any_capture`] makes, and some of everything else.
fn any_address() -> impl Strategy<Value = IpAddr> {
    let near = select(vec![
        "10.0.0.5",
        "10.0.0.6",
        "10.255.255.255",
        "11.0.0.0",
        "127.0.0.1",
        "127.0.0.2",
        "127.0.0.6",
        "192.0.2.9",
        "0.0.0.0",
        "169.254.1.1",
        "::",
        "::1",
        "::6",
        "2001:db8::5",
        "2001:db8::6",
        "2001:db9::",
        "fd00::5",
        "fe80::5",
    ]);
    prop_oneof![
        3 => near.prop_map(|text| text.parse().unwrap()),
        1 => any::<IpAddr>(),
    ]
}

fn any_port() -> impl Strategy<Value = u16> {
    prop_oneof![select(vec![0_u16, 53, 80, 443, 15001, 15006, 15008, 15020, 15021, 15090]), any::<u16>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn lists_and_maps_answer_alike(
        capture in any_capture(),
        own in any_own_addresses(),
        links in any_links(),
        addresses in proptest::collection::vec(any_address(), 32),
        ports in proptest::collection::vec(any_port(), 32),
        ids in proptest::collection::vec(select(vec![0_u32, 1000, 1337, 2102]), 64),
    ) {
        let mut entries = map_entries(COOKIE, &capture, &own);
        entries.interfaces = entries.interfaces.in_netns(&links);
        let maps = MapRules::new(COOKIE, &entries);
        let lists = CaptureRules::new(&capture, &own, &links);
        for port in ports.iter().copied().map(Port::new) {
            for list in PORT_LISTS {
                prop_assert_eq!(maps.port_listed(list, port), lists.port_listed(list, port));
            }
        }
        for address in addresses.iter().copied().map(Address::from) {
            let family = |list: &RangeList| {
                matches!(list, RangeList::IncludedV4 | RangeList::ExcludedV4) == address.is_v4()
            };
            for list in RANGE_LISTS.into_iter().filter(family) {
                let (in_maps, in_lists) = (maps.range_listed(list, &address), lists.range_listed(list, &address));
                prop_assert_eq!(in_maps, in_lists, "{:?} {:?}", list, address);
            }
            // Without an excluded interface that exists there are no routes in the maps, and nobody asks.
            prop_assert_eq!(maps.route_excluded(&address), lists.route_excluded(&address), "{:?}", address);
            if !address.is_loopback() {
                prop_assert_eq!(maps.own_address(&address), lists.own_address(&address), "{:?}", address);
            }
        }
        for (((pair, port), uid), gid) in addresses.windows(2).zip(ports).zip(&ids).zip(ids.iter().rev()) {
            let [source, destination] = [pair[0].into(), pair[1].into()];
            let port = Port::new(port);
            let interface = *uid % 5;
            let outbound = Outbound { uid: *uid, gid: *gid, is_impostor: false, is_before_proxy: false, is_marked: false, source, destination, port, interface };
            prop_assert_eq!(
                verdict::outbound(&entries.policy, &maps, &outbound),
                verdict::outbound(&entries.policy, &lists, &outbound)
            );
            let inbound = Inbound { remote: source, local: destination, port, interface, sender: Sender::Client };
            prop_assert_eq!(
                verdict::inbound(&entries.policy, &maps, &inbound),
                verdict::inbound(&entries.policy, &lists, &inbound)
            );
        }
    }
}
