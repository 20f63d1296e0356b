//! Tens of thousands of short connections, ended in every way that there is: nothing stays in any map, and
//! every single one is counted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use serde_json::json;
use socket2::Socket;
use veer_common::maps::name;
use veer_tests::dst_server::{self, DstServer};
use veer_tests::jam::{self, Jam};
use veer_tests::launch::Identity;
use veer_tests::mesh::{self, INBOUND, Mesh, OUTBOUND, PATIENCE};
use veer_tests::pinned::Pinned;
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, World};
use veer_tests::socket_maker::Maker;
use veer_tests::wait;

/// Threads that dial at once.
const THREADS: u16 = 4;
/// Connections that each of them brings to their end.
const WHOLE: u16 = 5000;
/// Connections of each kind that each of them breaks off.
const BROKEN: u16 = 500;

/// Every connection of a thread goes to another port, so that none can be mistaken for another.
fn remote(ip: impl Into<IpAddr>, number: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), 20_000 + number)
}

/// Ends a connection by RST.
fn reset(socket: Socket) -> Result<()> {
    socket.set_linger(Some(Duration::ZERO)).context("ask for a RST")?;
    drop(socket);
    Ok(())
}

/// As often as [`BROKEN`] each: RST after the handshake; close right after the connect() that did not wait;
/// connect() that the proxy's closed port refuses, twice with one socket.
fn break_off(app: &Maker) -> Result<()> {
    for number in 0..BROKEN {
        let to = remote(REMOTE_V4, number);
        let socket = mesh::tcp(app, to)?;
        mesh::connect(&socket, to)?;
        reset(socket)?;
        drop(jam::begin(app, to)?);
        let to = remote(REMOTE_V6, number);
        let socket = mesh::tcp(app, to)?;
        for _ in 0..2 {
            match socket.connect(&to.into()) {
                Err(error) if error.raw_os_error() == Some(Errno::ECONNREFUSED as i32) => {}
                other => bail!("nobody listens for IPv6, and connect() said {other:?}"),
            }
        }
    }
    Ok(())
}

/// What [`break_off`] makes of decisions.
const DECISIONS_OF_BREAKING: u16 = 4 * BROKEN;

fn dial_and_break(app: &Maker) -> Result<()> {
    (0..WHOLE).try_for_each(|number| dst_server::ask(app, remote(REMOTE_V4, number)))?;
    break_off(app)
}

