//! What ztunnel hands to the app from the address of its own client: it is not captured again, the app sees the client,
//! and its answers come back, whatever kind of answer it is.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use socket2::{Protocol, Socket, Type};
use veer_tests::mesh::{APP, connect, dial};
use veer_tests::pod::{REMOTE_V4, REMOTE_V6};
use veer_tests::socket_maker::Maker;

use super::{CLOSED, Scene, exchange};

#[test]
fn the_app_sees_the_client_and_its_answers_come_through() {
    let scene = Scene::new();
    for (own, client) in scene.families() {
        let to = SocketAddr::new(own, APP);
        let (arrival, outer, inner) = dial(scene.client.app(), to, &scene.listeners).unwrap();
        let to_app = scene.ztunnel.hand_on(arrival.peer.ip(), arrival.original.unwrap()).unwrap();
        let (at_app, accepted) = scene.listeners.accept().unwrap();
        assert_eq!((at_app.at, at_app.local, at_app.peer.ip()), ("app", to, client));
        assert_eq!(Some(at_app.peer), to_app.local_addr().unwrap().as_socket());
        exchange(&to_app, &accepted);
        exchange(&outer, &inner);
    }
    assert_eq!((scene.counted("handed-on"), scene.counted("all-inbound")), (2, 2));
    assert!(scene.listeners.is_idle().unwrap());
    scene.nothing_on_its_way();
}

#[test]
fn many_at_once_and_one_after_the_other_find_back() {
    let scene = Scene::new();
    for (own, client) in scene.families() {
        let open: Vec<(Socket, Socket)> = (0..64)
            .map(|_| {
                let to_app = scene.ztunnel.hand_on(client, (own, APP).into()).unwrap();
                let (arrival, accepted) = scene.listeners.accept().unwrap();
                assert_eq!((arrival.at, arrival.peer.ip()), ("app", client));
                (to_app, accepted)
            })
            .collect();
        for (one, other) in &open {
            exchange(one, other);
        }
        // Also while they are open: what is on its way is that, and not what has arrived.
        scene.nothing_on_its_way();
    }
}

#[test]
fn a_port_where_nobody_listens_refuses_at_once() {
    let scene = Scene::new();
    for (own, client) in scene.families() {
        let error = scene.ztunnel.hand_on(client, (own, CLOSED).into()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{own}: {error}");
    }
    scene.nothing_on_its_way();
}

#[test]
fn with_cookies_in_the_place_of_half_open_connections_it_is_the_same() {
    let scene = Scene::new();
    // Always, and not only when the queue is full.
    scene.pod.netns().set_sysctl("net/ipv4/tcp_syncookies", "2").unwrap();
    for (own, client) in scene.families() {
        let to_app = scene.ztunnel.hand_on(client, (own, APP).into()).unwrap();
        let (arrival, accepted) = scene.listeners.accept().unwrap();
        assert_eq!((arrival.at, arrival.peer.ip()), ("app", client));
        exchange(&to_app, &accepted);
    }
    scene.nothing_on_its_way();
}

#[test]
fn an_app_in_go_whose_listeners_are_mptcp_is_no_exception() {
    const OF_GO: u16 = 8081;
    let mut scene = Scene::new();
    let tried = Socket::new(socket2::Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP));
    let protocol = if tried.is_ok() { Protocol::MPTCP } else { Protocol::TCP };
    for (own, client) in scene.families() {
        let listening = scene.pod.app().bound(protocol, (own, OF_GO).into()).unwrap();
        scene.listeners.take("go", listening).unwrap();
        let to_app = scene.ztunnel.hand_on(client, (own, OF_GO).into()).unwrap();
        let (arrival, accepted) = scene.listeners.accept().unwrap();
        assert_eq!((arrival.at, arrival.peer.ip()), ("go", client));
        exchange(&to_app, &accepted);
    }
    scene.nothing_on_its_way();
}

#[test]
fn an_app_cannot_pass_for_ztunnel_without_its_mark() {
    let scene = Scene::new();
    let elsewhere = [IpAddr::from(REMOTE_V4), REMOTE_V6.into()];
    for ((own, _), to) in scene.families().into_iter().zip(elsewhere) {
        // Bound to an address of its own, as any app may.
        let socket = bound(scene.pod.root(), own);
        connect(&socket, (to, super::REMOTE)).unwrap();
        assert_eq!(scene.listeners.accept().unwrap().0.at, "outbound");
    }
}

fn bound(maker: &Maker, to: IpAddr) -> Socket {
    let at = SocketAddr::new(to, 0);
    let socket = veer_tests::mesh::tcp(maker, at).unwrap();
    socket.bind(&at.into()).unwrap();
    socket
}
