//! The proxy's listeners, on the real kernel: who listens when, where and how often, and what that does to
//! the connections of the pod.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod addresses;
mod lifetime;
mod pods;
mod workers;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use veer_tests::mesh::{APP, Arrival, INBOUND, Listeners, Mesh, OUTBOUND, dial, dial_from_world};
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, TestPod, World};
use veer_tests::wait;

/// A remote service.
const PORT: u16 = 80;

/// An IPv4 address and port.
fn v4(ip: Ipv4Addr, port: u16) -> SocketAddr {
    (ip, port).into()
}

/// An IPv6 address and port.
fn v6(ip: Ipv6Addr, port: u16) -> SocketAddr {
    (ip, port).into()
}

/// How many listeners the pod has registered: outbound, inbound.
fn registered(mesh: &Mesh, pod: &TestPod) -> [u64; 2] {
    let shown = mesh.agent.json(&["pods", &format!("test/{}", pod.name())]).unwrap();
    ["/policy/outbound/listeners", "/policy/inbound/listeners"]
        .map(|port| shown.pointer(port).unwrap().as_u64().unwrap())
}

/// Waits for that many listeners, outbound and inbound: one that is closed lives for as long as anybody
/// else has a copy of its descriptor.
#[track_caller]
fn wait_registered(mesh: &Mesh, pod: &TestPod, wanted: [u64; 2]) {
    let what = format!("{wanted:?} listeners");
    let outcome = wait::until(&what, wait::LIMIT, || registered(mesh, pod) == wanted);
    outcome.unwrap_or_else(|late| panic!("{late}; there are {:?}", registered(mesh, pod)));
}

/// Whether a client in the world is refused: now, and not after a silence.
fn refused(world: &World, to: SocketAddr) -> bool {
    let client = world.socket(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap();
    let outcome = veer_tests::mesh::connect(&client, to);
    outcome.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// An inbound connection from the world to the app's port.
#[track_caller]
fn assert_inbound(world: &World, to: SocketAddr, listeners: &Listeners) -> Arrival {
    let (arrival, client, _accepted) = dial_from_world(world, to, listeners).unwrap();
    let from = client.local_addr().unwrap().as_socket().unwrap();
    let seen = (arrival.at, arrival.original, arrival.local, arrival.peer);
    assert_eq!(seen, ("inbound", Some(to), to, from));
    arrival
}

/// An outbound connection of the app to a remote.
#[track_caller]
fn assert_outbound(pod: &TestPod, to: SocketAddr, listeners: &Listeners) {
    let (arrival, ..) = dial(pod.app(), to, listeners).unwrap();
    assert_eq!((arrival.at, arrival.original), ("outbound", Some(to)));
    let own = if to.is_ipv4() { pod.v4().into() } else { std::net::IpAddr::from(pod.v6()) };
    assert_eq!(arrival.peer.ip(), own);
}

/// Both directions, both families.
#[track_caller]
fn assert_meshed(world: &World, pod: &TestPod, listeners: &Listeners) {
    assert_inbound(world, v4(pod.v4(), APP), listeners);
    assert_inbound(world, v6(pod.v6(), APP), listeners);
    assert_outbound(pod, v4(REMOTE_V4, PORT), listeners);
    assert_outbound(pod, v6(REMOTE_V6, PORT), listeners);
}

/// An app on all addresses and servers outside: where everything ends that is not redirected.
fn bystanders(world: &World, pod: &TestPod) -> Listeners {
    let mut listeners = Listeners::default();
    listeners.add("app", pod.app(), v4(Ipv4Addr::UNSPECIFIED, APP)).unwrap();
    listeners.add("app", pod.app(), v6(Ipv6Addr::UNSPECIFIED, APP)).unwrap();
    listeners.add_in_world("outside", world, v4(REMOTE_V4, PORT)).unwrap();
    listeners.add_in_world("outside", world, v6(REMOTE_V6, PORT)).unwrap();
    listeners
}

/// Nothing of the pod is redirected, and no socket of it knows of us.
#[track_caller]
fn assert_untouched(world: &World, pod: &TestPod, listeners: &Listeners) {
    for own in [v4(pod.v4(), APP), v6(pod.v6(), APP)] {
        let (arrival, ..) = dial_from_world(world, own, listeners).unwrap();
        assert_eq!((arrival.at, arrival.original, arrival.local), ("app", None, own));
    }
    for remote in [v4(REMOTE_V4, PORT), v6(REMOTE_V6, PORT)] {
        let (arrival, dialled, _accepted) = dial(pod.app(), remote, listeners).unwrap();
        assert_eq!((arrival.at, arrival.local), ("outside", remote));
        assert_eq!(dialled.peer_addr().unwrap().as_socket().unwrap(), remote);
    }
}

/// The ports of the proxy, with the labels of their listeners.
const PROXY_PORTS: [(&str, u16); 2] = [("outbound", OUTBOUND), ("inbound", INBOUND)];

/// A socket of the proxy that is bound, for workers to share.
fn worker(pod: &TestPod, at: SocketAddr) -> Socket {
    let socket = pod.proxy().socket(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP)).unwrap();
    if at.is_ipv6() {
        socket.set_only_v6(true).unwrap();
    }
    socket.set_reuse_port(true).unwrap();
    socket.bind(&at.into()).unwrap();
    socket
}
