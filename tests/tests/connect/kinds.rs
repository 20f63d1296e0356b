//! Kinds of sockets and of connect(): Java's, non-blocking, Fast Open, MPTCP, UDP.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use nix::sys::socket::setsockopt;
use nix::{libc, setsockopt_impl, sockopt_impl};
use socket2::{Domain, Protocol, Socket, Type};
use veer_tests::mesh::{APP, Arrival, INBOUND, Listeners, Mesh, OUTBOUND, PATIENCE, dial};
use veer_tests::pod::{REMOTE_V4, TestPod};
use veer_tests::wait;

use crate::{TO_V4, assert_redirected, connect, mapped, own, peername, remotes, tcp};

sockopt_impl!(FastOpenQueue, SetOnly, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, usize);
sockopt_impl!(FastOpenConnect, SetOnly, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, bool);

#[test]
fn a_java_style_client_is_an_ipv4_client_for_the_proxy() {
    let mesh = Mesh::new().unwrap();
    let listeners = mesh.proxy_listeners().unwrap();
    let to = mapped(TO_V4.0, TO_V4.1);
    let socket = mesh.pod.app().tcp6().unwrap();
    socket.set_only_v6(false).unwrap();
    connect(&socket, to).unwrap();
    let (arrival, _accepted) = listeners.accept().unwrap();
    assert_redirected(&arrival, &mesh.pod, &socket, to);
    assert_eq!(arrival.local, SocketAddr::from((Ipv4Addr::LOCALHOST, OUTBOUND)));
    let local = socket.local_addr().unwrap().as_socket().unwrap();
    assert_eq!(local, mapped(mesh.pod.v4(), arrival.peer.port()));
}

#[test]
fn a_java_style_proxy_reaches_its_own_pod_through_the_inbound_port() {
    let mesh = Mesh::new().unwrap();
    let listeners = mesh.proxy_listeners().unwrap();
    let to = mapped(mesh.pod.v4(), APP);
    let socket = tcp(mesh.pod.proxy(), to);
    connect(&socket, to).unwrap();
    let (arrival, _accepted) = listeners.accept().unwrap();
    let own = SocketAddr::from((mesh.pod.v4(), APP));
    assert_eq!((arrival.at, arrival.original, peername(&socket)), ("inbound", Some(own), to));
}

#[test]
fn a_non_blocking_connect_is_redirected() {
    let mesh = Mesh::new().unwrap();
    let listeners = mesh.proxy_listeners().unwrap();
    for to in remotes() {
        let socket = tcp(mesh.pod.app(), to);
        socket.set_nonblocking(true).unwrap();
        let started = connect(&socket, to).unwrap_err();
        assert_eq!(started.raw_os_error(), Some(libc::EINPROGRESS));
        wait::until("the connection to be there", PATIENCE, || socket.peer_addr().is_ok()).unwrap();
        assert!(socket.take_error().unwrap().is_none());
        let (arrival, _accepted) = listeners.accept().unwrap();
        assert_redirected(&arrival, &mesh.pod, &socket, to);
    }
}

#[test]
fn a_non_blocking_connect_without_a_proxy_is_refused_and_may_be_repeated() {
    let mesh = Mesh::new().unwrap();
    let to = TO_V4.into();
    let socket = tcp(mesh.pod.app(), to);
    let refused = veer_tests::mesh::connect(&socket, to).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let listeners = mesh.proxy_listeners().unwrap();
    // The kernel's answer to the first connect() after one that failed behind the caller's back.
    assert_eq!(connect(&socket, to).unwrap_err().kind(), ErrorKind::ConnectionAborted);
    connect(&socket, to).unwrap();
    let (arrival, _accepted) = listeners.accept().unwrap();
    assert_redirected(&arrival, &mesh.pod, &socket, to);
}

/// The proxy's listeners, each with a queue for Fast Open.
fn fast_open_listeners(pod: &TestPod) -> Listeners {
    let mut listeners = Listeners::default();
    for (label, port) in [("outbound", OUTBOUND), ("inbound", INBOUND)] {
        for at in [
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
            SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port)),
        ] {
            let socket = tcp(pod.proxy(), at);
            setsockopt(&socket, FastOpenQueue, &16).unwrap();
            listeners.listen(label, socket, at).unwrap();
        }
    }
    listeners
}

fn fast_open_mesh() -> Mesh {
    let mesh = Mesh::new().unwrap();
    for netns in [mesh.pod.netns(), mesh.world.netns()] {
        netns.set_sysctl("net/ipv4/tcp_fastopen", "3").unwrap();
    }
    mesh
}

/// Waits for the arrival and for what the client has to say.
fn hears(listeners: &Listeners, said: &[u8]) -> Arrival {
    let (arrival, mut accepted) = listeners.accept().unwrap();
    accepted.set_nonblocking(false).unwrap();
    let mut heard = vec![0; said.len()];
    accepted.read_exact(&mut heard).unwrap();
    assert_eq!(heard, said);
    arrival
}

