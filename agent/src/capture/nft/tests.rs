//! The rules as text: what is shown here is what `nft list ruleset` shows, but for the form of ranges.

use insta::assert_snapshot;

use super::Ruleset;
use crate::capture::testing::default_capture;
use crate::model::{
    Capture, InboundPorts, InterceptionMode, InterfaceName, OutboundRanges, OwnerGroups, Port,
};

fn ports<const N: usize>(ports: [u16; N]) -> std::collections::BTreeSet<Port> {
    ports.map(Port::new).into()
}

fn interface(name: &str) -> std::collections::BTreeSet<InterfaceName> {
    [InterfaceName::parse(name).unwrap()].into()
}

/// A pod with a value in every list.
fn everything() -> Capture {
    Capture {
        inbound: InboundPorts::Only(ports([80, 81, 443])),
        outbound: OutboundRanges::Only(
            ["10.0.0.0/8", "10.9.0.0/16", "fd00::/8"].map(|text| text.parse().unwrap()).into(),
        ),
        excluded_ranges: ["10.1.2.3/16", "2001:db8::/32"].map(|text| text.parse().unwrap()).into(),
        included_outbound_ports: ports([5432]),
        excluded_outbound_ports: ports([25, 15020]),
        excluded_interfaces: interface("net1"),
        rerouted_interfaces: interface("vm0"),
        dns_capture: true,
        drop_invalid: true,
        owner_groups: OwnerGroups::AllExcept([202, 3000].into()),
        ..default_capture()
    }
}

#[test]
fn a_pod_without_annotations() {
    assert_snapshot!(Ruleset::of(&default_capture(), true).to_string());
}

#[test]
fn a_pod_with_every_list() {
    assert_snapshot!(Ruleset::of(&everything(), false).to_string());
}

#[test]
fn a_pod_with_every_list_has_those_of_ipv6_in_its_own_table() {
    let ruleset = Ruleset::of(&everything(), true);
    assert_snapshot!(ruleset.tables[1].to_string());
}

#[test]
fn a_pod_with_tproxy() {
    let capture = Capture {
        mode: InterceptionMode::Tproxy,
        excluded_interfaces: interface("net1"),
        drop_invalid: true,
        ..default_capture()
    };
    let ruleset = Ruleset::of(&capture, false);
    assert!(ruleset.marks);
    assert_snapshot!(ruleset.to_string());
    assert!(ruleset.drained().marks);
}

#[test]
fn a_pod_that_captures_nothing_but_what_its_proxy_sends_to_itself() {
    let capture = Capture {
        mode: InterceptionMode::Tproxy,
        inbound: InboundPorts::Only(ports([])),
        outbound: OutboundRanges::Only([].into()),
        owner_groups: OwnerGroups::Only([101].into()),
        ..default_capture()
    };
    let ruleset = Ruleset::of(&capture, false);
    assert!(!ruleset.marks);
    assert_snapshot!(ruleset.to_string());
}

#[test]
fn a_loopback_range_among_those_included_takes_the_rule_on_lo_away() {
    let capture = Capture {
        outbound: OutboundRanges::Only(["127.0.0.0/8".parse().unwrap()].into()),
        loopback: "127.0.0.0/30".parse().unwrap(),
        ..default_capture()
    };
    assert_snapshot!(Ruleset::of(&capture, false).to_string());
}
