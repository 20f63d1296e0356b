//! Pods that come under the node's proxy and leave it again while they run, under a load that notices everything.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use socket2::{Domain, Type};
use tempfile::TempDir;
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::http::{self, Headers};
use veer_tests::launch::{Identity, Launch, kit_binary};
use veer_tests::load;
use veer_tests::manifest::Manifest;
use veer_tests::mesh::{APP, PATIENCE};
use veer_tests::node_proxy::NodeProxy;
use veer_tests::pod::{TestPod, World};
use veer_tests::process::Process;
use veer_tests::socket_maker::Maker;
use veer_tests::streams::{self, BYTES, Stream};
use veer_tests::{node_proxy, scratch, wait};

/// A pass comes each second here; on a machine where much comes and goes, a look at all processes takes a while.
const PASS: std::time::Duration = std::time::Duration::from_mins(1);

/// Uids are the machine's: tests run beside each other, and each has pods of its own.
fn unique_uid() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{:08x}-95b4-4b63-8a51-{number:012x}", std::process::id())
}

/// A node with its Envoy, a pod that moves, and one that is never in the mesh.
struct Node {
    proxy: NodeProxy,
    agent: Agent,
    moving: TestPod,
    other: TestPod,
    world: World,
    uid: String,
    _proxys: Cgroup,
    _cgroup: Cgroup,
    _place: TempDir,
    directory: TempDir,
}

impl Node {
    fn start() -> Self {
        let (cgroup, world) = (Cgroup::new().unwrap(), World::new().unwrap());
        let place = node_proxy::directory().unwrap();
        let proxy_dir = place.path().join("proxy");
        let flag = format!("--proxy-dir={}", proxy_dir.display());
        let agent = Agent::start_with(&cgroup, Launch::new(), &[&flag, "--reconcile-interval=1"]).unwrap();
        let proxys = cgroup.child("proxy").unwrap();
        let proxy = NodeProxy::start(&proxy_dir, world.netns(), &proxys).unwrap();
        let uid = unique_uid();
        let moving = TestPod::new(&world, &cgroup, &format!("pod{uid}")).unwrap();
        let other = TestPod::new(&world, &cgroup, "other").unwrap();
        let directory = scratch::directory().unwrap();
        Self {
            proxy,
            agent,
            moving,
            other,
            world,
            uid,
            _proxys: proxys,
            _cgroup: cgroup,
            _place: place,
            directory,
        }
    }

    fn app(&self, pod: &TestPod, name: &str) -> Process {
        let mut command = pod.launch(Identity::app()).command(kit_binary("echo-app").unwrap()).unwrap();
        command.arg("--name").arg(name);
        let mut app = Process::start(name, command, &self.directory.path().join(name)).unwrap();
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, APP));
        app.wait_ready(|| pod.netns().run(|| http::get_from(here, "/", &Headers::new()))?).unwrap();
        app
    }

    /// The moving pod's manifest, with this label.
    fn label(&self, proxy: &str) -> Manifest {
        let manifest = self.moving.manifest().with_uid(&self.uid).with_node_proxy();
        manifest.with_label("veer.dev/proxy", proxy)
    }

    fn moves_in(&self) {
        self.agent.write_manifest(&self.label("node")).unwrap();
        self.wait_in();
    }

    /// Labels the moving pod's namespace.
    fn label_namespace(&self, proxy: &str) {
        self.agent.write_namespace("test", ("veer.dev/proxy", proxy)).unwrap();
    }

    /// Waits until all of the pod is captured.
    fn wait_in(&self) {
        wait::until("the pod to be served by the node's proxy", PASS, || {
            self.pod().is_some_and(|pod| {
                let captures_all = ["/policy/allOutbound", "/policy/allInbound"];
                let captures_all = captures_all.map(|flag| pod.pointer(flag) == Some(&json!(true)));
                pod.get("driver") == Some(&json!("node")) && captures_all == [true, true]
            })
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", self.agent.log()));
        assert_eq!(self.pod().unwrap().pointer("/proxy/state"), Some(&json!("ready")));
    }

    fn moves_out(&self) {
        self.agent.write_manifest(&self.label("none")).unwrap();
        self.wait_out();
    }

    /// Waits until the pod is out, and Envoy has nothing of it.
    fn wait_out(&self) {
        wait::until("the pod to be out of the mesh", PASS, || self.pod().is_none()).unwrap();
        let name = self.moving.name();
        wait::until("Envoy to have nothing of it", PASS, || {
            !self.proxy.admin("/listeners").unwrap().contains(name)
        })
        .unwrap();
    }

    fn pod(&self) -> Option<Value> {
        let pods = self.agent.json(&["pods"]).unwrap();
        pods.as_array()?.iter().find(|pod| pod["name"] == self.moving.name()).cloned()
    }
}

/// Who dials whom.
enum Dialler<'a> {
    Out(Maker, SocketAddr),
    In(&'a World, SocketAddr),
}

fn ask(dialler: &Dialler<'_>) -> Result<()> {
    let (socket, to) = match dialler {
        Dialler::Out(maker, to) => (maker.socket(Domain::for_address(*to), Type::STREAM, None)?, *to),
        Dialler::In(world, to) => (world.socket(Domain::for_address(*to), Type::STREAM, None)?, *to),
    };
    socket.connect_timeout(&to.into(), wait::scaled(PATIENCE))?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(wait::scaled(PATIENCE)))?;
    let response = http::get(&mut stream, "app", "/", &Headers::new())?;
    ensure!(response.status == 200, "{to} says {}", response.status);
    Ok(())
}

