//! Sockets that are bound before they connect: to an address, a port, a device.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::Socket;
use veer_tests::mesh::{self, APP, Listeners, Mesh, OUTBOUND};
use veer_tests::pod::{REMOTE_V4, ROUTER_V4};

use crate::{
    Compared, Outcome, PORT, TO_V4, TO_V6, assert_redirected, connect, mapped, outcome, peername, remotes,
    tcp,
};

/// The proxy as istio-validation listens: on loopback alone.
fn on_loopback_alone(mesh: &Mesh) -> Listeners {
    let mut listeners = Listeners::default();
    listeners.add("outbound", mesh.pod.proxy(), (Ipv4Addr::LOCALHOST, OUTBOUND)).unwrap();
    listeners.add("outbound", mesh.pod.proxy(), (Ipv6Addr::LOCALHOST, OUTBOUND)).unwrap();
    listeners
}

fn on_eth0(mesh: &Mesh, to: SocketAddr) -> Socket {
    let socket = tcp(mesh.pod.app(), to);
    socket.bind_device(Some(b"eth0")).unwrap();
    socket
}

#[test]
fn a_socket_bound_to_a_device_is_redirected() {
    let mesh = Mesh::new().unwrap();
    let listeners = mesh.proxy_listeners().unwrap();
    for to in remotes() {
        let socket = on_eth0(&mesh, to);
        connect(&socket, to).unwrap();
        let (arrival, _accepted) = listeners.accept().unwrap();
        assert_redirected(&arrival, &mesh.pod, &socket, to);
    }
    mesh.no_hand_off_left().unwrap();
}

#[test]
fn a_socket_bound_to_a_device_or_to_a_port_alone_reaches_a_proxy_on_loopback_alone() {
    let mesh = Mesh::new().unwrap();
    let listeners = on_loopback_alone(&mesh);
    for (to, port) in remotes().into_iter().zip(20_001..) {
        let to_device = on_eth0(&mesh, to);
        let to_port = tcp(mesh.pod.app(), to);
        to_port.bind(&unspecified(to, port).into()).unwrap();
        for socket in [to_device, to_port] {
            connect(&socket, to).unwrap();
            let (arrival, _accepted) = listeners.accept().unwrap();
            assert_redirected(&arrival, &mesh.pod, &socket, to);
        }
    }
    mesh.no_hand_off_left().unwrap();
}

fn unspecified(family: SocketAddr, port: u16) -> SocketAddr {
    let ip: IpAddr =
        if family.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(ip, port)
}

#[test]
fn a_socket_bound_to_an_address_or_a_port_arrives_as_under_istio_init() {
    let compared = Compared::new();
    let (own4, own6) = (compared.mesh.pod.v4(), compared.mesh.pod.v6());
    let own_mapped = mapped(own4, 0).ip();
    let to_mapped = mapped(TO_V4.0, TO_V4.1);
    let rows: [(SocketAddr, SocketAddr, IpAddr); 9] = [
        // bound to, dials, what the proxy sees as the client
        ((Ipv4Addr::UNSPECIFIED, 20_001).into(), TO_V4.into(), own4.into()),
        ((own4, 0).into(), TO_V4.into(), own4.into()),
        ((own4, 20_002).into(), TO_V4.into(), own4.into()),
        ((Ipv6Addr::UNSPECIFIED, 20_003).into(), TO_V6.into(), own6.into()),
        ((own6, 0).into(), TO_V6.into(), own6.into()),
        ((own6, 20_004).into(), TO_V6.into(), own6.into()),
        ((Ipv6Addr::UNSPECIFIED, 20_005).into(), to_mapped, own4.into()),
        ((own_mapped, 0).into(), to_mapped, own4.into()),
        ((own_mapped, 20_006).into(), to_mapped, own4.into()),
    ];
    for (from, to, peer) in rows {
        let came = compared.agree(&format!("{from} to {to}"), |place| {
            let socket = tcp(place.pod.app(), to);
            socket.bind(&from.into()).unwrap();
            let bound = socket.local_addr().unwrap().as_socket().unwrap().port();
            let outcome = outcome(&socket, to, place.listeners);
            assert_eq!(socket.local_addr().unwrap().as_socket().unwrap().port(), bound);
            outcome
        });
        let original = Some(crate::on_the_wire(to));
        assert_eq!(came, Outcome::Arrived { at: "outbound", original, peer, peername: to });
    }
}

