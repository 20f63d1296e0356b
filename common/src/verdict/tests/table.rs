//! Every row of the decision table that the verdict answers for, by its name, for both families.
//!
//! I4 and I5 (interfaces) are no business of these two functions; the rows on DNS are in `dns`.

use std::net::IpAddr;

use super::{APP, PROXY, ROOT, Scene, addresses, ip, ranges};
use crate::address::{Address, Port};
use crate::reason::{Action, Reason};
use crate::verdict::{self, Inbound, Outbound, Sender};

/// Addresses that play the same part in each family.
struct Family {
    remote: &'static str,
    service: &'static str,
    pod: &'static str,
    second: &'static str,
    localhost: &'static str,
    passthrough: &'static str,
    unspecified: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        remote: "192.0.2.9",
        service: "10.96.0.10",
        pod: "10.0.0.5",
        second: "192.168.7.5",
        localhost: "127.0.0.1",
        passthrough: "127.0.0.6",
        unspecified: "0.0.0.0",
    },
    Family {
        remote: "2001:db8:9::9",
        service: "fd00:96::10",
        pod: "2001:db8::5",
        second: "fd00::5",
        localhost: "::1",
        passthrough: "::6",
        unspecified: "::",
    },
];

/// A connection that somebody in the pod opens.
#[derive(Clone, Copy)]
struct Dial<'a> {
    uid: u32,
    gid: u32,
    source: Option<&'a str>,
}

const AS_APP: Dial<'_> = Dial { uid: APP, gid: APP, source: None };
const AS_ROOT: Dial<'_> = Dial { uid: ROOT, gid: ROOT, source: None };
const AS_PROXY: Dial<'_> = Dial { uid: PROXY, gid: PROXY, source: None };
const AS_PROXY_GROUP: Dial<'_> = Dial { uid: APP, gid: PROXY, source: None };
const AS_PROXY_USER: Dial<'_> = Dial { uid: PROXY, gid: APP, source: None };

impl<'a> Dial<'a> {
    fn from(self, source: &'a str) -> Self {
        Self { source: Some(source), ..self }
    }

    fn to(self, scene: &Scene, destination: &str, port: u16) -> Reason {
        let connection = Outbound {
            uid: self.uid,
            gid: self.gid,
            is_impostor: false,
            is_before_proxy: false,
            is_marked: false,
            source: self.source.map_or(Address::UNSPECIFIED, |source| ip(source).into()),
            destination: ip(destination).into(),
            port: Port::new(port),
            interface: 0,
        };
        verdict::outbound(&scene.policy(), scene, &connection)
    }
}

fn arrive(scene: &Scene, remote: &str, local: &str, port: u16) -> Reason {
    let port = Port::new(port);
    let (remote, local) = (ip(remote).into(), ip(local).into());
    let connection = Inbound { remote, local, port, interface: 0, sender: Sender::Client };
    verdict::inbound(&scene.policy(), scene, &connection)
}

#[test]
fn i1_any_tcp_port_from_the_network_goes_to_the_inbound_port() {
    let scene = Scene::default_pod();
    for family in FAMILIES {
        for port in [1, 22, 53, 80, 15001, 15006, 15053, 65535] {
            let reason = arrive(&scene, family.remote, family.pod, port);
            assert_eq!(reason, Reason::AllInbound, "{} port {port}", family.pod);
            assert_eq!(reason.action(), Action::ToInbound);
        }
        assert_eq!(arrive(&scene, family.remote, family.second, 80), Reason::AllInbound);
    }
}

#[test]
fn i1_a_list_of_included_ports_makes_the_excluded_irrelevant() {
    let scene = Scene { included_inbound: Some(vec![80, 15021]), ..Scene::default_pod() };
    for family in FAMILIES {
        let reason = |port| arrive(&scene, family.remote, family.pod, port);
        assert_eq!(reason(80), Reason::IncludedInboundPort);
        assert_eq!(reason(15021), Reason::IncludedInboundPort, "excluded, but nobody asks");
        assert_eq!(reason(81), Reason::NotIncludedInbound);
        assert_eq!(reason(80).action(), Action::ToInbound);
        assert_eq!(reason(81).action(), Action::Direct);
    }
}

