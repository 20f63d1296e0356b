//! Connected sockets: glibc's, Go's and those of c-ares, which compares the sender of each reply.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use rustix::net::connect_unspec;
use veer_tests::dns::question;
use veer_tests::pod::REMOTE_V4;

use super::{
    CLUSTER_DNS, CLUSTER_DNS_V6, OTHER_DNS, Scene, all, at, bound, by_proxy, hear, in_all_forms, mapped, udp,
};

/// Asks on a connected socket, and wants the proxy to have seen `client` and the reply to be its peer's. Where
/// one port has asked two resolvers, iptables gives the second question another one; veer need not.
fn ask(scene: &Scene, socket: &UdpSocket, id: u16, client: IpAddr) {
    let peer = socket.peer_addr().unwrap();
    assert_eq!(socket.send(&question(id)).unwrap(), question(id).len());
    let (heard, mut told, from) = hear(socket);
    let mut expected = by_proxy(client, socket);
    if scene.by.is_nat() {
        (told, expected) = (without_port(&told), without_port(&expected));
    }
    assert_eq!((heard, told, from), (id, expected, peer), "{:?}, {peer}", scene.by);
}

fn without_port(told: &str) -> String {
    told.rsplit_once(':').unwrap().0.to_owned()
}

#[test]
fn a_connected_socket_sees_the_resolver_that_it_asked() {
    for scene in all() {
        for resolver in in_all_forms(scene.resolvers()) {
            for maker in [scene.pod().app(), scene.pod().root()] {
                let socket = udp(maker, resolver);
                socket.connect(at(resolver)).unwrap();
                let client = scene.client(resolver);
                assert_eq!(socket.peer_addr().unwrap(), at(resolver), "{:?}", scene.by);
                assert_eq!(socket.local_addr().unwrap().ip().to_canonical(), client, "{:?}", scene.by);
                for id in 0..3 {
                    ask(&scene, &socket, id, client);
                }
            }
        }
        assert_eq!(scene.world.asked(), 0, "{:?}", scene.by);
    }
}

#[test]
fn a_socket_that_connects_again_sees_whom_it_asks_now() {
    for scene in all() {
        for (first, second) in [
            (CLUSTER_DNS.into(), OTHER_DNS.into()),
            (mapped(CLUSTER_DNS), mapped(OTHER_DNS)),
            (IpAddr::from(CLUSTER_DNS_V6), scene.pod().v6().into()),
        ] {
            let socket = udp(scene.pod().app(), first);
            for (id, resolver) in [(1, first), (2, second), (3, first)] {
                socket.connect(at(resolver)).unwrap();
                assert_eq!(socket.peer_addr().unwrap(), at(resolver));
                ask(&scene, &socket, id, scene.client(first));
            }
        }
    }
}

#[test]
fn a_socket_that_is_connected_elsewhere_afterwards_is_a_plain_one() {
    for scene in all() {
        let server = scene.mesh.world.socket(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
        let to = SocketAddr::from((REMOTE_V4, 5000));
        server.bind(&to.into()).unwrap();
        let server = UdpSocket::from(server);
        server.set_read_timeout(Some(veer_tests::mesh::PATIENCE)).unwrap();
        let socket = udp(scene.pod().app(), CLUSTER_DNS.into());
        socket.connect(at(CLUSTER_DNS)).unwrap();
        ask(&scene, &socket, 1, scene.pod().v4().into());
        socket.connect(to).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), to);
        socket.send(b"ping").unwrap();
        let mut buffer = [0; 16];
        let (_, client) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(client, SocketAddr::new(scene.pod().v4().into(), socket.local_addr().unwrap().port()));
        server.send_to(b"pong", client).unwrap();
        assert_eq!(socket.recv_from(&mut buffer).unwrap(), (4, to));
    }
}

#[test]
fn a_socket_that_is_disconnected_asks_anybody() {
    for scene in all() {
        for (first, second) in
            [(CLUSTER_DNS.into(), OTHER_DNS.into()), (mapped(CLUSTER_DNS), mapped(OTHER_DNS))]
        {
            let socket = udp(scene.pod().app(), first);
            socket.connect(at(first)).unwrap();
            ask(&scene, &socket, 1, scene.client(first));
            connect_unspec(&socket).unwrap();
            assert!(socket.peer_addr().is_err());
            socket.send_to(&question(2), at(second)).unwrap();
            assert_eq!(
                hear(&socket),
                (2, by_proxy(scene.client(second), &socket), at(second)),
                "{:?}",
                scene.by
            );
            socket.connect(at(first)).unwrap();
            ask(&scene, &socket, 3, scene.client(first));
        }
    }
}

#[test]
fn a_socket_bound_to_an_address_keeps_it_and_its_port() {
    for scene in all() {
        let pod = scene.pod();
        for (source, resolver) in [
            (IpAddr::from(pod.v4()), IpAddr::from(CLUSTER_DNS)),
            (mapped(pod.v4()), mapped(CLUSTER_DNS)),
            (pod.v6().into(), CLUSTER_DNS_V6.into()),
            (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()),
        ] {
            for port in [0, 5353] {
                let socket = bound(pod.app(), (source, port));
                socket.connect(at(resolver)).unwrap();
                ask(&scene, &socket, 9, source.to_canonical());
            }
        }
    }
}

/// The kernel cannot give such a socket an address any more, so it takes localhost.
#[test]
fn a_socket_bound_to_a_port_alone_is_answered() {
    for scene in all() {
        let pod = scene.pod();
        // Each has a port of its own: whoever made the socket may hold it for a moment after it is closed here.
        for (any, port, resolver, own) in [
            ("0.0.0.0", 5353, IpAddr::from(CLUSTER_DNS), IpAddr::from(pod.v4())),
            ("::", 5354, mapped(CLUSTER_DNS), pod.v4().into()),
            ("::", 5355, CLUSTER_DNS_V6.into(), pod.v6().into()),
        ] {
            let socket = bound(pod.app(), (any.parse::<IpAddr>().unwrap(), port));
            socket.connect(at(resolver)).unwrap();
            let localhost = if own.is_ipv4() { "127.0.0.1" } else { "::1" };
            let client = if scene.by.is_nat() { own } else { localhost.parse().unwrap() };
            assert_eq!(socket.peer_addr().unwrap(), at(resolver));
            ask(&scene, &socket, 9, client);
        }
    }
}

/// A `sockaddr_in` on an `AF_INET6` socket runs the hooks of IPv4.
#[test]
fn an_ipv6_socket_connected_with_an_ipv4_address_is_captured() {
    for scene in all() {
        let socket = udp(scene.pod().app(), mapped(CLUSTER_DNS));
        socket.connect(at(CLUSTER_DNS)).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), at(mapped(CLUSTER_DNS)));
        ask(&scene, &socket, 7, scene.pod().v4().into());
    }
}
