//! Pods that are older than the agent, or that nobody has told it of: found, and redirected while they run.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::istio_init;
use veer_tests::launch::{Identity, Launch};
use veer_tests::manifest::Manifest;
use veer_tests::mesh::{APP, INBOUND, Listeners, OUTBOUND, dial, dial_from_world};
use veer_tests::netns::NetNs;
use veer_tests::pod::{REMOTE_V4, TestPod, World};
use veer_tests::socket_maker::Maker;
use veer_tests::{scratch, wait};

const REMOTE: SocketAddr = SocketAddr::new(IpAddr::V4(REMOTE_V4), 80);

/// Uids are the machine's: tests run beside each other, and each has pods of its own.
fn unique_uid() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{:08x}-95b4-4b63-8a50-{number:012x}", std::process::id())
}

/// A pass comes each second here; on a machine where much comes and goes, a look at all processes takes a while.
const PASS: Duration = Duration::from_mins(1);

/// A pod that runs, with its proxy, and an agent that was not told of it.
struct Node {
    agent: Agent,
    pod: TestPod,
    world: World,
    listeners: Listeners,
    cache: TempDir,
    cgroup: Cgroup,
    uid: String,
}

impl Node {
    fn new() -> Self {
        let (cgroup, world, cache) =
            (Cgroup::new().unwrap(), World::new().unwrap(), scratch::directory().unwrap());
        let uid = unique_uid();
        let pod = TestPod::new(&world, &cgroup, &format!("pod{uid}")).unwrap();
        let mut listeners = Listeners::default();
        let any = IpAddr::from([0, 0, 0, 0]);
        listeners.add("outbound", pod.proxy(), (any, OUTBOUND)).unwrap();
        listeners.add("inbound", pod.proxy(), (any, INBOUND)).unwrap();
        listeners.add("app", pod.app(), (any, APP)).unwrap();
        listeners.add_in_world("outside", &world, (any, REMOTE.port())).unwrap();
        let arguments =
            [format!("--cni-cache={}", cache.path().display()), "--reconcile-interval=1".to_owned()];
        let arguments = arguments.each_ref().map(String::as_str);
        let agent = Agent::start_with(&cgroup, Launch::new(), &arguments).unwrap();
        Self { agent, pod, world, listeners, cache, cgroup, uid }
    }

    fn manifest(&self) -> Manifest {
        self.pod.manifest().with_uid(&self.uid)
    }

    /// Where connections of the pod and to the pod end.
    fn ends(&self) -> (&'static str, &'static str) {
        let (outbound, ..) = dial(self.pod.app(), REMOTE, &self.listeners).unwrap();
        let (inbound, ..) = dial_from_world(&self.world, (self.pod.v4(), APP), &self.listeners).unwrap();
        (outbound.at, inbound.at)
    }

    /// The pod as `veer pods` shows it, once it is enrolled.
    fn enrolled(&self) -> Value {
        let name = format!("test/{}", self.pod.name());
        // The policy comes last.
        let whole = || self.agent.json(&["pods", &name]).ok().filter(|pod| pod["policy"].is_object());
        wait::until_some("the pod to be enrolled", PASS, whole).unwrap()
    }

    /// What `veer status` says cannot be repaired, once it says so.
    fn problem(&self) -> String {
        let problem = || {
            let status = self.agent.json(&["status"]).unwrap();
            status.pointer("/agent/unrepaired/0/problem")?.as_str().map(str::to_owned)
        };
        wait::until_some("a problem to be told", PASS, problem).unwrap()
    }

    /// What the runtime's libcni leaves behind for an attachment of the pod.
    fn note(&self, container_id: &str, netns: &NetNs) {
        let note = json!({
            "kind": "cniCacheV1",
            "containerId": container_id,
            "config": "e30=",
            "ifName": "eth0",
            "networkName": "test",
            "netns": netns.path(),
            "cniArgs": [["K8S_POD_NAMESPACE", "test"], ["K8S_POD_NAME", self.pod.name()], ["K8S_POD_UID", self.uid]],
            "result": {"cniVersion": "1.0.0"},
        });
        let results = self.cache.path().join("results");
        fs::create_dir_all(&results).unwrap();
        fs::write(results.join(format!("test-{container_id}-eth0")), note.to_string()).unwrap();
    }
}