#[test]
fn i1_an_empty_list_of_included_ports_captures_nothing() {
    let scene = Scene { included_inbound: Some(vec![]), ..Scene::default_pod() };
    for family in FAMILIES {
        assert_eq!(arrive(&scene, family.remote, family.pod, 80), Reason::NotIncludedInbound);
    }
}

#[test]
fn i2_the_tunnel_port_and_excluded_ports_go_direct() {
    let mut scene = Scene::default_pod();
    scene.excluded_inbound.push(9999);
    for family in FAMILIES {
        let reason = |port| arrive(&scene, family.remote, family.pod, port);
        assert_eq!(reason(15008), Reason::TunnelPort);
        for port in [15020, 15021, 15090, 9999] {
            assert_eq!(reason(port), Reason::ExcludedInboundPort, "{port}");
        }
        assert_eq!(reason(15008).action(), Action::Direct);
        assert_eq!(reason(9999).action(), Action::Direct);
    }
    let asks_for_it = Scene { included_inbound: Some(vec![15008]), ..scene };
    assert_eq!(arrive(&asks_for_it, "192.0.2.9", "10.0.0.5", 15008), Reason::TunnelPort);
}

#[test]
fn i2_with_tproxy_the_tunnel_port_is_captured() {
    let scene = Scene { tproxy: true, ..Scene::default_pod() };
    for family in FAMILIES {
        assert_eq!(arrive(&scene, family.remote, family.pod, 15008), Reason::AllInbound);
        assert_eq!(arrive(&scene, family.remote, family.pod, 15021), Reason::ExcludedInboundPort);
    }
}

#[test]
fn i3_what_is_not_tcp_has_its_own_reason_and_goes_direct() {
    assert_eq!(Reason::NotTcp.action(), Action::Direct);
}

#[test]
fn what_comes_from_within_the_pod_was_decided_when_it_was_dialled() {
    let scene = Scene::default_pod();
    for family in FAMILIES {
        for (remote, local) in [
            (family.pod, family.pod),
            (family.second, family.pod),
            (family.pod, family.localhost),
            (family.localhost, family.localhost),
            (family.passthrough, family.pod),
            (family.localhost, family.passthrough),
        ] {
            assert_eq!(arrive(&scene, remote, local, 80), Reason::WithinPod, "{remote} to {local}");
        }
    }
    assert_eq!(arrive(&scene, "127.0.0.9", "127.0.0.2", 15006), Reason::WithinPod);
}

#[test]
fn o1_the_app_to_a_remote_address_goes_to_the_outbound_port() {
    let scene = Scene::default_pod();
    for family in FAMILIES {
        for dial in [AS_APP, AS_ROOT, AS_APP.from(family.pod), AS_APP.from(family.unspecified)] {
            for destination in [family.remote, family.service] {
                let reason = dial.to(&scene, destination, 80);
                assert_eq!(reason, Reason::AllOutbound, "{destination}");
                assert_eq!(reason.action(), Action::ToOutbound);
            }
        }
    }
}

#[test]
fn o2_the_app_to_its_own_pod_goes_direct_on_any_port() {
    let scene = Scene::default_pod();
    for family in FAMILIES {
        for destination in [family.pod, family.second] {
            for port in [80, 15001, 15006, 15008] {
                for dial in [AS_APP, AS_ROOT] {
                    assert_eq!(dial.to(&scene, destination, port), Reason::AppToOwnAddress, "{destination}");
                }
            }
        }
    }
    assert_eq!(AS_APP.to(&scene, "fe80::5", 80), Reason::AppToOwnAddress);
}

#[test]
fn o3_the_app_over_loopback_goes_direct() {
    let scene = Scene::default_pod();
    for destination in ["127.0.0.1", "127.0.0.2", "127.0.0.6", "127.255.255.254", "::1", "::6"] {
        for port in [53, 80, 15001] {
            assert_eq!(AS_APP.to(&scene, destination, port).action(), Action::Direct, "{destination}");
        }
    }
}

