//! Sockets that dial in unusual ways, on the real kernel: where they end, what the proxy learns, what the
//! app sees. Where istio-init decides what is right, the same is done under its rules and compared.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod again;
mod bound;
mod family;
mod kinds;
mod options;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use veer_tests::istio_init;
use veer_tests::mesh::{APP, Arrival, Listeners, Mesh, proxy_listeners};
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, TestPod, World};
use veer_tests::socket_maker::Maker;

/// A remote port that no annotation names.
const PORT: u16 = 80;
/// A remote port that some pods exclude.
const EXCLUDED: u16 = 9000;
/// Where an outside service listens for the app's IPv4 connections.
const TO_V4: (Ipv4Addr, u16) = (REMOTE_V4, PORT);
/// The same for IPv6.
const TO_V6: (Ipv6Addr, u16) = (REMOTE_V6, PORT);

/// The address as an `AF_INET6` socket dials it: all of Java's sockets do.
fn mapped(v4: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::new(v4.to_ipv6_mapped().into(), port)
}

/// The three ways to a remote: an `AF_INET` socket, an `AF_INET6` socket, and one that dials a v4-mapped
/// address.
fn remotes() -> [SocketAddr; 3] {
    [TO_V4.into(), TO_V6.into(), mapped(TO_V4.0, TO_V4.1)]
}

/// What is dialled on the wire, whatever the socket's family.
fn on_the_wire(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The pod's own address of the family that is on the wire.
fn own(pod: &TestPod, to: SocketAddr) -> IpAddr {
    if on_the_wire(to).is_ipv4() { pod.v4().into() } else { pod.v6().into() }
}

/// A TCP socket of the family that an address is written in.
fn tcp(maker: &Maker, to: SocketAddr) -> Socket {
    maker.socket(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap()
}

/// connect(), which waits; loopback and refusals take no time.
fn connect(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    socket.connect(&to.into())
}

fn peername(socket: &Socket) -> SocketAddr {
    socket.peer_addr().unwrap().as_socket().unwrap()
}

#[track_caller]
fn assert_refused(outcome: io::Result<()>) {
    assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

/// What an arrival at the outbound port must be: the dialled address for the proxy, the pod as the client,
/// and for the app the peer that it dialled.
#[track_caller]
fn assert_redirected(arrival: &Arrival, pod: &TestPod, dialled: &Socket, to: SocketAddr) {
    assert_eq!((arrival.at, arrival.original), ("outbound", Some(on_the_wire(to))), "{arrival:?}");
    assert_eq!(arrival.peer.ip(), own(pod, to), "the proxy sees the pod as its client");
    assert_eq!(peername(dialled), to, "the app sees what it dialled");
}

/// What an arrival outside must be.
#[track_caller]
fn assert_direct(arrival: &Arrival, pod: &TestPod, dialled: &Socket, to: SocketAddr) {
    assert_eq!((arrival.at, arrival.local), ("outside", on_the_wire(to)), "{arrival:?}");
    assert_eq!(arrival.peer.ip(), own(pod, to));
    assert_eq!(peername(dialled), to);
}

/// Servers outside, on both families.
fn outside(world: &World, ports: &[u16]) -> Listeners {
    let mut listeners = Listeners::default();
    for port in ports {
        listeners.add_in_world("outside", world, (REMOTE_V4, *port)).unwrap();
        listeners.add_in_world("outside", world, (REMOTE_V6, *port)).unwrap();
    }
    listeners
}

/// A pod with everything that a connection of it may end at.
#[derive(Clone, Copy)]
struct Place<'a> {
    pod: &'a TestPod,
    listeners: &'a Listeners,
}

/// A pod that is enrolled, and one with the same addresses in another world under the rules of istio-init.
struct Compared {
    mesh: Mesh,
    listeners: Listeners,
    reference: TestPod,
    reference_listeners: Listeners,
    _reference_world: World,
}

impl Compared {
    fn new() -> Self {
        let mesh = Mesh::new().unwrap();
        let reference_world = World::new().unwrap();
        let reference = TestPod::new(&reference_world, &mesh.cgroup, "reference").unwrap();
        istio_init::apply(reference.netns()).unwrap();
        Self {
            listeners: everywhere(&mesh.pod, &mesh.world),
            mesh,
            reference_listeners: everywhere(&reference, &reference_world),
            reference,
            _reference_world: reference_world,
        }
    }

    /// Does the same in both and wants the same; returns it.
    #[track_caller]
    fn agree<T: PartialEq + std::fmt::Debug>(&self, what: &str, act: impl Fn(Place<'_>) -> T) -> T {
        let veer = act(Place { pod: &self.mesh.pod, listeners: &self.listeners });
        let iptables = act(Place { pod: &self.reference, listeners: &self.reference_listeners });
        assert_eq!(veer, iptables, "{what}: veer is left, istio-init right");
        veer
    }
}

/// The proxy's listeners, an app on all addresses, and servers outside.
fn everywhere(pod: &TestPod, world: &World) -> Listeners {
    let mut listeners = proxy_listeners(pod).unwrap();
    listeners.add("app", pod.app(), (Ipv4Addr::UNSPECIFIED, APP)).unwrap();
    listeners.add("app", pod.app(), (Ipv6Addr::UNSPECIFIED, APP)).unwrap();
    listeners.extend(outside(world, &[PORT]));
    listeners
}

/// What came of a connect(), as far as veer and istio-init must agree on it.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Outcome {
    Arrived { at: &'static str, original: Option<SocketAddr>, peer: IpAddr, peername: SocketAddr },
    Failed(io::ErrorKind),
}

/// Connects and waits for the arrival.
fn outcome(socket: &Socket, to: SocketAddr, listeners: &Listeners) -> Outcome {
    if let Err(error) = veer_tests::mesh::connect(socket, to) {
        return Outcome::Failed(error.kind());
    }
    let (arrival, _accepted) = listeners.accept().unwrap();
    let local = socket.local_addr().unwrap().as_socket().unwrap();
    assert_eq!(arrival.peer, on_the_wire(local), "nothing changes the client's address on its way");
    // Under istio-init a connection that was not redirected has itself as its original destination.
    let original = arrival.original.filter(|_| ["outbound", "inbound"].contains(&arrival.at));
    Outcome::Arrived { at: arrival.at, original, peer: arrival.peer.ip(), peername: peername(socket) }
}
