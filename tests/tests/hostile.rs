//! What an app without privileges tries on its own pod and on others.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use nix::errno::Errno;
use nix::libc;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use veer_common::cni::{Attachment, Reply, Verb};
use veer_common::maps::{MAX_HAND_OFFS_OF_POD, MAX_LISTENER_SLOTS};
use veer_tests::mesh::{
    APP, INBOUND, Listeners, Mesh, OUTBOUND, PATIENCE, connect, dial, dial_from_world, proxy_listeners, tcp,
};
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, TestPod};
use veer_tests::wait;

/// A segment routing header (type 4) with one segment, which is `fd77::1`.
const ROUTING_HEADER: [u8; 24] =
    [0, 2, 4, 0, 0, 0, 0, 0, 0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

#[expect(unsafe_code, reason = "no crate has a safe wrapper for IPV6_RTHDR")]
fn routing_header(pod: &TestPod, kind: Type) -> Result<(), Errno> {
    let socket = pod.app().socket(Domain::IPV6, kind, None).unwrap();
    let length = libc::socklen_t::try_from(ROUTING_HEADER.len()).unwrap();
    // SAFETY: the descriptor is live, and the buffer has the length that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_RTHDR,
            ROUTING_HEADER.as_ptr().cast(),
            length,
        )
    };
    Errno::result(result).map(drop)
}

#[test]
fn a_routing_header_cannot_lead_a_connection_past_the_verdict() {
    let mesh = Mesh::new().unwrap();
    assert_eq!(routing_header(&mesh.pod, Type::STREAM), Err(Errno::EPERM));
    assert_ne!(routing_header(&mesh.pod, Type::DGRAM), Err(Errno::EPERM), "UDP is nobody's business");
    let stranger = TestPod::new(&mesh.world, &mesh.cgroup, "stranger").unwrap();
    assert_ne!(routing_header(&stranger, Type::STREAM), Err(Errno::EPERM), "nor is another pod");
}

#[test]
fn a_pod_whose_proxy_does_not_accept_leaves_room_for_others() {
    raise_descriptor_limit();
    let mesh = Mesh::new().unwrap();
    let neighbour = mesh.another_pod("neighbour").unwrap();
    let stuck = tcp(mesh.pod.proxy(), (Ipv4Addr::UNSPECIFIED, OUTBOUND)).unwrap();
    stuck.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, OUTBOUND)).into()).unwrap();
    stuck.listen(1).unwrap();

    let mut waiting = Vec::new();
    let refused = loop {
        let socket = tcp(mesh.pod.app(), (REMOTE_V4, 443)).unwrap();
        socket.set_nonblocking(true).unwrap();
        match socket.connect(&SocketAddr::from((REMOTE_V4, 443)).into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => break error,
            _ => waiting.push(socket),
        }
        assert!(waiting.len() < 2 * usize::try_from(MAX_HAND_OFFS_OF_POD).unwrap(), "never refused");
    };
    assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(mesh.counter("reasons", "proxy-backlog").unwrap(), 1);

    let listeners = proxy_listeners(&neighbour).unwrap();
    let to = SocketAddr::from((REMOTE_V4, 443));
    let (arrival, ..) = dial(neighbour.app(), to, &listeners).unwrap();
    assert_eq!((arrival.at, arrival.original), ("outbound", Some(to)));

    // What has been counted up is counted down again: the pod recovers.
    drop(waiting);
    drop(stuck);
    mesh.no_hand_off_left().unwrap();
    let listeners = mesh.proxy_listeners().unwrap();
    let (arrival, ..) = dial(mesh.pod.app(), to, &listeners).unwrap();
    assert_eq!((arrival.at, arrival.original), ("outbound", Some(to)));
}

/// One descriptor for each waiting connection.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

fn bound(pod: &TestPod, address: Ipv4Addr, port: u16) -> Socket {
    let socket = tcp(pod.app(), (address, port)).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from((address, port)).into()).unwrap();
    socket
}

#[test]
fn one_source_port_for_two_kinds_of_sockets_keeps_two_destinations_apart() {
    const PORT: u16 = 40_000;
    let mesh = Mesh::new().unwrap();
    // With SYN cookies, a connection that finds the queue full would be lost until it sends something.
    mesh.pod.netns().set_sysctl("net/ipv4/tcp_syncookies", "0").unwrap();
    let proxy = tcp(mesh.pod.proxy(), (Ipv4Addr::UNSPECIFIED, OUTBOUND)).unwrap();
    proxy.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, OUTBOUND)).into()).unwrap();
    let mut listeners = Listeners::default();
    listeners.take("outbound", proxy).unwrap();
    // The shortest of queues, and full: both connections have to wait for it with their SYN.
    listeners.shorten_queues().unwrap();
    let filler = tcp(mesh.pod.app(), (REMOTE_V4, 1)).unwrap();
    connect(&filler, (REMOTE_V4, 1)).unwrap();

    // The first is sent to 127.0.0.1, the second, which has a port and no address, to the pod's own.
    let (first, second) =
        (bound(&mesh.pod, mesh.pod.v4(), PORT), bound(&mesh.pod, Ipv4Addr::UNSPECIFIED, PORT));
    for (socket, port) in [(&first, 1111), (&second, 2222)] {
        socket.set_nonblocking(true).unwrap();
        let waiting = socket.connect(&SocketAddr::from((REMOTE_V4, port)).into()).unwrap_err();
        assert_eq!(waiting.raw_os_error(), Some(libc::EINPROGRESS));
    }
    let _filler = listeners.accept().unwrap();
    for _ in 0..2 {
        let (arrival, _accepted) = listeners.accept().unwrap();
        let port = if arrival.local.ip().is_loopback() { 1111 } else { 2222 };
        assert_eq!(arrival.original, Some(SocketAddr::from((REMOTE_V4, port))), "{arrival:?}");
    }
}