#[test]
fn o4_the_app_to_its_own_service_goes_out_and_the_proxy_then_comes_back_in() {
    let scene = Scene::default_pod();
    for family in FAMILIES {
        assert_eq!(AS_APP.to(&scene, family.service, 80).action(), Action::ToOutbound);
        assert_eq!(AS_PROXY.to(&scene, family.pod, 80).action(), Action::ToInbound);
    }
}

#[test]
fn o5_excluded_ports_and_ranges_go_direct() {
    let scene = Scene {
        excluded_outbound: vec![3306],
        excluded_ranges: ranges(&["192.0.2.0/24", "2001:db8:9::/48"]),
        ..Scene::default_pod()
    };
    for family in FAMILIES {
        assert_eq!(AS_APP.to(&scene, family.service, 3306), Reason::ExcludedPort);
        assert_eq!(AS_APP.to(&scene, family.remote, 80), Reason::ExcludedRange);
        assert_eq!(AS_APP.to(&scene, family.service, 80), Reason::AllOutbound);
        assert_eq!(AS_APP.to(&scene, family.service, 15020), Reason::AllOutbound, "the list replaces 15020");
    }
    assert_eq!(Reason::ExcludedPort.action(), Action::Direct);
    assert_eq!(Reason::ExcludedRange.action(), Action::Direct);
}

#[test]
fn o6_the_proxy_to_its_own_pod_goes_to_the_inbound_port() {
    let scene = Scene::default_pod();
    for family in FAMILIES {
        for destination in [family.pod, family.second] {
            for port in [80, 15001, 15006, 15021] {
                let reason = AS_PROXY.to(&scene, destination, port);
                assert_eq!(reason, Reason::ProxyToOwnAddress, "{destination}:{port}");
                assert_eq!(reason.action(), Action::ToInbound);
            }
        }
    }
}

#[test]
fn o7_the_proxy_to_other_loopback_addresses_goes_to_the_inbound_port() {
    let scene = Scene::default_pod();
    for dial in [AS_PROXY, AS_PROXY.from("127.0.0.1")] {
        for destination in ["127.0.0.2", "127.0.0.6"] {
            assert_eq!(dial.to(&scene, destination, 15002), Reason::ProxyToOwnAddress, "{destination}");
        }
    }
    assert_eq!(AS_PROXY.from("::1").to(&scene, "::6", 15002), Reason::ProxyToOwnAddress);
}

#[test]
fn o8_who_is_bound_to_the_passthrough_source_goes_direct() {
    let scene = Scene::default_pod();
    for family in FAMILIES {
        for dial in [AS_PROXY, AS_APP, AS_PROXY_GROUP, AS_PROXY_USER] {
            for destination in [family.pod, family.second, family.localhost] {
                let reason = dial.from(family.passthrough).to(&scene, destination, 80);
                assert_eq!(reason, Reason::PassthroughSource, "{destination}");
            }
        }
        let remote = AS_APP.from(family.passthrough).to(&scene, family.remote, 80);
        assert_eq!(remote.action(), Action::ToOutbound, "the source means nothing outside of the pod");
    }
    assert_eq!(Reason::PassthroughSource.action(), Action::Direct);
}

#[test]
fn o9_the_proxy_to_localhost_goes_direct() {
    let scene = Scene::default_pod();
    for family in FAMILIES {
        assert_eq!(AS_PROXY.to(&scene, family.localhost, 80), Reason::Proxy);
    }
    assert_eq!(Reason::Proxy.action(), Action::Direct);
}

#[test]
fn o10_the_proxy_to_a_remote_address_goes_direct() {
    let scene = Scene::default_pod();
    for family in FAMILIES {
        for port in [1, 53, 80, 15008, 65535] {
            assert_eq!(AS_PROXY.to(&scene, family.remote, port), Reason::Proxy);
        }
    }
}

