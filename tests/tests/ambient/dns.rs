//! DNS: the app's goes to ztunnel's DNS, but for what stays in the pod; ztunnel's own goes out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};
use veer_tests::dns::{self, DNS, Responder};
use veer_tests::manifest::Manifest;
use veer_tests::mesh::{PATIENCE, connect, dial, tcp};
use veer_tests::pod::{REMOTE_V4, REMOTE_V6};
use veer_tests::socket_maker::Maker;
use veer_tests::wait;

use super::{Scene, localhost};

/// A service address: no interface has it, and nobody answers there.
const CLUSTER_DNS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10))];
const REMOTES: [IpAddr; 2] = [IpAddr::V4(REMOTE_V4), IpAddr::V6(REMOTE_V6)];

/// Asks by UDP; the reply must come from whom was asked. Tells who answered, and whom they saw.
#[track_caller]
fn ask(socket: Socket, resolver: SocketAddr, is_connected: bool) -> String {
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(wait::scaled(PATIENCE))).unwrap();
    let question = dns::question(7);
    if is_connected {
        socket.connect(resolver).unwrap();
        socket.send(&question).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), resolver);
    } else {
        socket.send_to(&question, resolver).unwrap();
    }
    let mut reply = [0; 512];
    let (length, from) = socket.recv_from(&mut reply).unwrap();
    assert_eq!(from, resolver);
    dns::told(reply.get(..length).unwrap()).unwrap().1
}

fn udp(maker: &Maker, to: SocketAddr) -> Socket {
    maker.socket(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP)).unwrap()
}

#[track_caller]
fn ask_by_tcp(maker: &Maker, resolver: SocketAddr) -> String {
    let mut socket = tcp(maker, resolver).unwrap();
    connect(&socket, resolver).unwrap();
    socket.set_read_timeout(Some(wait::scaled(PATIENCE))).unwrap();
    dns::send_framed(&mut socket, &dns::question(7)).unwrap();
    dns::told(&dns::receive_framed(&mut socket).unwrap()).unwrap().1
}

#[test]
fn the_apps_questions_go_to_ztunnel_and_are_answered_as_by_whom_was_asked() {
    let scene = Scene::new();
    for ((own, _), resolver) in scene.families().into_iter().zip(CLUSTER_DNS) {
        let resolver = SocketAddr::new(resolver, DNS);
        for maker in [scene.pod.app(), scene.pod.proxy()] {
            for is_connected in [true, false] {
                let told = ask(udp(maker, resolver), resolver, is_connected);
                assert!(told.starts_with("ztunnel udp ") && told.contains(&own.to_string()), "{told}");
            }
            let told = ask_by_tcp(maker, resolver);
            assert!(told.starts_with("ztunnel tcp ") && told.contains(&resolver.to_string()), "{told}");
        }
    }
}

#[test]
fn ztunnels_own_questions_go_out() {
    let scene = Scene::new();
    let _world = Responder::in_world(&scene.world, &REMOTES).unwrap();
    for resolver in REMOTES {
        let resolver = SocketAddr::new(resolver, DNS);
        for is_connected in [true, false] {
            let told = ask(scene.ztunnel.udp(resolver).unwrap(), resolver, is_connected);
            assert!(told.starts_with("world udp "), "{told}");
        }
    }
    assert_eq!(scene.ztunnel.asked(), 0);
}

#[test]
fn a_resolver_in_the_pod_is_asked_by_udp_and_by_tcp_on_localhost_alone() {
    let scene = Scene::new();
    let own: Vec<IpAddr> = scene.families().into_iter().map(|(own, _)| own).collect();
    let localhosts = [localhost(false, DNS).ip(), localhost(true, DNS).ip()];
    let _in_pod =
        Responder::at("own", scene.pod.root(), &[own.clone(), localhosts.to_vec()].concat()).unwrap();
    for (localhost, own) in localhosts.into_iter().zip(own) {
        let (localhost, own) = (SocketAddr::new(localhost, DNS), SocketAddr::new(own, DNS));
        for resolver in [localhost, own] {
            for is_connected in [true, false] {
                let told = ask(udp(scene.pod.app(), resolver), resolver, is_connected);
                assert!(told.starts_with("own udp "), "{resolver}: {told}");
            }
        }
        assert!(ask_by_tcp(scene.pod.app(), localhost).starts_with("own tcp "));
        // As under Istio's rules, which except localhost alone.
        assert!(ask_by_tcp(scene.pod.app(), own).starts_with("ztunnel tcp "));
    }
}

#[test]
fn a_pod_may_ask_by_itself() {
    let off = |pod: Manifest| pod.with_annotation("ambient.istio.io/dns-capture", "false");
    let scene = Scene::with(off, &[]);
    let _world = Responder::in_world(&scene.world, &REMOTES).unwrap();
    for resolver in REMOTES.map(|ip| SocketAddr::new(ip, DNS)) {
        let told = ask(udp(scene.pod.app(), resolver), resolver, true);
        assert!(told.starts_with("world udp "), "{told}");
        assert_eq!(dial(scene.pod.app(), resolver, &scene.listeners).unwrap().0.at, "outbound");
    }
}