#[test]
fn a_pod_that_comes_under_the_nodes_proxy_and_leaves_it_twice_loses_no_request() {
    let node = Node::start();
    let (moving, other) = (&node.moving, &node.other);
    let _apps = [node.app(moving, "moving"), node.app(other, "other")];
    node.agent.write_manifest(&node.label("none")).unwrap();
    let app = || moving.maker(Identity::app()).unwrap();
    let diallers = [
        Dialler::Out(app(), (other.v4(), APP).into()),
        Dialler::Out(app(), (other.v6(), APP).into()),
        Dialler::In(&node.world, (moving.v4(), APP).into()),
        Dialler::In(&node.world, (moving.v6(), APP).into()),
    ];
    let made = load::during(
        &diallers,
        |dialler, _turn| ask(dialler),
        |progress| {
            progress.wait_for(100).unwrap();
            for turn in 1..=2 {
                node.moves_in();
                progress.wait_for(100).unwrap();
                // It goes through Envoy, in both directions.
                for direction in ["outbound", "inbound"] {
                    let is_it = |entry: &Value| entry["direction"] == direction && entry["status"] == 200;
                    node.proxy.entry(&format!("{direction} of turn {turn}"), is_it).unwrap();
                }
                let counted = node.pod().unwrap()["totals"].clone();
                assert!(counted["toOutbound"].as_u64() > Some(0) && counted["toInbound"].as_u64() > Some(0));
                node.moves_out();
                progress.wait_for(100).unwrap();
            }
        },
    )
    .unwrap();
    println!("{made} requests, none lost");
}

#[test]
fn a_pod_moves_with_the_label_of_its_namespace_and_loses_no_request() {
    let node = Node::start();
    let (moving, other) = (&node.moving, &node.other);
    let _apps = [node.app(moving, "moving"), node.app(other, "other")];
    node.agent.write_manifest(&moving.manifest().with_uid(&node.uid).without_sidecar()).unwrap();
    let diallers = [
        Dialler::Out(moving.maker(Identity::app()).unwrap(), (other.v4(), APP).into()),
        Dialler::In(&node.world, (moving.v6(), APP).into()),
    ];
    let made = load::during(
        &diallers,
        |dialler, _turn| ask(dialler),
        |progress| {
            progress.wait_for(50).unwrap();
            node.label_namespace("node");
            node.wait_in();
            progress.wait_for(50).unwrap();
            for direction in ["outbound", "inbound"] {
                let is_it = |entry: &Value| entry["direction"] == direction && entry["status"] == 200;
                node.proxy.entry(direction, is_it).unwrap();
            }
            node.label_namespace("none");
            node.wait_out();
            progress.wait_for(50).unwrap();
        },
    )
    .unwrap();
    println!("{made} requests, none lost");
}

#[test]
fn connections_that_are_open_stay_what_they_are_when_their_pod_moves() {
    let node = Node::start();
    let listener = streams::listen(&node.moving, BYTES).unwrap();
    let connect =
        || Stream::from_world(&node.world, &listener, SocketAddr::from((node.moving.v4(), BYTES))).unwrap();
    node.agent.write_manifest(&node.label("none")).unwrap();
    let mut direct = connect();
    node.moves_in();
    direct.exchange().unwrap();
    let mut proxied = connect();
    let passthrough =
        |stream: &Stream| stream.server.peer_addr().unwrap().as_socket().unwrap().ip().is_loopback();
    assert!(!passthrough(&direct) && passthrough(&proxied));
    proxied.exchange().unwrap();
    node.moves_out();
    direct.exchange().unwrap();
    let mut again = connect();
    assert!(!passthrough(&again));
    again.exchange().unwrap();
}

#[test]
fn an_agent_that_was_not_there_when_a_label_changed_moves_the_pod_when_it_starts() {
    let mut node = Node::start();
    node.agent.write_manifest(&node.label("node")).unwrap();
    node.wait_in();
    node.agent.kill().unwrap();
    node.agent.write_manifest(&node.label("none")).unwrap();
    node.agent.start_again().unwrap();
    wait::until("the pod to be out of the mesh", PASS, || node.pod().is_none()).unwrap();
    assert_eq!(node.agent.json(&["status"]).unwrap()["agent"]["unrepaired"], json!([]));
}