#[test]
fn o11_the_proxy_to_its_own_tunnel_or_an_excluded_port_goes_direct() {
    let scene = Scene::default_pod();
    for family in FAMILIES {
        assert_eq!(AS_PROXY.to(&scene, family.pod, 15008), Reason::Proxy);
        assert_eq!(AS_PROXY.to(&scene, family.pod, 15020), Reason::ExcludedPort);
        assert_eq!(AS_PROXY.to(&scene, family.remote, 15020), Reason::ExcludedPort);
    }
}

#[test]
fn o12_the_proxys_group_alone_goes_direct_everywhere() {
    let scene = Scene::default_pod();
    for family in FAMILIES {
        assert_eq!(AS_PROXY_GROUP.to(&scene, family.remote, 80), Reason::ProxyGroup);
        assert_eq!(AS_PROXY_GROUP.to(&scene, family.pod, 80), Reason::AppToOwnAddress);
        assert_eq!(AS_PROXY_GROUP.to(&scene, family.localhost, 80), Reason::AppToOwnAddress);
    }
    assert_eq!(Reason::ProxyGroup.action(), Action::Direct);
}

#[test]
fn o13_the_proxys_user_alone_is_the_proxy() {
    let scene = Scene::default_pod();
    for family in FAMILIES {
        assert_eq!(AS_PROXY_USER.to(&scene, family.remote, 80), Reason::Proxy);
        assert_eq!(AS_PROXY_USER.to(&scene, family.pod, 80), Reason::ProxyToOwnAddress);
    }
}

/// Only the primary gid is a fact of the verdict, so a supplementary group cannot be one.
#[test]
fn o14_a_supplementary_group_is_no_bypass() {
    let scene = Scene::default_pod();
    for family in FAMILIES {
        assert_eq!(AS_APP.to(&scene, family.remote, 80).action(), Action::ToOutbound);
    }
}

#[test]
fn o15_an_included_loopback_range_captures_loopback_but_not_localhost() {
    let scene = Scene { included_ranges: Some(ranges(&["127.0.0.0/8"])), ..Scene::default_pod() };
    assert_eq!(AS_APP.to(&scene, "127.0.0.2", 80), Reason::IncludedRange);
    assert_eq!(AS_APP.to(&scene, "127.0.0.1", 80), Reason::Localhost);
    assert_eq!(AS_APP.to(&scene, "10.0.0.5", 80), Reason::NotIncluded);
    assert_eq!(AS_APP.to(&scene, "192.0.2.9", 80), Reason::NotIncluded);
    assert_eq!(AS_PROXY.to(&scene, "127.0.0.2", 80), Reason::ProxyToOwnAddress);
    assert_eq!(AS_PROXY_GROUP.to(&scene, "10.0.0.5", 80), Reason::ProxyToOwnAddress);
    assert_eq!(AS_PROXY_GROUP.to(&scene, "127.0.0.1", 80), Reason::ProxyGroup);

    let with_own = Scene { included_ranges: Some(ranges(&["127.0.0.0/8", "10.0.0.0/8"])), ..scene };
    assert_eq!(AS_APP.to(&with_own, "10.0.0.5", 80), Reason::IncludedRange);
}

#[test]
fn o15_holds_for_both_families_when_either_is_included() {
    let scene = Scene {
        included_ranges: Some(ranges(&["::1/128", "2001:db8::/64", "10.0.0.0/8"])),
        ..Scene::default_pod()
    };
    assert_eq!(AS_APP.to(&scene, "::1", 80), Reason::Localhost);
    assert_eq!(AS_APP.to(&scene, "2001:db8::5", 80), Reason::IncludedRange);
    assert_eq!(AS_APP.to(&scene, "10.0.0.5", 80), Reason::IncludedRange);
    assert_eq!(AS_APP.to(&scene, "127.0.0.2", 80), Reason::NotIncluded);
}

