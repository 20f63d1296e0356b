//! The rows on DNS capture, TCP and UDP, for both families.

use super::{APP, PROXY, ROOT, Scene, addresses, ip};
use crate::address::{Address, Port};
use crate::reason::{Action, Reason};
use crate::verdict::{self, Outbound};

const APPS: [(u32, u32); 2] = [(APP, APP), (ROOT, ROOT)];
/// Resolvers of all kinds, of both families.
const RESOLVERS: [&str; 11] = [
    "10.96.0.10",
    "192.0.2.53",
    "127.0.0.1",
    "127.0.0.53",
    "10.0.0.5",
    "192.168.7.5",
    "0.0.0.0",
    "2001:db8:9::53",
    "::1",
    "2001:db8::5",
    "::",
];

fn capturing() -> Scene {
    Scene { captures_dns: true, ..Scene::default_pod() }
}

fn facts((uid, gid): (u32, u32), source: &str, destination: &str, port: u16) -> Outbound {
    let (source, destination) = (ip(source), ip(destination));
    let source = if source.is_unspecified() { Address::UNSPECIFIED } else { source.into() };
    let (destination, port) = (destination.into(), Port::new(port));
    Outbound {
        uid,
        gid,
        is_impostor: false,
        is_before_proxy: false,
        is_marked: false,
        source,
        destination,
        port,
        interface: 0,
    }
}

fn tcp(scene: &Scene, who: (u32, u32), destination: &str, port: u16) -> Reason {
    verdict::outbound(&scene.policy(), scene, &facts(who, "::", destination, port))
}

fn udp(scene: &Scene, who: (u32, u32), destination: &str, port: u16) -> Reason {
    verdict::datagram(&scene.policy(), scene, &facts(who, "::", destination, port))
}

#[test]
fn dns_of_an_app_goes_to_the_dns_port_whatever_resolver_it_asks() {
    let scene = capturing();
    for who in APPS {
        for resolver in RESOLVERS {
            assert_eq!(tcp(&scene, who, resolver, 53), Reason::Dns, "TCP to {resolver}");
            assert_eq!(udp(&scene, who, resolver, 53), Reason::Dns, "UDP to {resolver}");
        }
    }
    assert_eq!(Reason::Dns.action(), Action::ToDns);
}

#[test]
fn udp_to_any_other_port_goes_direct() {
    let scene = capturing();
    for port in [1, 52, 54, 443, 853, 5353, 15053] {
        assert_eq!(udp(&scene, APPS[0], "192.0.2.9", port), Reason::NotDns, "{port}");
    }
    assert_eq!(Reason::NotDns.action(), Action::Direct);
    assert_eq!(tcp(&scene, APPS[0], "192.0.2.9", 853), Reason::AllOutbound);
}

#[test]
fn dns_of_the_proxy_goes_direct_by_either_of_its_ids() {
    let scene = capturing();
    for who in [(PROXY, PROXY), (PROXY, APP), (APP, PROXY)] {
        for resolver in RESOLVERS {
            assert_eq!(
                tcp(&scene, who, resolver, 53).action(),
                Action::Direct,
                "TCP of {who:?} to {resolver}"
            );
            assert_eq!(
                udp(&scene, who, resolver, 53).action(),
                Action::Direct,
                "UDP of {who:?} to {resolver}"
            );
        }
    }
    let tproxy = Scene { tproxy: true, ..capturing() };
    assert_eq!(tcp(&tproxy, (ROOT, PROXY), "10.0.0.5", 53), Reason::Proxy);
    assert_eq!(udp(&tproxy, (ROOT, PROXY), "10.0.0.5", 53), Reason::ProxyGroup);
}

#[test]
fn without_capture_dns_is_as_everything_else() {
    let scene = Scene::default_pod();
    assert_eq!(tcp(&scene, APPS[0], "10.96.0.10", 53), Reason::AllOutbound);
    assert_eq!(tcp(&scene, APPS[0], "127.0.0.53", 53), Reason::AppToOwnAddress);
    assert_eq!(tcp(&scene, (PROXY, PROXY), "10.0.0.5", 53), Reason::ProxyToOwnAddress);
    assert_eq!(udp(&scene, APPS[0], "10.96.0.10", 53), Reason::NotDns);
}

#[test]
fn an_excluded_port_53_and_a_left_out_group_keep_their_dns() {
    let scene = Scene { excluded_outbound: vec![53], ..capturing() };
    assert_eq!(tcp(&scene, APPS[0], "10.96.0.10", 53), Reason::ExcludedPort);
    assert_eq!(udp(&scene, APPS[0], "10.96.0.10", 53), Reason::ExcludedPort);
    let scene = Scene { groups: Err(vec![APP]), ..capturing() };
    assert_eq!(tcp(&scene, APPS[0], "127.0.0.53", 53), Reason::OwnerGroup);
    assert_eq!(udp(&scene, APPS[0], "127.0.0.53", 53), Reason::OwnerGroup);
    assert_eq!(udp(&scene, APPS[1], "127.0.0.53", 53), Reason::Dns);
}

/// Excluded ranges come after DNS; so do the ranges that alone are captured.
#[test]
fn no_range_keeps_a_resolver_from_being_captured() {
    let none = Scene { included_ranges: Some(vec![]), ..capturing() };
    let excluded = Scene { excluded_ranges: super::ranges(&["0.0.0.0/0", "::/0"]), ..capturing() };
    for scene in [none, excluded] {
        for resolver in RESOLVERS {
            assert_eq!(tcp(&scene, APPS[0], resolver, 53), Reason::Dns);
            assert_eq!(udp(&scene, APPS[0], resolver, 53), Reason::Dns);
        }
    }
}

#[test]
fn what_the_proxy_hands_on_to_its_app_is_not_captured() {
    let scene = capturing();
    for (source, own, remote) in
        [("127.0.0.6", "10.0.0.5", "10.96.0.10"), ("::6", "2001:db8::5", "fd00:96::10")]
    {
        let to = |destination| {
            verdict::datagram(&scene.policy(), &scene, &facts(APPS[0], source, destination, 53))
        };
        assert_eq!(to(own), Reason::PassthroughSource);
        assert_eq!(to(remote), Reason::Dns);
    }
}

#[test]
fn a_family_that_is_not_captured_keeps_its_dns() {
    let scene = Scene { dual_stack: false, ..capturing() };
    for resolver in ["2001:db8:9::53", "::1"] {
        assert_eq!(udp(&scene, APPS[0], resolver, 53), Reason::Ipv6NotCaptured, "{resolver}");
        assert_eq!(tcp(&scene, APPS[0], resolver, 53).action(), Action::Direct, "{resolver}");
    }
    let v6_only = Scene { own: addresses(&["2001:db8::5"]), ..capturing() };
    assert_eq!(udp(&v6_only, APPS[0], "10.96.0.10", 53), Reason::NoAddressOfFamily);
    assert_eq!(udp(&v6_only, APPS[0], "127.0.0.53", 53), Reason::Dns, "IPv4 loopback is there");
    assert_eq!(udp(&v6_only, APPS[0], "2001:db8:9::53", 53), Reason::Dns);
}
