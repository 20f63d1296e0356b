//! Whose DNS is captured: not the proxy's, nor an excluded port's.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use veer_tests::dns::{Responder, question};
use veer_tests::launch::Identity;
use veer_tests::mesh::{Mesh, PATIENCE, proxy_listeners};
use veer_tests::pod::{REMOTE_V4, REMOTE_V6};
use veer_tests::socket_maker::Maker;

use super::{ALL, EBPF, NFTABLES, Scene, all, at, hear, tcp, udp};

/// Who answers a question by UDP, asked with and without connect().
fn answerers(maker: &Maker, resolver: IpAddr) -> [String; 2] {
    let unconnected = udp(maker, resolver);
    unconnected.send_to(&question(1), at(resolver)).unwrap();
    let connected = udp(maker, resolver);
    connected.connect(at(resolver)).unwrap();
    assert_eq!(connected.peer_addr().unwrap(), at(resolver));
    connected.send(&question(1)).unwrap();
    [&unconnected, &connected].map(|socket: &UdpSocket| {
        let (_, told, from) = hear(socket);
        assert_eq!(from, at(resolver));
        told.split_once(' ').unwrap().0.to_owned()
    })
}

/// Who answers a question by TCP.
fn answerer(maker: &Maker, resolver: IpAddr) -> String {
    tcp::ask(maker, resolver).1.split_once(' ').unwrap().0.to_owned()
}

#[test]
fn the_proxys_own_dns_goes_to_the_resolver_by_either_of_its_ids() {
    for scene in all() {
        let pod = scene.pod();
        let by_gid = pod.maker(Identity::new(1000, 1337)).unwrap();
        let by_uid = pod.maker(Identity::new(1337, 1000)).unwrap();
        let by_other_group = pod.maker(Identity::new(1000, 1000).with_groups(&[1337])).unwrap();
        let rows =
            [(pod.proxy(), "world"), (&by_gid, "world"), (&by_uid, "world"), (&by_other_group, "proxy")];
        for (maker, expected) in rows {
            for resolver in [IpAddr::from(REMOTE_V4), REMOTE_V6.into()] {
                let who = maker.identity();
                assert_eq!(answerers(maker, resolver), [expected; 2], "{:?}, {who:?}", scene.by);
                assert_eq!(answerer(maker, resolver), expected, "{:?}, {who:?}", scene.by);
            }
        }
    }
}

#[test]
fn the_proxy_asks_a_resolver_in_its_own_pod_without_detour() {
    for scene in all() {
        let pod = scene.pod();
        let own = [Ipv4Addr::LOCALHOST.into(), IpAddr::from(pod.v4()), pod.v6().into()];
        let resolver = Responder::at("local", pod.root(), &own).unwrap();
        for address in own {
            assert_eq!(answerers(pod.proxy(), address), ["local"; 2], "{:?}, {address}", scene.by);
            assert_eq!(answerer(pod.proxy(), address), "local", "{:?}, {address}", scene.by);
            assert_eq!(answerers(pod.app(), address), ["proxy"; 2], "{:?}, {address}", scene.by);
            assert_eq!(answerer(pod.app(), address), "proxy", "{:?}, {address}", scene.by);
        }
        assert_eq!(resolver.asked(), 9, "{:?}", scene.by);
    }
}

/// istio-init sends this one to the app's inbound port, by an exception that it has for the uid alone.
#[test]
fn the_proxys_group_asks_a_resolver_in_its_own_pod_without_detour() {
    for scene in [EBPF, NFTABLES].map(Scene::new) {
        let pod = scene.pod();
        let by_gid = pod.maker(Identity::new(1000, 1337)).unwrap();
        let _resolver = Responder::at("local", pod.root(), &[pod.v4().into()]).unwrap();
        assert_eq!(answerers(&by_gid, pod.v4().into()), ["local"; 2], "{:?}", scene.by);
        assert_eq!(answerer(&by_gid, pod.v4().into()), "local", "{:?}", scene.by);
    }
}

