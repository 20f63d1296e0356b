//! `veer doctor` on this machine's own kernel, with a cgroup, a bpffs, a run directory and CNI directories of the
//! test's: it finds what is there and what is in the way, says what to do, and leaves nothing behind.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output};

use rustix::thread::CapabilitySet;
use serde_json::Value;
use tempfile::TempDir;
use veer_common::cni::{Attachment, PodReference, Reply, Verb};
use veer_tests::agent::Agent;
use veer_tests::attachment;
use veer_tests::cgroup::Cgroup;
use veer_tests::istio_init;
use veer_tests::launch::{Identity, Launch, veer_binary};
use veer_tests::manifest::Manifest;
use veer_tests::mesh::{Mesh, dial};
use veer_tests::netns::NetNs;
use veer_tests::pod::REMOTE_V4;
use veer_tests::scratch::{self, BpfFs};
use veer_tests::socket_lb::SocketLb;
use veer_tests::veth;

/// A node without an agent.
struct Node {
    cgroup: Cgroup,
    bpffs: BpfFs,
    directory: TempDir,
}

/// What `veer doctor` says.
struct Said {
    code: i32,
    report: Value,
}

const CONFLIST: &str =
    r#"{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "bridge"}, {"type": "veer-cni"}]}"#;

impl Node {
    /// With a chain that has veer in it.
    fn new() -> Self {
        let directory = scratch::directory().unwrap();
        let bpffs = BpfFs::mount(&directory.path().join("bpf")).unwrap();
        let node = Self { cgroup: Cgroup::new().unwrap(), bpffs, directory };
        for name in ["run", "net.d", "plugins"] {
            fs::create_dir(node.path(name)).unwrap();
        }
        symlink(veer_binary("VEER_CNI_BIN", "veer-cni").unwrap(), node.path("plugins/veer-cni")).unwrap();
        node.conf("10-net.conflist", CONFLIST);
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn conf(&self, name: &str, content: &str) {
        fs::write(self.path("net.d").join(name), content).unwrap();
    }

    fn command(&self, launch: &Launch) -> Command {
        let mut command = launch.command(veer_binary("VEER_BIN", "veer").unwrap()).unwrap();
        command
            .arg("doctor")
            .arg(format!("--cgroup={}", self.cgroup.path().display()))
            .arg(format!("--bpffs={}", self.bpffs.path().join("veer").display()))
            .arg(format!("--run-dir={}", self.path("run").display()))
            .arg(format!("--cni-conf-dir={}", self.path("net.d").display()))
            .arg(format!("--cni-bin-dir={}", self.path("plugins").display()));
        command
    }

    fn doctor(&self) -> Said {
        said(self.command(&Launch::new()).arg("--json"))
    }

    /// Whether there is no trace of a trial.
    fn is_clean(&self) -> bool {
        let below = fs::read_dir(self.cgroup.path()).unwrap().flatten();
        let cgroups = below.filter(|entry| entry.path().is_dir()).count();
        cgroups == 0 && !self.bpffs.path().join("veer").exists()
    }
}

fn said(command: &mut Command) -> Said {
    let output = command.output().unwrap();
    let code = output.status.code().unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    Said { code, report }
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

impl Said {
    fn findings(&self) -> &[Value] {
        self.report.get("findings").unwrap().as_array().unwrap()
    }

    /// Findings of this name.
    fn named(&self, name: &str) -> Vec<&Value> {
        self.findings().iter().filter(|finding| finding["name"] == name).collect()
    }

    /// A finding of this name and level that says this.
    #[track_caller]
    fn has(&self, name: &str, level: &str, says: &str) -> &Value {
        let found = self
            .named(name)
            .into_iter()
            .find(|finding| finding["level"] == level && finding["says"].as_str().unwrap().contains(says));
        found.unwrap_or_else(|| panic!("no {level} {name} that says {says:?} in {:#}", self.report))
    }

    /// Every finding that is not in order has its way out, and the worst decides what the command ends with.
    #[track_caller]
    fn is_coherent(&self) {
        let findings = self.findings();
        let stuck: Vec<_> = findings.iter().filter(|f| f["level"] != "ok" && f["do"].is_null()).collect();
        assert!(stuck.is_empty(), "{stuck:#?}");
        let worst = ["ok", "warning", "error"]
            .iter()
            .rposition(|level| findings.iter().any(|finding| finding["level"] == *level))
            .unwrap();
        assert_eq!(self.code, i32::try_from(worst).unwrap(), "{:#}", self.report);
    }
}

#[test]
fn an_able_node_is_told_so_and_nothing_is_left_on_it() {
    let node = Node::new();
    let said = node.doctor();
    said.is_coherent();
    assert!(said.code < 2, "{:#}", said.report);
    assert_eq!(said.report["backend"], "ebpf");
    for (name, says) in [
        ("capabilities", "CAP_BPF"),
        ("backend", "ebpf"),
        ("ebpf-maps", "all"),
        ("ebpf-programs", "the verifier has accepted them"),
        ("ebpf-hooks", "attached and taken away again"),
        // The kernel or, before 5.14, a program.
        ("netns-cookie", "cookie"),
        // Programs or, before 5.17, rules.
        ("interfaces", "redirects pods that exclude interfaces"),
        ("nftables", "could redirect in ip and ip6"),
        ("cgroup", node.cgroup.path().to_str().unwrap()),
        ("bpf-order", "nobody else's"),
        ("bpffs", "can be pinned"),
        ("run-dir", "sockets can be made"),
        ("agent", "none runs here"),
        ("cni-config", "10-net.conflist (bridge, veer-cni)"),
        ("cni-chain", "veer-cni is in it"),
        ("cni-plugin", "veer-cni is in"),
    ] {
        said.has(name, "ok", says);
    }
    assert!(node.is_clean());
}

#[test]
fn the_text_says_the_same_in_100_columns() {
    let node = Node::new();
    let output = node.command(&Launch::new()).output().unwrap();
    let text = text(&output);
    assert!(text.contains("This node is able"), "{text}");
    // A path has as many columns as it has; all else is broken into lines.
    let long: Vec<_> =
        text.lines().filter(|line| line.chars().count() > 100 && !line.contains('/')).collect();
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn without_capabilities_each_that_is_missing_is_named_with_what_it_is_for() {
    let node = Node::new();
    let launch = Launch::new().without(&[CapabilitySet::BPF, CapabilitySet::SYS_ADMIN]);
    let said = said(node.command(&launch).arg("--json"));
    said.is_coherent();
    assert_eq!(said.code, 2);
    said.has("capabilities", "error", "CAP_BPF is missing: it is needed to load programs");
    said.has("capabilities", "error", "CAP_SYS_ADMIN is missing");
    said.has("ebpf-maps", "error", "Operation not permitted");
    said.has("backend", "error", "none");
    assert_eq!(said.report["backend"], Value::Null);
    assert!(node.is_clean());
}

#[test]
fn without_net_raw_it_says_what_cannot_be_seen_as_a_warning() {
    let node = Node::new();
    let said = said(node.command(&Launch::new().without(&[CapabilitySet::NET_RAW])).arg("--json"));
    said.has(
        "capabilities",
        "warning",
        "CAP_NET_RAW is missing: it is needed to see rules of the old iptables",
    );
    said.is_coherent();
    assert!(node.is_clean());
}

#[test]
fn without_net_admin_the_first_map_that_needs_it_is_named() {
    let node = Node::new();
    let launch = Launch::new().without(&[CapabilitySet::NET_ADMIN, CapabilitySet::SYS_ADMIN]);
    let said = said(node.command(&launch).arg("--json"));
    assert_eq!(said.code, 2);
    said.has("capabilities", "error", "CAP_NET_ADMIN is missing");
    said.has("ebpf-maps", "error", "`LISTENERS`: Operation not permitted");
    said.has("bpf-order", "warning", "connect4, connect6: cannot tell whose programs are there");
    assert!(node.is_clean());
}

#[test]
fn a_capability_that_another_replaces_is_no_error() {
    let node = Node::new();
    let said = said(node.command(&Launch::new().without(&[CapabilitySet::BPF])).arg("--json"));
    said.has("capabilities", "ok", "CAP_SYS_ADMIN stands in for it");
    assert_eq!(said.report["backend"], "ebpf");
}

#[test]
fn somebody_without_privileges_is_told_what_he_can_see() {
    let node = Node::new();
    let said = said(node.command(&Launch::new().with_identity(Identity::app())).arg("--json"));
    said.is_coherent();
    assert_eq!(said.code, 1, "{:#}", said.report);
    said.has("capabilities", "warning", "uid 1000 without capabilities");
    said.has("ebpf", "warning", "cannot tell");
    said.has("other-meshes", "warning", "cannot tell");
    said.has("cni-config", "ok", "10-net.conflist");
    assert_eq!(said.named("ebpf")[0]["do"], "run it as root on the node");
}

#[test]
fn beside_an_agent_it_says_so_and_does_not_touch_it() {
    let mesh = Mesh::new().unwrap();
    let listeners = mesh.proxy_listeners().unwrap();
    let before = mesh.agent.json(&["status"]).unwrap();
    let said = said(&mut mesh.agent.command(&["doctor", "--json"]));
    said.is_coherent();
    let pid = mesh.agent.process().pid();
    said.has("agent", "ok", &format!("running (pid {pid}, release {})", env!("CARGO_PKG_VERSION")));
    said.has("agent", "ok", "1 pod enrolled");
    said.has(
        "cgroup",
        "ok",
        &format!("{} (where the running agent has attached them)", mesh.cgroup.path().display()),
    );
    said.has("ebpf-hooks", "ok", "all");
    assert_eq!(mesh.agent.json(&["status"]).unwrap()["programs"], before["programs"]);
    let to = SocketAddr::new(IpAddr::V4(REMOTE_V4), 80);
    assert_eq!(dial(mesh.pod.app(), to, &listeners).unwrap().0.at, "outbound");
}

#[test]
fn pods_without_their_agent_are_told_of() {
    let mut mesh = Mesh::new().unwrap();
    mesh.agent.kill().unwrap();
    let killed = said(&mut mesh.agent.command(&["doctor", "--json"]));
    killed.has("agent", "error", "nobody answers");
    fs::remove_file(mesh.agent.run_dir().join("control.sock")).unwrap();
    let gone = said(&mut mesh.agent.command(&["doctor", "--json"]));
    gone.has("agent", "warning", "no agent runs, and 1 pod is enrolled");
}

#[test]
fn a_directory_that_is_no_bpffs_is_an_error_that_names_one_that_is() {
    let node = Node::new();
    let mut command = Command::new(veer_binary("VEER_BIN", "veer").unwrap());
    command.args(["doctor", "--json"]);
    command.env("VEER_BPFFS", node.path("no-bpffs")).env("VEER_CGROUP", node.cgroup.path());
    let said = said(&mut command);
    said.is_coherent();
    assert_eq!(said.code, 2);
    let finding = said.has("bpffs", "error", "is not on a bpffs");
    assert!(finding["do"].as_str().unwrap().contains("--bpffs"), "{finding}");
}

fn service() -> (SocketAddr, SocketAddr) {
    let service = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 80);
    (service, SocketAddr::new(IpAddr::V4(REMOTE_V4), 8080))
}

#[test]
fn a_load_balancer_at_the_same_cgroup_comes_before_and_is_a_warning() {
    let node = Node::new();
    let (at, backend) = service();
    let _lb = SocketLb::attach(&node.cgroup, "cil_sock4_conne", at, backend).unwrap();
    let said = node.doctor();
    assert_eq!(said.code, 1, "{:#}", said.report);
    let finding = said.has(
        "bpf-order",
        "warning",
        "Cilium's socket load balancer) of the same cgroup runs before ours",
    );
    assert!(finding["says"].as_str().unwrap().contains("connect4: cil_sock4_conne (id "), "{finding}");
    assert!(finding["do"].as_str().unwrap().contains("socketLB.hostNamespaceOnly=true"), "{finding}");
}

#[test]
fn a_load_balancer_above_comes_after_and_its_place_is_told() {
    let root = Cgroup::new().unwrap();
    let (at, backend) = service();
    let pods = root.child("kubepods").unwrap();
    let agent = Agent::start(&pods).unwrap();
    let _lb = SocketLb::attach(&root, "calico_connect_", at, backend).unwrap();
    let said = said(&mut agent.command(&["doctor", "--json"]));
    let finding = said.has("bpf-order", "ok", "no harm");
    let says = finding["says"].as_str().unwrap();
    let ours = says.find("connect4: veer_connect4 (id ").unwrap();
    let theirs = says.find(", then calico_connect_ (id ").unwrap();
    assert!(ours < theirs && says.contains(root.path().to_str().unwrap()), "{says}");
}

#[test]
fn rules_of_istio_init_are_found_in_a_pods_netns_whether_it_is_enrolled_or_not() {
    let mesh = Mesh::not_enrolled().unwrap();
    istio_init::apply(mesh.pod.netns()).unwrap();
    let doctor = || said(&mut mesh.agent.command(&["doctor", "--json"]));
    doctor().has("other-meshes", "warning", "istio-init or istio-cni redirects");
    mesh.agent.enrol(&mesh.pod).unwrap();
    let said = doctor();
    assert_eq!(said.code, 2);
    said.is_coherent();
    let finding =
        said.has("redirected-twice", "error", "pod test/pod is enrolled and has rules of istio-init");
    assert!(finding["says"].as_str().unwrap().contains("ISTIO_INBOUND"), "{finding}");
}

#[test]
fn rules_of_the_old_iptables_are_found_as_well() {
    let mesh = Mesh::new().unwrap();
    let mut command = Command::new("iptables-legacy");
    command.args(["-t", "nat", "-N", "PROXY_INIT_OUTPUT"]);
    assert!(mesh.pod.netns().run(|| command.status()).unwrap().unwrap().success());
    let said = said(&mut mesh.agent.command(&["doctor", "--json"]));
    said.has(
        "redirected-twice",
        "error",
        "pod test/pod is enrolled and has rules of Linkerd, too (PROXY_INIT_OUTPUT)",
    );
}

#[test]
fn an_enrolled_pod_that_no_process_is_in_is_looked_into() {
    let agent = Agent::start(&Cgroup::new().unwrap()).unwrap();
    let netns = NetNs::new().unwrap();
    veth::ip(&netns, ["link add eth0 type bridge", "addr add 10.78.0.2/24 dev eth0", "link set eth0 up"])
        .unwrap();
    agent.write_manifest(&Manifest::new("test", "empty")).unwrap();
    let attachment = Attachment {
        container_id: netns.name().to_owned(),
        netns: netns.path().display().to_string(),
        interface: "eth0".to_owned(),
        network: "test".to_owned(),
        pod: Some(PodReference { namespace: "test".to_owned(), name: "empty".to_owned(), uid: None }),
    };
    let reply = attachment::ask(&agent.run_dir(), Verb::Add(attachment), Some(netns.as_fd())).unwrap();
    assert!(matches!(reply, Reply::Done), "{reply:?}");
    istio_init::apply(&netns).unwrap();
    let said = said(&mut agent.command(&["doctor", "--json"]));
    said.has("redirected-twice", "error", "pod test/empty is enrolled");
}

#[test]
fn of_two_configurations_the_one_that_the_runtime_uses_is_judged() {
    let node = Node::new();
    // By its name it comes before 10-net.conflist.
    node.conf("10-net.conf", r#"{"cniVersion": "1.0.0", "name": "n", "type": "calico"}"#);
    let said = node.doctor();
    assert_eq!(said.code, 1, "{:#}", said.report);
    said.has("cni-config", "ok", "10-net.conf (calico); it comes before 10-net.conflist");
    said.has("cni-chain", "warning", "veer-cni is in 10-net.conflist, and the runtime uses 10-net.conf");
}

#[test]
fn a_broken_first_configuration_is_an_error() {
    let node = Node::new();
    node.conf("05-half.conflist", r#"{"cniVersion": "1.0.0", "plugins": ["#);
    let said = node.doctor();
    assert_eq!(said.code, 2);
    said.has("cni-config", "error", "05-half.conflist comes first, and is no JSON");
}

#[test]
fn istio_cni_beside_veer_is_an_error() {
    let node = Node::new();
    let chain = CONFLIST.replace(r#"{"type": "veer-cni"}"#, r#"{"type": "istio-cni"}, {"type": "veer-cni"}"#);
    node.conf("10-net.conflist", &chain);
    let said = node.doctor();
    assert_eq!(said.code, 2);
    said.has("cni-meshes", "error", "would be redirected twice");
}

#[test]
fn a_plugin_that_cannot_be_executed_is_a_warning() {
    let node = Node::new();
    let plugin = node.path("plugins/veer-cni");
    fs::remove_file(&plugin).unwrap();
    fs::write(&plugin, "").unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o644)).unwrap();
    node.doctor().has("cni-plugin", "warning", "veer-cni cannot be executed");
}

#[test]
fn all_wrong_flags_are_told_at_once() {
    let mut command = Command::new(veer_binary("VEER_BIN", "veer").unwrap());
    let output = command.args(["doctor", "--cgroup=pods", "--cni-conf-dir=net.d"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert!(errors.contains("--cgroup") && errors.contains("--cni-conf-dir"), "{errors}");
}