#[test]
fn a_tie_goes_to_the_rule_that_istio_init_has_first() {
    let scene = Scene {
        excluded_outbound: vec![80, 81],
        included_outbound: vec![80, 443, 3306],
        included_ranges: Some(ranges(&["10.96.0.0/16", "fd00:96::/32"])),
        excluded_ranges: ranges(&["10.96.0.0/12", "192.0.2.0/24", "fd00:96::/16", "2001:db8:9::/48"]),
        ..Scene::default_pod()
    };
    for family in FAMILIES {
        let app = |destination, port| AS_APP.to(&scene, destination, port);
        assert_eq!(app(family.service, 80), Reason::ExcludedPort, "before the included port");
        assert_eq!(app(family.pod, 81), Reason::ExcludedPort, "before the own address");
        assert_eq!(AS_PROXY.to(&scene, family.pod, 81), Reason::ExcludedPort, "before the proxy");
        let passthrough = AS_PROXY.from(family.passthrough);
        assert_eq!(passthrough.to(&scene, family.pod, 81), Reason::ExcludedPort, "before the source");
        assert_eq!(app(family.service, 443), Reason::ExcludedRange, "before the included port");
        assert_eq!(app(family.service, 8080), Reason::ExcludedRange, "though the included range is narrower");
        assert_eq!(AS_PROXY.to(&scene, family.remote, 443), Reason::Proxy, "before the lists");
        assert_eq!(AS_PROXY_GROUP.to(&scene, family.remote, 443), Reason::ProxyGroup, "before the lists");
    }
    let elsewhere = AS_APP.to(&scene, "198.51.100.1", 443);
    assert_eq!(elsewhere, Reason::IncludedPort, "though no included range holds it");
    assert_eq!(AS_APP.to(&scene, "198.51.100.1", 8080), Reason::NotIncluded);
}

/// What the kernel makes of them was seen on Linux 6.18, bound and unbound.
#[test]
fn an_unspecified_destination_is_what_the_kernel_makes_of_it() {
    for (source, destination, effective) in [
        (None, "0.0.0.0", "127.0.0.1"),
        (Some("0.0.0.0"), "0.0.0.0", "127.0.0.1"),
        (Some("10.0.0.5"), "0.0.0.0", "10.0.0.5"),
        (Some("127.0.0.6"), "0.0.0.0", "127.0.0.6"),
        (None, "::", "::1"),
        (Some("2001:db8::5"), "::", "::1"),
        (Some("::ffff:10.0.0.5"), "::", "127.0.0.1"),
        (Some("::ffff:0.0.0.0"), "::", "127.0.0.1"),
        (None, "192.0.2.9", "192.0.2.9"),
    ] {
        let connection = Outbound {
            uid: APP,
            gid: APP,
            is_impostor: false,
            is_before_proxy: false,
            is_marked: false,
            source: source.map_or(Address::UNSPECIFIED, |source| ip(source).into()),
            destination: ip(destination).into(),
            port: Port::new(80),
            interface: 0,
        };
        let got = IpAddr::from(connection.effective_destination());
        assert_eq!(got, ip(effective), "{destination} from {source:?}");
    }
    let scene = Scene::default_pod();
    assert_eq!(AS_APP.to(&scene, "0.0.0.0", 80), Reason::AppToOwnAddress);
    assert_eq!(AS_PROXY.to(&scene, "0.0.0.0", 80), Reason::Proxy);
    assert_eq!(AS_PROXY.from("10.0.0.5").to(&scene, "0.0.0.0", 80), Reason::ProxyToOwnAddress);
    assert_eq!(AS_PROXY.from("2001:db8::5").to(&scene, "::", 80), Reason::Proxy);
}

#[test]
fn with_tproxy_the_proxys_group_is_the_proxy_within_its_pod() {
    let scene = Scene { tproxy: true, ..Scene::default_pod() };
    let proxy = Dial { uid: ROOT, gid: PROXY, source: None };
    for family in FAMILIES {
        assert_eq!(proxy.to(&scene, family.pod, 80), Reason::ProxyToOwnAddress);
        assert_eq!(proxy.to(&scene, family.pod, 15008), Reason::Proxy);
        assert_eq!(proxy.to(&scene, family.pod, 15020), Reason::ExcludedPort);
        assert_eq!(proxy.to(&scene, family.localhost, 80), Reason::Proxy);
        assert_eq!(proxy.to(&scene, family.remote, 80), Reason::ProxyGroup);
        assert_eq!(proxy.from(family.passthrough).to(&scene, family.pod, 80), Reason::PassthroughSource);
        assert_eq!(AS_APP.to(&scene, family.pod, 80), Reason::AppToOwnAddress);
    }
    assert_eq!(proxy.to(&scene, "127.0.0.2", 80), Reason::ProxyToOwnAddress);
}