/// Dials each remote twice: the first time brings the cookie, the second has its data with the SYN.
fn fast_open(dial: impl Fn(&Socket, SocketAddr)) {
    let mesh = fast_open_mesh();
    let listeners = fast_open_listeners(&mesh.pod);
    for to in remotes() {
        // Another port each time, so that the original destination is that of this very connection.
        for port in [8001, 8002] {
            let to = SocketAddr::new(to.ip(), port);
            let before = mesh.pod.netns().tcp_counter("TCPFastOpenPassive").unwrap();
            let socket = tcp(mesh.pod.app(), to);
            dial(&socket, to);
            assert_redirected(&hears(&listeners, b"early"), &mesh.pod, &socket, to);
            let passive = mesh.pod.netns().tcp_counter("TCPFastOpenPassive").unwrap() - before;
            assert!(passive == 1 || port == 8001, "data came with the SYN: {passive}");
        }
    }
    mesh.no_hand_off_left().unwrap();
}

#[test]
fn a_fast_open_connect_arrives_with_its_original_destination() {
    fast_open(|mut socket, to| {
        setsockopt(socket, FastOpenConnect, &true).unwrap();
        connect(socket, to).unwrap();
        socket.write_all(b"early").unwrap();
    });
}

#[test]
fn a_fast_open_sendto_arrives_with_its_original_destination() {
    fast_open(|socket, to| {
        assert_eq!(socket.send_to_with_flags(b"early", &to.into(), libc::MSG_FASTOPEN).unwrap(), 5);
    });
}

#[test]
fn a_fast_open_client_from_the_network_arrives_at_the_inbound_port() {
    let mesh = fast_open_mesh();
    let listeners = fast_open_listeners(&mesh.pod);
    for known_cookie in [false, true] {
        let to = SocketAddr::from((mesh.pod.v4(), APP));
        let client = mesh.world.tcp4().unwrap();
        client.send_to_with_flags(b"early", &to.into(), libc::MSG_FASTOPEN).unwrap();
        let arrival = hears(&listeners, b"early");
        assert_eq!((arrival.at, arrival.original), ("inbound", Some(to)));
        let passive = mesh.pod.netns().tcp_counter("TCPFastOpenPassive").unwrap();
        assert_eq!(passive, u64::from(known_cookie));
    }
}

#[test]
fn an_mptcp_client_is_redirected() {
    let mesh = Mesh::new().unwrap();
    let listeners = mesh.proxy_listeners().unwrap();
    for to in remotes() {
        let mut socket =
            mesh.pod.app().socket(Domain::for_address(to), Type::STREAM, Some(Protocol::MPTCP)).unwrap();
        connect(&socket, to).unwrap();
        socket.write_all(b"many paths").unwrap();
        let arrival = hears(&listeners, b"many paths");
        assert_eq!((arrival.at, arrival.original), ("outbound", Some(crate::on_the_wire(to))));
        assert_eq!(arrival.peer.ip(), own(&mesh.pod, to));
        // A limit: the hook is asked about the MPTCP socket, and connect() was about its first subflow.
        let shown = peername(&socket);
        assert_eq!((shown.ip().to_canonical().is_loopback(), shown.port()), (true, OUTBOUND));
    }
    mesh.no_hand_off_left().unwrap();
}

#[test]
fn a_connected_udp_socket_is_left_alone() {
    let mesh = Mesh::new().unwrap();
    let server = mesh.world.socket(Domain::IPV4, Type::DGRAM, None).unwrap();
    let to = SocketAddr::from((REMOTE_V4, 5000));
    server.bind(&to.into()).unwrap();
    server.set_read_timeout(Some(wait::scaled(PATIENCE))).unwrap();
    let socket = mesh.pod.app().udp4().unwrap();
    connect(&socket, to).unwrap();
    assert_eq!(peername(&socket), to);
    socket.send(b"ping").unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 16];
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!((length, from.as_socket().unwrap().ip()), (4, mesh.pod.v4().into()));
}

#[test]
fn a_socket_that_the_proxy_made_is_the_proxys_in_whatever_hands() {
    let mesh = Mesh::new().unwrap();
    let mut listeners = mesh.proxy_listeners().unwrap();
    listeners.extend(crate::outside(&mesh.world, &[TO_V4.1]));
    // Every connect() here is the test's own, which is root: the makers alone differ.
    let rows = [(mesh.pod.proxy(), "outside"), (mesh.pod.app(), "outbound"), (mesh.pod.root(), "outbound")];
    for (maker, at) in rows {
        let (arrival, ..) = dial(maker, TO_V4, &listeners).unwrap();
        assert_eq!(arrival.at, at, "made by {:?}", maker.identity());
    }
}