#[test]
fn an_excluded_port_53_is_not_captured() {
    for by in ALL {
        let scene = Scene::with(by, |pod| pod.with_traffic("excludeOutboundPorts", "53"), &["-o", "53"]);
        for resolver in [IpAddr::from(REMOTE_V4), REMOTE_V6.into()] {
            assert_eq!(answerers(scene.pod().app(), resolver), ["world"; 2], "{by:?}");
            assert_eq!(answerer(scene.pod().app(), resolver), "world", "{by:?}");
        }
    }
}

#[test]
fn no_range_keeps_dns_from_being_captured() {
    let excluded = "0.0.0.0/0,::/0";
    for by in ALL {
        let scene =
            Scene::with(by, |pod| pod.with_traffic("excludeOutboundIPRanges", excluded), &["-x", excluded]);
        for resolver in [IpAddr::from(REMOTE_V4), REMOTE_V6.into()] {
            assert_eq!(answerers(scene.pod().app(), resolver), ["proxy"; 2], "{by:?}");
            assert_eq!(answerer(scene.pod().app(), resolver), "proxy", "{by:?}");
        }
    }
}

#[test]
fn without_dual_stack_the_dns_of_ipv6_is_not_captured() {
    for by in [EBPF, NFTABLES] {
        let scene = Scene::with(by, |pod| pod.with_proxy_env("ISTIO_DUAL_STACK", "false"), &[]);
        assert_eq!(answerers(scene.pod().app(), REMOTE_V4.into()), ["proxy"; 2], "{by:?}");
        assert_eq!(answerers(scene.pod().app(), REMOTE_V6.into()), ["world"; 2], "{by:?}");
        assert_eq!(answerer(scene.pod().app(), REMOTE_V6.into()), "world", "{by:?}");
    }
}

#[test]
fn a_pod_that_does_not_capture_dns_asks_its_resolver() {
    let mesh = Mesh::new().unwrap();
    let listeners = proxy_listeners(&mesh.pod).unwrap();
    let world = Responder::in_world(&mesh.world, &[REMOTE_V4.into(), REMOTE_V6.into()]).unwrap();
    for resolver in [IpAddr::from(REMOTE_V4), REMOTE_V6.into()] {
        assert_eq!(answerers(mesh.pod.app(), resolver), ["world"; 2]);
        // TCP is as any other.
        let (arrival, ..) = veer_tests::mesh::dial(mesh.pod.app(), at(resolver), &listeners).unwrap();
        assert_eq!((arrival.at, arrival.original), ("outbound", Some(at(resolver))));
    }
    assert_eq!(world.asked(), 4);
    assert_eq!(mesh.counter("reasons", "dns").unwrap(), 0);
}

#[test]
fn a_socket_older_than_the_enrolment_is_captured_from_its_next_question_on() {
    let mesh = Mesh::not_enrolled().unwrap();
    let pod = &mesh.pod;
    let _world = Responder::in_world(&mesh.world, &[REMOTE_V4.into()]).unwrap();
    let _proxy = Responder::of_proxy(pod).unwrap();
    let old = udp(pod.app(), REMOTE_V4.into());
    old.send_to(&question(1), at(REMOTE_V4)).unwrap();
    assert!(hear(&old).1.starts_with("world udp"));
    mesh.agent.enrol_as(pod, &pod.manifest().with_proxy_env("ISTIO_META_DNS_CAPTURE", "true")).unwrap();
    old.send_to(&question(2), at(REMOTE_V4)).unwrap();
    let client = SocketAddr::new(pod.v4().into(), old.local_addr().unwrap().port());
    assert_eq!(hear(&old), (2, format!("proxy udp {client}"), at(REMOTE_V4)));
    old.set_read_timeout(Some(PATIENCE)).unwrap();
}
