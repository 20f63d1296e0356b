//! The same socket connecting again, and sockets older than what they meet.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use rustix::net::connect_unspec;
use veer_tests::mesh::{APP, Listeners, Mesh, OUTBOUND, dual_stack, proxy_listeners};
use veer_tests::wait;

use crate::{
    EXCLUDED, Outcome, PORT, TO_V4, assert_direct, assert_redirected, assert_refused, connect, outcome,
    outside, remotes, tcp,
};

#[test]
fn without_a_proxy_an_enrolled_pods_connections_are_refused() {
    let mesh = Mesh::new().unwrap();
    let outside = outside(&mesh.world, &[PORT]);
    for to in remotes() {
        assert_refused(connect(&tcp(mesh.pod.app(), to), to));
    }
    assert!(outside.is_idle().unwrap(), "nothing leaves the pod past its proxy");
    mesh.no_hand_off_left().unwrap();
}

#[test]
fn a_refused_socket_is_redirected_once_the_proxy_listens() {
    let mesh = Mesh::new().unwrap();
    let refused = remotes().map(|to| (to, tcp(mesh.pod.app(), to)));
    for (to, socket) in &refused {
        assert_refused(connect(socket, *to));
    }
    let listeners = mesh.proxy_listeners().unwrap();
    for (to, socket) in &refused {
        connect(socket, *to).unwrap();
        let (arrival, _accepted) = listeners.accept().unwrap();
        assert_redirected(&arrival, &mesh.pod, socket, *to);
    }
}

#[test]
fn a_refused_socket_may_dial_something_else() {
    let mesh = Mesh::new().unwrap();
    let to = TO_V4.into();
    let socket = tcp(mesh.pod.app(), to);
    assert_refused(connect(&socket, to));
    let listeners = mesh.proxy_listeners().unwrap();
    let other = (TO_V4.0, 8443).into();
    connect(&socket, other).unwrap();
    let (arrival, _accepted) = listeners.accept().unwrap();
    assert_redirected(&arrival, &mesh.pod, &socket, other);
}

#[test]
fn role_and_peer_follow_a_socket_from_redirected_to_direct_and_back() {
    let excluded = EXCLUDED.to_string();
    let mesh = Mesh::with(|manifest| manifest.with_traffic("excludeOutboundPorts", &excluded)).unwrap();
    let outside = outside(&mesh.world, &[EXCLUDED]);
    for to in remotes() {
        let direct_to = SocketAddr::new(to.ip(), EXCLUDED);
        let socket = tcp(mesh.pod.app(), to);
        assert_refused(connect(&socket, to));

        connect(&socket, direct_to).unwrap();
        let (arrival, _accepted) = outside.accept().unwrap();
        assert_direct(&arrival, &mesh.pod, &socket, direct_to);
        connect_unspec(&socket).unwrap();

        let listeners = mesh.proxy_listeners().unwrap();
        connect(&socket, to).unwrap();
        let (arrival, _accepted) = listeners.accept().unwrap();
        assert_redirected(&arrival, &mesh.pod, &socket, to);
        connect_unspec(&socket).unwrap();

        connect(&socket, direct_to).unwrap();
        let (arrival, _accepted) = outside.accept().unwrap();
        assert_direct(&arrival, &mesh.pod, &socket, direct_to);
        closed(&mesh, listeners);
    }
    mesh.no_hand_off_left().unwrap();
}

#[test]
fn a_refused_redirection_leaves_no_original_destination_behind() {
    let mesh = Mesh::new().unwrap();
    let socket = tcp(mesh.pod.app(), TO_V4.into());
    assert_refused(connect(&socket, TO_V4.into()));
    let listeners = mesh.proxy_listeners().unwrap();
    // Where it had been sent before: this time dialled by the app itself.
    let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, OUTBOUND));
    connect(&socket, proxy).unwrap();
    let (arrival, _accepted) = listeners.accept().unwrap();
    assert_eq!((arrival.at, arrival.original), ("outbound", Some(proxy)));
    assert_eq!(crate::peername(&socket), proxy);
}

/// Closes listeners, and waits until nobody holds them any more.
fn closed(mesh: &Mesh, listeners: Listeners) {
    drop(listeners);
    wait::until("the proxy's ports to be free", wait::LIMIT, || {
        let pod = mesh.agent.json(&["pods", "test/pod"]).unwrap();
        let ports = ["/policy/outbound/listeners", "/policy/inbound/listeners"];
        ports.iter().all(|port| pod.pointer(port).unwrap() == 0)
    })
    .unwrap();
}

#[test]
fn a_refused_redirection_leaves_its_source_address_on_the_socket() {
    // A limit: connect() bound the socket to the pod's address for the proxy to see, and nothing unbinds
    // it. Under istio-init the same socket then comes from 127.0.0.1.
    let mesh = Mesh::new().unwrap();
    let socket = tcp(mesh.pod.app(), TO_V4.into());
    assert_refused(connect(&socket, TO_V4.into()));
    let mut app = Listeners::default();
    app.add("app", mesh.pod.app(), (Ipv4Addr::LOCALHOST, APP)).unwrap();
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, APP));
    let (peer, peername) = (mesh.pod.v4().into(), local);
    assert_eq!(outcome(&socket, local, &app), Outcome::Arrived { at: "app", original: None, peer, peername });
}

#[test]
fn a_socket_older_than_the_enrolment_is_redirected_when_it_connects_after_it() {
    let mesh = Mesh::not_enrolled().unwrap();
    let older = remotes().map(|to| (to, tcp(mesh.pod.app(), to)));
    mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
    let listeners = mesh.proxy_listeners().unwrap();
    for (to, socket) in &older {
        connect(socket, *to).unwrap();
        let (arrival, _accepted) = listeners.accept().unwrap();
        assert_redirected(&arrival, &mesh.pod, socket, *to);
    }
}

#[test]
fn a_connection_older_than_the_enrolment_goes_on_as_it_was() {
    let mesh = Mesh::not_enrolled().unwrap();
    let outside = outside(&mesh.world, &[PORT]);
    let older = remotes().map(|to| {
        let socket = tcp(mesh.pod.app(), to);
        connect(&socket, to).unwrap();
        (to, socket, outside.accept().unwrap())
    });
    mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
    let _listeners = proxy_listeners(&mesh.pod).unwrap();
    for (to, mut socket, (arrival, mut accepted)) in older {
        socket.write_all(b"still here").unwrap();
        let mut heard = [0; 10];
        accepted.set_nonblocking(false).unwrap();
        accepted.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"still here");
        assert_direct(&arrival, &mesh.pod, &socket, to);
    }
}