#[test]
fn a_socket_bound_to_loopback_stays_in_the_pod_as_under_istio_init() {
    let compared = Compared::new();
    let localhost = IpAddr::from(Ipv4Addr::LOCALHOST);
    let own = SocketAddr::from((compared.mesh.pod.v4(), APP));
    let other_loopback = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), APP));
    for to in [own, other_loopback] {
        for (made_by_proxy, at, original) in [(false, "app", None), (true, "inbound", Some(to))] {
            let came = compared.agree(&format!("{localhost} to {to}"), |place| {
                let maker = if made_by_proxy { place.pod.proxy() } else { place.pod.app() };
                let socket = tcp(maker, to);
                socket.bind(&SocketAddr::new(localhost, 0).into()).unwrap();
                outcome(&socket, to, place.listeners)
            });
            assert_eq!(came, Outcome::Arrived { at, original, peer: localhost, peername: to });
        }
    }
}

#[test]
fn a_socket_bound_to_loopback_is_redirected_to_where_only_ipv6_gets_under_istio_init() {
    // The kernel routes before netfilter sees anything, and lets 127.0.0.1 out of the pod as little as it
    // does without a mesh (EINVAL). Here the proxy gets the connection instead, and it sees what it is.
    let mesh = Mesh::new().unwrap();
    let listeners = mesh.proxy_listeners().unwrap();
    let rows: [(IpAddr, SocketAddr); 4] = [
        (Ipv4Addr::LOCALHOST.into(), TO_V4.into()),
        (Ipv4Addr::new(127, 0, 0, 6).into(), TO_V4.into()),
        (mapped(Ipv4Addr::LOCALHOST, 0).ip(), mapped(TO_V4.0, TO_V4.1)),
        (Ipv6Addr::LOCALHOST.into(), TO_V6.into()),
    ];
    for (from, to) in rows {
        let socket = tcp(mesh.pod.app(), to);
        socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
        let original = Some(crate::on_the_wire(to));
        let expected = Outcome::Arrived { at: "outbound", original, peer: from.to_canonical(), peername: to };
        assert_eq!(outcome(&socket, to, &listeners), expected);
        let proxys = tcp(mesh.pod.proxy(), to);
        proxys.bind(&SocketAddr::new(from, 0).into()).unwrap();
        if to.is_ipv4() {
            assert_eq!(outcome(&proxys, to, &listeners), Outcome::Failed(ErrorKind::InvalidInput));
        }
    }
}

#[test]
fn one_client_port_reaches_two_ports_of_a_pod_at_once() {
    let mesh = Mesh::new().unwrap();
    let listeners = mesh.proxy_listeners().unwrap();
    let from = SocketAddr::from((ROUTER_V4, 20_001));
    let ports = [APP, APP + 1];
    let clients = ports.map(|port| {
        let client = mesh.world.tcp4().unwrap();
        client.set_reuse_address(true).unwrap();
        client.bind(&from.into()).unwrap();
        let to = SocketAddr::from((mesh.pod.v4(), port));
        mesh::connect(&client, to).unwrap();
        (client, to)
    });
    // Both are open: neither took the other's place.
    for (client, to) in &clients {
        let (arrival, _accepted) = listeners.accept().unwrap();
        assert_eq!((arrival.at, arrival.original, arrival.local), ("inbound", Some(*to), *to));
        assert_eq!((arrival.peer, peername(client)), (from, *to));
    }
}

#[test]
fn one_source_port_of_an_app_to_two_remotes_is_redirected_once_and_then_an_error_that_says_so() {
    let mesh = Mesh::new().unwrap();
    let listeners = mesh.proxy_listeners().unwrap();
    let from = SocketAddr::from((mesh.pod.v4(), 20_001));
    let bound = |port| {
        let socket = mesh.pod.app().tcp4().unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&from.into()).unwrap();
        (socket, SocketAddr::from((REMOTE_V4, port)))
    };
    let (first, to) = bound(PORT);
    connect(&first, to).unwrap();
    let (second, elsewhere) = bound(PORT + 1);
    let error = connect(&second, elsewhere).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    let (arrival, _accepted) = listeners.accept().unwrap();
    assert_redirected(&arrival, &mesh.pod, &first, to);
    assert!(listeners.is_idle().unwrap());
}
