use super::*;

fn on(interface: &str, address: &str) -> InterfaceAddress {
    InterfaceAddress {
        interface: interface.into(),
        address: address.parse().unwrap(),
        scope: if address.starts_with("fe80") { 253 } else { SCOPE_GLOBAL },
        flags: 0,
    }
}

/// The chosen sources of both families as text, `-` for none.
fn sources(addresses: &[InterfaceAddress]) -> [String; 2] {
    let OwnAddresses { source_v4, source_v6, .. } = OwnAddresses::choose(addresses, "eth0");
    let none = || "-".to_owned();
    [source_v4.map_or_else(none, |v4| v4.to_string()), source_v6.map_or_else(none, |v6| v6.to_string())]
}

fn usual() -> Vec<InterfaceAddress> {
    vec![
        on("lo", "127.0.0.1"),
        on("net1", "192.168.7.5"),
        on("eth0", "10.0.0.5"),
        on("eth0", "10.0.0.6"),
        on("lo", "::1"),
        on("net1", "fd00::5"),
        on("eth0", "fe80::5"),
        on("eth0", "2001:db8::5"),
        on("eth0", "2001:db8::6"),
    ]
}

#[test]
fn the_first_addresses_of_the_runtimes_interface_are_the_sources() {
    let own = OwnAddresses::choose(&usual(), "eth0");
    assert_eq!(own.source_v4, Some("10.0.0.5".parse().unwrap()));
    assert_eq!(own.source_v6, Some("2001:db8::5".parse().unwrap()));
    let all: Vec<IpAddr> = usual().iter().map(|address| address.address).collect();
    assert_eq!(own.addresses, all, "all are the pod's own, in netlink's order");
}

#[test]
fn another_interface_steps_in_and_loopback_never_does() {
    let mut without = usual();
    without.retain(|address| address.interface != "eth0");
    assert_eq!(sources(&without), ["192.168.7.5", "fd00::5"]);
    without.retain(|address| address.interface == "lo");
    without.extend([on("lo", "10.9.9.9"), on("lo", "::6"), on("eth0", "fe80::5")]);
    assert_eq!(sources(&without), ["-", "-"]);
    assert_eq!(sources(&[]), ["-", "-"]);
}

/// EKS gives pods of IPv6 clusters IPv4 by way of an interface with a link-local address.
#[test]
fn a_link_local_ipv4_address_is_better_than_none() {
    let link = InterfaceAddress { scope: 253, ..on("v4if0", "169.254.172.3") };
    assert_eq!(sources(&[link.clone(), on("eth0", "2001:db8::5")]), ["169.254.172.3", "2001:db8::5"]);
    assert_eq!(sources(&[link, on("net1", "192.168.7.5")]), ["192.168.7.5", "-"]);
}

#[test]
fn scope_and_flags_decide_among_the_addresses_of_one_interface() {
    let flagged = |address: &str, flags| InterfaceAddress { flags, ..on("eth0", address) };
    let host = InterfaceAddress { scope: 254, ..on("eth0", "10.0.0.4") };
    assert_eq!(sources(&[host, on("eth0", "10.0.0.5")])[0], "10.0.0.5");
    let mut addresses = vec![
        flagged("2001:db8::1", FLAG_DAD_FAILED),
        flagged("2001:db8::2", FLAG_TENTATIVE),
        flagged("2001:db8::3", FLAG_DEPRECATED | FLAG_TEMPORARY),
        flagged("2001:db8::4", FLAG_TEMPORARY),
        flagged("2001:db8::5", 0x80),
    ];
    for best in ["2001:db8::5", "2001:db8::4", "2001:db8::3", "2001:db8::2"] {
        assert_eq!(sources(&addresses)[1], best);
        addresses.pop();
    }
    assert_eq!(sources(&addresses)[1], "-", "somebody else has it, too");
}

#[test]
fn an_address_on_two_interfaces_is_one_address() {
    let twice = [on("eth0", "10.0.0.5"), on("net1", "10.0.0.5")];
    assert_eq!(OwnAddresses::choose(&twice, "eth0").addresses.len(), 1);
}

/// As istio-init decides on its IPv6 rules without `ISTIO_DUAL_STACK`.
#[test]
fn a_pod_is_ipv6_only_when_no_ipv4_address_can_be_routed() {
    for (addresses, only) in [
        (vec!["127.0.0.1", "::1", "2001:db8::5", "fe80::5"], true),
        (vec!["127.0.0.1", "169.254.172.3", "::1", "2001:db8::5"], true),
        (vec!["127.0.0.1", "10.0.0.5", "::1", "2001:db8::5"], false),
        (vec!["127.0.0.1", "10.0.0.5", "::1", "::6", "fe80::5"], false),
        (vec!["127.0.0.1", "::1", "::6", "fe80::5"], false),
        (vec![], false),
    ] {
        let addresses: Vec<_> = addresses.into_iter().map(|address| on("eth0", address)).collect();
        assert_eq!(OwnAddresses::choose(&addresses, "eth0").is_ipv6_only(), only, "{addresses:?}");
    }
}
