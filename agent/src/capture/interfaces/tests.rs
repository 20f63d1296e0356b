use std::net::IpAddr;

use super::*;
use crate::capture::testing::default_capture;

const COOKIE: NetnsCookie = 7;

fn link(index: u32, name: &str) -> Link {
    Link { index, name: name.to_owned(), is_up: true }
}

fn route(destination: &str, metric: u32, interfaces: &[u32]) -> Route {
    Route { destination: destination.parse().unwrap(), metric, interfaces: interfaces.to_vec() }
}

/// eth0 is 2, and net1, which is excluded, 3.
fn entries(routes: Vec<Route>, net1_is_up: bool) -> InterfaceEntries {
    let excluded = InterfaceName::parse("net1").unwrap();
    let capture = Capture { excluded_interfaces: [excluded].into(), ..default_capture() };
    let net1 = Link { is_up: net1_is_up, ..link(3, "net1") };
    let links = Links { links: vec![link(1, "lo"), link(2, "eth0"), net1], routes };
    InterfaceEntries::named(COOKIE, &capture).in_netns(&links)
}

fn value(entries: &InterfaceEntries, network: &str) -> Option<u32> {
    let network: IpNet = network.parse().unwrap();
    let address: IpAddr = network.network();
    let bits = RouteMatch::FIXED_BITS + u32::from(network.prefix_len());
    let key = (bits, RouteMatch::of_address(COOKIE, &address.into()));
    entries.routes.iter().find(|(other, _)| *other == key).map(|(_, value)| *value)
}

#[test]
fn an_interface_is_known_by_its_index_while_it_has_its_name() {
    let held = entries(vec![], true);
    let index = IndexKey::new(COOKIE, 3);
    assert_eq!(held.interfaces, [(index, Interface { kinds: kind::EXCLUDED, name: padded("net1") })]);
    let renamed = held.in_netns(&Links { links: vec![link(3, "other")], routes: vec![] });
    assert_eq!((renamed.interfaces.len(), renamed.names.len()), (0, 1));
    let back = renamed.in_netns(&Links { links: vec![link(9, "net1")], routes: vec![] });
    assert_eq!(back.interfaces.first().map(|(key, _)| key.index), Some(9));
}

#[test]
fn a_route_leads_out_of_an_excluded_interface_by_all_of_its_hops_or_not_at_all() {
    let held = entries(
        vec![
            route("0.0.0.0/0", 0, &[2]),
            route("10.1.0.0/16", 0, &[3]),
            route("10.2.0.0/16", 0, &[2, 3]),
            route("10.3.0.0/16", 0, &[3, 3]),
            route("10.4.0.0/16", 0, &[]),
            route("fd00::/8", 0, &[3]),
        ],
        true,
    );
    for (network, expected) in [
        ("0.0.0.0/0", 0),
        ("10.1.0.0/16", 3),
        ("10.2.0.0/16", 0),
        ("10.3.0.0/16", 3),
        ("10.4.0.0/16", 0),
        ("fd00::/8", 3),
    ] {
        assert_eq!(value(&held, network), Some(expected), "{network}");
    }
}

#[test]
fn of_routes_to_one_network_the_lowest_metric_counts_and_of_equal_ones_all() {
    let held = entries(
        vec![
            route("10.1.0.0/16", 5, &[2]),
            route("10.1.0.0/16", 1, &[3]),
            route("10.2.0.0/16", 1, &[2]),
            route("10.2.0.0/16", 5, &[3]),
            route("fe80::/64", 256, &[3]),
            route("fe80::/64", 256, &[2]),
        ],
        true,
    );
    assert_eq!(value(&held, "10.1.0.0/16"), Some(3));
    assert_eq!(value(&held, "10.2.0.0/16"), Some(0));
    assert_eq!(value(&held, "fe80::/64"), Some(0));
}

#[test]
fn an_interface_that_is_down_has_no_routes() {
    let held = entries(vec![route("0.0.0.0/0", 0, &[2]), route("10.1.0.0/16", 0, &[3])], false);
    assert_eq!((held.routes.len(), value(&held, "10.1.0.0/16")), (1, None));
}

#[test]
fn a_route_of_v4_mapped_addresses_says_nothing_of_ipv4() {
    let held = entries(vec![route("::ffff:0.0.0.0/96", 1024, &[3]), route("::/0", 0, &[2])], true);
    assert_eq!((held.routes.len(), value(&held, "::/0")), (1, Some(ROUTE_NOT_EXCLUDED)));
}

#[test]
fn without_an_excluded_interface_that_exists_routes_are_nobodys_business() {
    let nothing = InterfaceEntries::named(COOKIE, &default_capture());
    let links = Links { links: vec![link(2, "eth0")], routes: vec![route("0.0.0.0/0", 0, &[2])] };
    assert!(nothing.is_empty());
    assert_eq!(nothing.in_netns(&links), InterfaceEntries::default());
}

#[test]
fn a_name_survives_the_map_and_one_that_is_too_long_names_nothing() {
    assert_eq!(unpadded(&padded("a-name.of_15xyz")), "a-name.of_15xyz");
    assert_eq!(padded("sixteen-bytes-xy"), Name::default());
}