/// A listener of the app's on a port of the proxy's.
fn squatter(pod: &TestPod, at: SocketAddr) -> Socket {
    let socket = tcp(pod.app(), at).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&at.into()).unwrap();
    socket.listen(1).unwrap();
    socket
}

#[test]
fn an_app_cannot_crowd_the_proxys_listeners_out() {
    let mesh = Mesh::with(|manifest| manifest.with_proxy_env("ISTIO_DUAL_STACK", "false")).unwrap();
    let at = SocketAddr::from((Ipv6Addr::LOCALHOST, INBOUND));
    let _squatters: Vec<Socket> = (0..2 * MAX_LISTENER_SLOTS).map(|_| squatter(&mesh.pod, at)).collect();
    let mut listeners = Listeners::default();
    listeners.add("inbound", mesh.pod.proxy(), (Ipv4Addr::UNSPECIFIED, INBOUND)).unwrap();
    let (arrival, ..) = dial_from_world(&mesh.world, (mesh.pod.v4(), APP), &listeners).unwrap();
    assert_eq!(arrival.at, "inbound");
}

#[test]
fn an_app_cannot_crowd_them_out_with_sockets_of_the_right_address_either() {
    let mesh = Mesh::new().unwrap();
    let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, INBOUND));
    let squatters: Vec<Socket> = (0..2 * MAX_LISTENER_SLOTS)
        .map(|_| {
            let socket = tcp(mesh.pod.app(), at).unwrap();
            socket.set_only_v6(true).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.bind(&at.into()).unwrap();
            socket.listen(1).unwrap();
            socket
        })
        .collect();
    let mut listeners = Listeners::default();
    listeners.add("inbound", mesh.pod.proxy(), (Ipv4Addr::UNSPECIFIED, INBOUND)).unwrap();
    let (arrival, ..) = dial_from_world(&mesh.world, (mesh.pod.v4(), APP), &listeners).unwrap();
    assert_eq!(arrival.at, "inbound");
    drop(squatters);
    // Their maker may hold the last of them for a moment longer.
    let free = || listeners.add("inbound", mesh.pod.proxy(), (Ipv6Addr::UNSPECIFIED, INBOUND));
    wait::until_ok("the port to be free", PATIENCE, free).unwrap();
    let (arrival, ..) = dial_from_world(&mesh.world, (mesh.pod.v6(), APP), &listeners).unwrap();
    assert_eq!(arrival.at, "inbound");
}

#[test]
fn a_listener_on_an_address_that_nothing_is_redirected_to_gets_nothing() {
    let mesh = Mesh::new().unwrap();
    let at = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 9), INBOUND));
    let _squatter = squatter(&mesh.pod, at);
    let client = mesh.world.tcp4().unwrap();
    let refused = connect(&client, (mesh.pod.v4(), APP)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(mesh.counter("reasons", "no-listener").unwrap(), 1);
}

#[test]
fn a_fifo_in_the_place_of_a_netns_does_not_hold_the_agent_up() {
    let mesh = Mesh::not_enrolled().unwrap();
    let path = mesh.agent.run_dir().join("fifo");
    let made = Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    mesh.agent.write_manifest(&veer_tests::mesh::dual_stack(&mesh.pod)).unwrap();
    let attachment = Attachment { netns: path.display().to_string(), ..mesh.pod.attachment() };
    let netns = mesh.pod.netns().as_fd();
    let ask = |verb, netns| veer_tests::attachment::ask(&mesh.agent.run_dir(), verb, netns).unwrap();
    assert_eq!(ask(Verb::Add(attachment.clone()), Some(netns)), Reply::Done);
    assert_eq!(ask(Verb::Del(attachment), None), Reply::Done);
    wait::until("the agent to be idle again", PATIENCE, || ask(Verb::Status, None) == Reply::Done).unwrap();
    let listeners = proxy_listeners(&mesh.pod).unwrap();
    let mut outside = Listeners::default();
    outside.add_in_world("outside", &mesh.world, (REMOTE_V6, 80)).unwrap();
    outside.extend(listeners);
    let (arrival, ..) = dial(mesh.pod.app(), (REMOTE_V6, 80), &outside).unwrap();
    assert_eq!(arrival.at, "outside", "the pod is not enrolled any more");
}