#[test]
fn twenty_thousand_short_connections_leave_nothing_and_are_all_counted() {
    let mesh = Mesh::new().unwrap();
    let pinned = Pinned::of(&mesh.agent);
    let proxy = DstServer::start(mesh.pod.proxy(), (Ipv4Addr::UNSPECIFIED, OUTBOUND)).unwrap();
    let before = pinned.counts().unwrap();
    assert_eq!(before.get(name::HAND_OFFS), None);
    let outcomes: Vec<Result<()>> = thread::scope(|scope| {
        let app = || mesh.pod.maker(Identity::app()).unwrap();
        let threads: Vec<_> =
            (0..THREADS).map(|_| app()).map(|app| scope.spawn(move || dial_and_break(&app))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for outcome in outcomes {
        outcome.unwrap();
    }
    mesh.no_hand_off_left().unwrap();
    assert_eq!(pinned.counts().unwrap(), before);
    let pod = mesh.agent.json(&["pods", "test/pod"]).unwrap();
    let made = u64::from(THREADS) * u64::from(WHOLE + DECISIONS_OF_BREAKING);
    assert_eq!(pod["reasons"], json!({"all-outbound": made}));
    assert_eq!(pod["faults"], json!({}));
    assert!(proxy.accepted() >= u64::from(THREADS * WHOLE));
}

#[test]
fn a_connection_that_is_given_up_on_its_way_leaves_nothing() {
    let mesh = Mesh::new().unwrap();
    let pinned = Pinned::of(&mesh.agent);
    let jam = Jam::start(&mesh.pod, remote(REMOTE_V6, 0)).unwrap();
    let under_way: Vec<Socket> =
        (1..=300).map(|number| jam::begin(mesh.pod.app(), remote(REMOTE_V6, number)).unwrap()).collect();
    assert_eq!(pinned.counts().unwrap()[name::HAND_OFFS], 300);
    assert_eq!(mesh.agent.json(&["status"]).unwrap()["handingOver"], 300);
    let (closed, disconnected) = under_way.split_at(100);
    for socket in disconnected {
        rustix::net::connect_unspec(socket).unwrap();
    }
    assert_eq!(pinned.counts().unwrap()[name::HAND_OFFS], closed.len());
    drop(under_way);
    mesh.no_hand_off_left().unwrap();
    drop(jam);
    assert_eq!(mesh.counter("reasons", "all-outbound").unwrap(), 301);
}

/// Dials from the world, to the end or not.
fn dial_in(world: &World, to: Ipv4Addr, number: u16) -> Result<()> {
    let to = remote(to, number);
    if !number.is_multiple_of(4) {
        return dst_server::confirm(world.tcp4()?, to);
    }
    let socket = world.tcp4()?;
    mesh::connect(&socket, to).with_context(|| format!("dial {to}"))?;
    reset(socket)
}

#[test]
fn connections_from_the_network_to_two_pods_at_once_each_reach_their_own_and_are_counted_once() {
    const EACH: u16 = 1000;
    let mesh = Mesh::new().unwrap();
    let other = mesh.another_pod("other").unwrap();
    let pods = [&mesh.pod, &other];
    let proxies = pods.map(|pod| DstServer::start(pod.proxy(), (Ipv4Addr::UNSPECIFIED, INBOUND)).unwrap());
    let before = Pinned::of(&mesh.agent).counts().unwrap();
    thread::scope(|scope| {
        let world = &mesh.world;
        let dial = |pod: Ipv4Addr| (0..EACH).try_for_each(|number| dial_in(world, pod, number));
        let threads = pods.map(|pod| scope.spawn(move || dial(pod.v4())));
        for thread in threads {
            thread.join().unwrap().unwrap();
        }
    });
    assert_eq!(Pinned::of(&mesh.agent).counts().unwrap(), before);
    for (pod, proxy) in pods.into_iter().zip(&proxies) {
        let view = mesh.agent.json(&["pods", &format!("test/{}", pod.name())]).unwrap();
        assert_eq!((&view["reasons"], &view["faults"]), (&json!({"all-inbound": EACH}), &json!({})));
        // Those that were reset wait in the queue like all others.
        wait::until("the proxy to get them", PATIENCE, || proxy.accepted() == u64::from(EACH)).unwrap();
    }
}

#[test]
fn nobody_listening_is_counted_as_what_was_refused() {
    let mesh = Mesh::new().unwrap();
    for number in 0..50 {
        for to in [remote(mesh.pod.v4(), number), remote(mesh.pod.v6(), number)] {
            let socket = if to.is_ipv4() { mesh.world.tcp4() } else { mesh.world.tcp6() }.unwrap();
            let error = mesh::connect(&socket, to).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{to}");
        }
    }
    let view = mesh.agent.json(&["pods", "test/pod"]).unwrap();
    assert_eq!(view["reasons"], json!({"no-listener": 100}));
    assert_eq!(view["totals"]["dropped"], 100);
    let ipv6_only = Ipv6Addr::UNSPECIFIED;
    let _proxy = DstServer::start(mesh.pod.proxy(), (ipv6_only, INBOUND)).unwrap();
    dst_server::confirm(mesh.world.tcp6().unwrap(), remote(mesh.pod.v6(), 0)).unwrap();
    let refused = mesh::connect(&mesh.world.tcp4().unwrap(), remote(mesh.pod.v4(), 0)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "a listener for IPv6 alone");
}
