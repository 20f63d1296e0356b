//! Pods that come under a proxy of the node's, go to another one, and leave it again while they run, under a load that notices everything.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests panic as tests do")]

mod node;
mod ztunnel;

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use socket2::{Domain, Type};
use tempfile::TempDir;
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::http::{self, Headers};
use veer_tests::launch::{Identity, Launch, kit_binary};
use veer_tests::manifest::Manifest;
use veer_tests::mesh::{APP, PATIENCE};
use veer_tests::node_proxy::NodeProxy;
use veer_tests::pod::{TestPod, World};
use veer_tests::process::Process;
use veer_tests::socket_maker::Maker;
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
    cgroup: Cgroup,
    _place: TempDir,
    directory: TempDir,
}

impl Node {
    fn start() -> Self {
        Self::start_with(None)
    }

    /// One whose agent tells ztunnel, too.
    fn start_with(ztunnel_socket: Option<&Path>) -> Self {
        let (cgroup, world) = (Cgroup::new().unwrap(), World::new().unwrap());
        let place = node_proxy::directory().unwrap();
        let proxy_dir = place.path().join("proxy");
        let flag = format!("--proxy-dir={}", proxy_dir.display());
        let ztunnel_flag = ztunnel_socket.map(|socket| format!("--ztunnel-socket={}", socket.display()));
        let mut arguments = vec![flag.as_str(), "--reconcile-interval=1"];
        arguments.extend(ztunnel_flag.as_deref());
        let agent = Agent::start_with(&cgroup, Launch::new(), &arguments).unwrap();
        let proxys = cgroup.child("proxy").unwrap();
        let proxy = NodeProxy::start(&proxy_dir, world.netns(), &proxys).unwrap();
        let uid = unique_uid();
        let moving = TestPod::new(&world, &cgroup, &format!("pod{uid}")).unwrap();
        let other = TestPod::new(&world, &cgroup, "other").unwrap();
        let directory = scratch::directory().unwrap();
        Self { proxy, agent, moving, other, world, uid, _proxys: proxys, cgroup, _place: place, directory }
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

    /// Waits until all of the pod is captured for the node's Envoy.
    fn wait_in(&self) {
        self.wait_driven_by("node");
        assert_eq!(self.pod().unwrap().pointer("/proxy/state"), Some(&json!("ready")));
    }

    /// Waits until all of the pod is captured for this one.
    fn wait_driven_by(&self, driver: &str) {
        wait::until(&format!("the pod to be served by {driver}"), PASS, || {
            self.pod().is_some_and(|pod| {
                let captures_all = ["/policy/allOutbound", "/policy/allInbound"];
                let captures_all = captures_all.map(|flag| pod.pointer(flag) == Some(&json!(true)));
                pod.get("driver") == Some(&json!(driver)) && captures_all == [true, true]
            })
        })
        .unwrap_or_else(|error| panic!("{error}\n{}\n{:?}", self.agent.log(), self.pod()));
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

/// The rules of a pod's netns by which its app's answers find to ztunnel.
fn ways(pod: &TestPod) -> usize {
    let of_family = |family| {
        let show = || Command::new("ip").args([family, "rule", "show", "table", "100"]).output();
        let output = pod.netns().run(show).unwrap().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().count()
    };
    of_family("-4") + of_family("-6")
}