#[test]
fn with_tproxy_what_the_proxys_group_sends_to_its_pod_meets_the_lists_of_inbound_ports() {
    let proxy = Dial { uid: ROOT, gid: PROXY, source: None };
    let excluding = Scene { tproxy: true, excluded_inbound: vec![3306], ..Scene::default_pod() };
    let including = Scene { included_inbound: Some(vec![80]), ..excluding.clone() };
    for family in FAMILIES {
        for scene in [&excluding, &including] {
            assert_eq!(proxy.to(scene, family.pod, 3306), Reason::AppToOwnAddress);
            assert_eq!(proxy.to(scene, family.pod, 80), Reason::ProxyToOwnAddress);
            assert_eq!(
                AS_PROXY.to(scene, family.pod, 3306),
                Reason::ProxyToOwnAddress,
                "by its uid, it does not"
            );
        }
    }
}

#[test]
fn a_pod_without_addresses_of_a_family_is_left_to_the_kernel() {
    let v4_only = Scene { own: addresses(&["10.0.0.5", "fe80::5"]), ..Scene::default_pod() };
    assert_eq!(AS_APP.to(&v4_only, "2001:db8:9::9", 80), Reason::NoAddressOfFamily);
    assert_eq!(AS_APP.to(&v4_only, "192.0.2.9", 80), Reason::AllOutbound);
    let v6_only = Scene { own: addresses(&["2001:db8::5", "::6"]), ..Scene::default_pod() };
    assert_eq!(AS_APP.to(&v6_only, "192.0.2.9", 80), Reason::NoAddressOfFamily);
    assert_eq!(AS_APP.to(&v6_only, "2001:db8:9::9", 80), Reason::AllOutbound);
    assert_eq!(
        AS_PROXY.to(&v6_only, "127.0.0.6", 15002),
        Reason::ProxyToOwnAddress,
        "IPv4 loopback is there"
    );
}

/// istio-init programs no IPv6 rules for a pod whose first address is IPv4 and whose proxy was not told
/// `ISTIO_DUAL_STACK`: such a proxy has no IPv6 listener.
#[test]
fn without_dual_stack_ipv6_is_left_alone_beside_ipv4() {
    let scene = Scene { dual_stack: false, ..Scene::default_pod() };
    assert_eq!(AS_APP.to(&scene, "2001:db8:9::9", 80), Reason::Ipv6NotCaptured);
    assert_eq!(AS_PROXY.to(&scene, "2001:db8::5", 80), Reason::Proxy);
    assert_eq!(AS_APP.to(&scene, "2001:db8::5", 80), Reason::AppToOwnAddress);
    assert_eq!(arrive(&scene, "2001:db8:9::9", "2001:db8::5", 80), Reason::Ipv6NotCapturedInbound);
    assert_eq!(AS_APP.to(&scene, "192.0.2.9", 80), Reason::AllOutbound);
    assert_eq!(arrive(&scene, "192.0.2.9", "10.0.0.5", 80), Reason::AllInbound);
    assert_eq!(Reason::Ipv6NotCaptured.action(), Action::Direct);
    assert_eq!(Reason::Ipv6NotCapturedInbound.action(), Action::Direct);

    let v6_only = Scene { dual_stack: false, own: addresses(&["2001:db8::5"]), ..Scene::default_pod() };
    assert_eq!(AS_APP.to(&v6_only, "2001:db8:9::9", 80), Reason::AllOutbound);
    assert_eq!(arrive(&v6_only, "2001:db8:9::9", "2001:db8::5", 80), Reason::AllInbound);
}
