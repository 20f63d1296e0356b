//! TPROXY with a real Envoy that shows its app the client's address (`original_src`), as Istio configures it: root with
//! NET_ADMIN. While the agent is there, and when veer is taken off the node.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests panic as tests do")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::Socket;
use tempfile::TempDir;
use veer_tests::agent::Agent;
use veer_tests::backend::Backend;
use veer_tests::cgroup::Cgroup;
use veer_tests::envoy::{self, Envoy, Sidecar};
use veer_tests::launch::{Identity, Launch};
use veer_tests::manifest::Manifest;
use veer_tests::mesh::{Arrival, Listeners, PATIENCE, dial, dial_from_world, dual_stack};
use veer_tests::netfilter::Netfilter;
use veer_tests::on_each_backend;
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, ROUTER_V4, ROUTER_V6, TestPod, World};
use veer_tests::scratch;

on_each_backend! {
    open_streams_go_on_when_veer_goes_and_new_connections_go_direct,
    streams_that_are_inbound_alone_are_seen_and_go_on,
}

/// A port that is not spoken to with HTTP.
const STREAM: u16 = 9000;

fn manifest(pod: &TestPod) -> Manifest {
    dual_stack(pod).with_annotation("sidecar.istio.io/interceptionMode", "TPROXY")
}

/// A node, a pod with its Envoy and an app, and a server in the world.
struct Node {
    _envoy: Envoy,
    _directory: TempDir,
    app: Listeners,
    outside: Listeners,
    agent: Agent,
    streaming: TestPod,
    idle: TestPod,
    world: World,
    _cgroup: Cgroup,
}

impl Node {
    fn new(backend: Backend) -> Self {
        let cgroup = Cgroup::new().unwrap();
        let agent = Agent::start_with(&cgroup, Launch::new(), &[&backend.flag()]).unwrap();
        let world = World::new().unwrap();
        let [streaming, idle] =
            ["streaming", "idle"].map(|name| TestPod::new(&world, &cgroup, name).unwrap());
        for pod in [&streaming, &idle] {
            agent.enrol_as(pod, &manifest(pod)).unwrap();
        }
        let directory = scratch::directory().unwrap();
        let launch = streaming.launch(Identity::root());
        let (netns, directory_path) = (streaming.netns(), directory.path());
        let sidecar = Sidecar { netns, launch, directory: directory_path, http_ports: &[], workers: 2 };
        let envoy = sidecar.start_transparent().unwrap();
        let (mut app, mut outside) = (Listeners::default(), Listeners::default());
        for (any, remote) in [
            (IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(REMOTE_V4)),
            (Ipv6Addr::UNSPECIFIED.into(), REMOTE_V6.into()),
        ] {
            app.add("app", streaming.app(), (any, STREAM)).unwrap();
            outside.add_in_world("outside", &world, (remote, STREAM)).unwrap();
        }
        Self {
            _envoy: envoy,
            _directory: directory,
            app,
            outside,
            agent,
            streaming,
            idle,
            world,
            _cgroup: cgroup,
        }
    }

    /// Connections from the world to the app, in both families; the app sees who dialled.
    fn inbound(&self) -> Vec<(Arrival, Socket, Socket)> {
        let own = [IpAddr::from(self.streaming.v4()), self.streaming.v6().into()];
        let clients = [IpAddr::from(ROUTER_V4), ROUTER_V6.into()];
        let dialled = own.map(|own| dial_from_world(&self.world, (own, STREAM), &self.app).unwrap());
        for ((arrival, ..), client) in dialled.iter().zip(clients) {
            assert_eq!(arrival.peer.ip(), client, "{arrival:?}");
        }
        dialled.into()
    }

    /// Connections of the app to the world, in both families.
    fn outbound(&self) -> Vec<(Arrival, Socket, Socket)> {
        let to = [SocketAddr::from((REMOTE_V4, STREAM)), SocketAddr::from((REMOTE_V6, STREAM))];
        to.map(|to| dial(self.streaming.app(), to, &self.outside).unwrap()).into()
    }

    /// Connections that Envoy's listeners have taken.
    fn taken(&self) -> u64 {
        let stats = envoy::stats(self.streaming.netns()).unwrap();
        let ends = ["_15001.downstream_cx_total", "_15006.downstream_cx_total"];
        let of_listener = |name: &str| ends.iter().any(|end| name.ends_with(end));
        stats.iter().filter(|(name, _)| of_listener(name)).map(|(_, count)| count).sum()
    }
}

/// A byte goes there and another comes back.
fn exchange(stream: &(Arrival, Socket, Socket)) {
    let (arrival, mut one, mut other) = (&stream.0, &stream.1, &stream.2);
    let mut bytes = [0; 2];
    for socket in [one, other] {
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let (first, second) = bytes.split_at_mut(1);
    one.write_all(b"a").unwrap();
    other.read_exact(first).unwrap_or_else(|error| panic!("there, {arrival:?}: {error}"));
    other.write_all(b"b").unwrap();
    one.read_exact(second).unwrap_or_else(|error| panic!("and back, {arrival:?}: {error}"));
    assert_eq!(&bytes, b"ab");
}

/// Whether marked packets have a way of their own in the pod: through the table of rules, or that of programs.
fn has_marks(pod: &TestPod) -> bool {
    let lists = ["-4", "-6"].map(|family| {
        let show = || std::process::Command::new("ip").args([family, "rule", "show"]).output();
        String::from_utf8(pod.netns().run(show).unwrap().unwrap().stdout).unwrap()
    });
    lists.iter().any(|rules| rules.contains("fwmark"))
}

fn open_streams_go_on_when_veer_goes_and_new_connections_go_direct(backend: Backend) {
    let mut node = Node::new(backend);
    assert!(has_marks(&node.streaming) && has_marks(&node.idle));
    let before = node.taken();
    let streams: Vec<_> = node.inbound().into_iter().chain(node.outbound()).collect();
    streams.iter().for_each(exchange);
    let taken = node.taken();
    assert_eq!(taken, before + 4, "all through Envoy");
    node.agent.stop().unwrap();

    let output = node.agent.command(&["uninstall", "--json"]).output().unwrap();

    assert!(output.status.success(), "{output:?}");
    streams.iter().for_each(exchange);
    node.inbound().iter().chain(&node.outbound()).for_each(exchange);
    assert_eq!(node.taken(), taken, "the new ones are none of Envoy's");
    streams.iter().for_each(exchange);
    assert!(Netfilter::of(node.idle.netns()).unwrap().none() && !has_marks(&node.idle));
}

fn streams_that_are_inbound_alone_are_seen_and_go_on(backend: Backend) {
    let mut node = Node::new(backend);
    let streams = node.inbound();
    streams.iter().for_each(exchange);
    node.agent.stop().unwrap();
    let output = node.agent.command(&["uninstall"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    streams.iter().for_each(exchange);
    // And nothing of it keeps veer from coming back.
    node.agent.start_again().unwrap();
    for pod in [&node.streaming, &node.idle] {
        node.agent.enrol_as(pod, &manifest(pod)).unwrap();
    }
    let taken = node.taken();
    node.inbound().iter().chain(&node.outbound()).for_each(exchange);
    assert_eq!(node.taken(), taken + 4);
    streams.iter().for_each(exchange);
}