const CAPTURED: (&str, &str) = ("outbound", "inbound");
const DIRECT: (&str, &str) = ("outside", "app");

#[test]
fn a_pod_older_than_the_agent_is_found_by_its_processes_and_redirected_while_it_runs() {
    let node = Node::new();
    assert_eq!(node.ends(), DIRECT, "nobody has said that it is to be redirected");
    let client = node.pod.app().tcp4().unwrap();
    client.connect(&REMOTE.into()).unwrap();
    let (_, server) = node.listeners.accept().unwrap();
    node.agent.write_manifest(&node.manifest()).unwrap();
    node.enrolled();
    assert_eq!(node.ends(), CAPTURED, "its proxy listened before, too");
    let (mut client, mut server, mut byte) = (TcpStream::from(client), TcpStream::from(server), [0]);
    client.write_all(b"?").unwrap();
    server.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"?", "what was open stays as it was");
    let is_told = || node.agent.log().contains("is redirected from here on");
    wait::until("the log to tell of it", PASS, is_told).unwrap();
}

#[test]
fn a_pod_that_the_runtime_has_noted_is_unenrolled_by_the_runtimes_own_del() {
    let mut node = Node::new();
    node.agent.stop().unwrap();
    node.note(node.pod.netns().name(), node.pod.netns());
    node.agent.write_manifest(&node.manifest()).unwrap();
    node.agent.start_again().unwrap();
    let pod = node.enrolled();
    assert_eq!(pod["containerId"], node.pod.netns().name(), "{pod:#}");
    assert_eq!(node.ends(), CAPTURED);
    node.agent.remove_manifest(&node.manifest()).unwrap();
    node.agent.unenrol(&node.pod).unwrap();
    assert_eq!(node.ends(), DIRECT);
}

#[test]
fn a_pod_that_another_mesh_redirects_is_left_to_it_and_told_of() {
    let node = Node::new();
    istio_init::apply(node.pod.netns()).unwrap();
    node.agent.write_manifest(&node.manifest()).unwrap();
    let problem = node.problem();
    assert!(problem.contains("istio-init or istio-cni redirects it already; delete the pod"), "{problem}");
    let text = node.agent.command(&["status"]).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(
        text.contains(&format!("test/{}: istio-init or istio-cni redirects it", node.pod.name())),
        "{text}"
    );
}

#[test]
fn processes_in_two_namespaces_are_told_of_and_a_note_of_the_runtime_decides() {
    let node = Node::new();
    let other = NetNs::new().unwrap();
    let elsewhere = Maker::start(&other, node.pod.cgroup(), Identity::app()).unwrap();
    elsewhere.tcp4().expect("it is where it should be once it answers");
    node.agent.write_manifest(&node.manifest()).unwrap();
    let problem = node.problem();
    assert!(problem.contains("its processes are in 2 network namespaces"), "{problem}");
    assert_eq!(node.ends(), DIRECT);
    node.note("c0ffee", node.pod.netns());
    node.enrolled();
    assert_eq!(node.ends(), CAPTURED);
    wait::until("nothing to be told any more", PASS, || {
        node.agent.json(&["status"]).unwrap()["agent"]["unrepaired"] == json!([])
    })
    .unwrap();
}

#[test]
fn the_nodes_own_netns_is_never_redirected() {
    let (node, host) = (Node::new(), unique_uid());
    let cgroup = node.cgroup.child(&format!("pod{host}")).unwrap();
    let process = Launch::new().in_cgroup(&cgroup).command("sleep").unwrap().arg("60").spawn();
    node.agent.write_manifest(&Manifest::new("test", "host").with_uid(&host)).unwrap();
    let problem = node.problem();
    assert!(problem.contains("in the node's own netns, which is never redirected"), "{problem}");
    let mut process = process.unwrap();
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn a_netns_that_two_pods_are_in_is_left_alone() {
    let (node, other) = (Node::new(), unique_uid());
    let cgroup = node.cgroup.child(&format!("pod{other}")).unwrap();
    let inside = Maker::start(node.pod.netns(), &cgroup, Identity::app()).unwrap();
    inside.tcp4().expect("it is where it should be once it answers");
    node.agent.write_manifest(&node.manifest()).unwrap();
    let problem = node.problem();
    assert!(problem.contains(&format!("a process of another pod ({other}) is in its netns")), "{problem}");
    assert_eq!(node.ends(), DIRECT);
}
