//! The operator's commands as programs: what they print, and how they end when something is wrong.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests panic as tests do")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use veer_tests::agent::Agent;
use veer_tests::backend::Backend;
use veer_tests::launch::{Identity, Launch, veer_binary};
use veer_tests::mesh::{
    APP, INBOUND, Listeners, Mesh, OUTBOUND, PATIENCE, connect, dial, dial_from_world, tcp,
};
use veer_tests::on_each_backend;
use veer_tests::pinned::Pinned;
use veer_tests::pod::REMOTE_V4;
use veer_tests::{scratch, wait};

on_each_backend! {
    pods_counts_every_connection_under_its_reason,
    a_pod_is_told_whole,
}

const REMOTE: SocketAddr = SocketAddr::new(IpAddr::V4(REMOTE_V4), 80);

/// How a command ended: its exit code, and what it wrote to either output.
#[derive(Debug)]
struct Ended {
    code: i32,
    out: String,
    errors: String,
}

fn ended(output: Output) -> Ended {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code().unwrap(), out: text(output.stdout), errors: text(output.stderr) }
}

/// `veer` without an agent, and without anything in its environment.
fn veer(arguments: &[&str]) -> Command {
    let mut command = Command::new(veer_binary("VEER_BIN", "veer").unwrap());
    command.args(arguments).env_clear();
    command
}

fn run(command: &mut Command) -> Ended {
    ended(command.output().unwrap())
}

fn say(agent: &Agent, arguments: &[&str]) -> Ended {
    run(&mut agent.command(arguments))
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

const COMMANDS: [&str; 5] = ["agent", "status", "pods", "monitor", "explain"];

#[test]
fn help_fits_a_terminal_of_100_columns_and_names_every_variable() {
    let all = run(&mut veer(&["--help"]));
    assert_eq!(all.code, 0, "{}", all.errors);
    for command in COMMANDS {
        assert!(all.out.lines().any(|line| line.trim_start().starts_with(command)), "{command}: {}", all.out);
    }
    assert!(all.out.contains("64 usage or configuration"), "{}", all.out);
    let of_command = |command| run(&mut veer(&[command, "--help"])).out;
    let helps = COMMANDS.map(of_command).into_iter().chain([all.out]);
    for help in helps {
        let longest = help.lines().max_by_key(|line| line.chars().count()).unwrap();
        assert!(longest.chars().count() <= 100, "{longest}");
        assert!(help.contains("Usage: veer"), "{help}");
    }
    let agent = of_command("agent").split_whitespace().collect::<Vec<_>>().join(" ");
    let flags = agent.split(' ').filter(|word| word.starts_with("--") && *word != "--help");
    for flag in flags {
        let variable = format!("VEER_{}", flag[2..].to_uppercase().replace('-', "_"));
        assert!(agent.contains(&format!("[env: {variable}=")), "{flag} has no {variable}: {agent}");
    }
}

#[test]
fn wrong_usage_ends_with_64_and_says_how_it_is_right() {
    let rows: [(&[&str], &str); 8] = [
        (&[], "Usage: veer <COMMAND>"),
        (&["explode"], "unrecognized subcommand 'explode'"),
        (&["statsu"], "a similar subcommand exists: 'status'"),
        (&["status", "--loud"], "unexpected argument '--loud'"),
        (&["pods", "a/b", "c/d"], "unexpected argument 'c/d'"),
        (&["monitor", "--count", "many"], "invalid value 'many' for '--count <N>'"),
        (&["monitor", "--count"], "a value is required for '--count <N>'"),
        (&["status", "--run-dir", "run"], "--run-dir (or VEER_RUN_DIR): \"run\" is not an absolute path"),
    ];
    for (arguments, text) in rows {
        let ended = run(&mut veer(arguments));
        assert_eq!((ended.code, ended.out.as_str()), (64, ""), "{arguments:?}");
        assert!(ended.errors.contains(text), "{arguments:?}: {}", ended.errors);
    }
}

#[test]
fn everything_that_is_wrong_with_a_configuration_is_said_at_once() {
    let flags = ["agent", "--run-dir=run", "--cgroup=kubepods", "--log-level=loud"];
    let mut command = veer(&flags);
    let variables = [("VEER_BPFFS", "bpf"), ("VEER_LOG_FORMAT", "xml"), ("VEER_EXCLUDE_NAMESPACES", "a_b")];
    let agent = run(command.envs(variables));
    assert_eq!(agent.code, 64);
    let begins = |line: &str| line.split(' ').next().unwrap().to_owned();
    let lines: Vec<String> = agent.errors.strip_prefix("veer: ").unwrap().lines().map(begins).collect();
    let expected = [
        "--pods-from",
        "--run-dir",
        "--bpffs",
        "--cgroup",
        "--exclude-namespaces",
        "--log-level",
        "--log-format",
    ];
    assert_eq!(lines, expected, "{}", agent.errors);

    let monitor = run(&mut veer(&["monitor", "--action=eat", "--reason=none", "--run-dir=x", "--bpffs=y"]));
    assert_eq!((monitor.code, monitor.errors.lines().count()), (64, 4), "{}", monitor.errors);
}

#[test]
fn a_node_without_a_datapath_is_69_and_says_what_to_do() {
    let nowhere = scratch::directory().unwrap();
    let flag = |name: &str| format!("--{name}={}", nowhere.path().join(name).display());
    for command in ["status", "pods"] {
        let ended = run(&mut veer(&[command, &flag("run-dir"), &flag("bpffs")]));
        assert_eq!((ended.code, ended.out.as_str()), (69, ""), "{command}: {}", ended.errors);
        let place = nowhere.path().join("bpffs").display().to_string();
        assert!(ended.errors.starts_with(&format!("veer: no datapath in {place}")), "{}", ended.errors);
        assert!(ended.errors.contains("start `veer agent`"), "{}", ended.errors);
    }
    let monitor = run(&mut veer(&["monitor", &flag("run-dir")]));
    assert_eq!(monitor.code, 69);
    assert!(monitor.errors.contains("is `veer agent` running?"), "{}", monitor.errors);
}

#[test]
fn an_agent_that_cannot_start_is_70_and_names_what_is_in_the_way() {
    let place = scratch::directory().unwrap();
    let path = |name: &str| place.path().join(name).display().to_string();
    let start = |pods: &str, bpffs: &str, cgroup: &str| {
        let pods = format!("--pods-from={pods}");
        let (bpffs, cgroup) = (format!("--bpffs={bpffs}"), format!("--cgroup={cgroup}"));
        let mut agent = veer(&["agent", &format!("--run-dir={}", path("run")), &pods, &bpffs, &cgroup]);
        // Other agents of this machine have the usual ports.
        run(agent.env("VEER_ADMIN_ADDR", "off").env("VEER_HEALTH_ADDR", "off"))
    };
    let root = veer_tests::cgroup::Cgroup::new().unwrap();
    let (root, here) = (root.path().display().to_string(), place.path().display().to_string());
    let rows = [
        (start(&path("none"), &path("bpf"), &root), "list pod manifests in"),
        (start(&here, &path("bpf"), "/proc"), "/proc is not in a cgroup v2 tree"),
        (start(&here, &path("bpf"), &root), "is not on a bpffs: mount one (mount -t bpf bpf /sys/fs/bpf)"),
    ];
    for (ended, text) in rows {
        assert_eq!(ended.code, 70, "{}", ended.errors);
        let last = ended.errors.lines().last().unwrap();
        assert!(last.starts_with("veer: ") && last.contains(text), "{}", ended.errors);
    }
}

#[test]
fn who_is_not_root_is_told_so() {
    let mesh = Mesh::new().unwrap();
    let bpffs = format!("--bpffs={}", mesh.agent.bpffs().display());
    let mut command = Launch::new()
        .with_identity(Identity::app())
        .command(veer_binary("VEER_BIN", "veer").unwrap())
        .unwrap();
    let ended = run(command.args(["pods", &bpffs]));
    assert_eq!((ended.code, ended.errors.as_str()), (70, "veer: only root can read the datapath's maps\n"));
}

#[test]
fn status_shows_the_node_and_ends_with_0_when_all_is_well() {
    let mesh = Mesh::new().unwrap();
    let _listeners = mesh.proxy_listeners().unwrap();
    let text = say(&mesh.agent, &["status"]);
    assert_eq!((text.code, text.errors.as_str()), (0, ""), "{}", text.out);
    let status = mesh.agent.json(&["status"]).unwrap();
    let programs = status["programs"].as_array().unwrap().len();
    for line in [
        &format!("agent      running, pid {}, version ", mesh.agent.process().pid()),
        &format!("datapath   {programs} of {programs} programs attached"),
        "pods       1 enrolled, 1 with a listening proxy",
        "faults     0",
    ] {
        assert!(text.out.lines().any(|found| found.starts_with(line)), "{line:?} is not in\n{}", text.out);
    }
    let expected = [
        "agent",
        "agentError",
        "awaitingProxy",
        "build",
        "enrolled",
        "faults",
        "handingOver",
        "listening",
        "otherVersions",
        "pins",
        "programs",
        "sharedCgroups",
    ];
    assert_eq!(keys(&status), expected);
    let expected = [
        "adminAddr",
        "backend",
        "backendReason",
        "beforeProxy",
        "build",
        "cgroup",
        "cni",
        "enrolled",
        "excludeNamespaces",
        "healthAddr",
        "lookedAt",
        "pid",
        "podsFrom",
        "proxies",
        "proxyIdentity",
        "runsBefore",
        "startedAt",
        "unrepaired",
        "version",
    ];
    assert_eq!(keys(&status["agent"]), expected);
    assert_eq!(status["agent"]["excludeNamespaces"], json!(["kube-system"]));
    assert_eq!(
        (&status["enrolled"], &status["listening"], &status["faults"]),
        (&json!(1), &json!(1), &json!(0))
    );
}

#[test]
fn status_of_a_dead_agent_shows_the_datapath_and_ends_with_69() {
    let mut mesh = Mesh::new().unwrap();
    mesh.agent.kill().unwrap();
    let ended = say(&mesh.agent, &["status"]);
    assert_eq!(ended.code, 69);
    assert!(ended.out.starts_with("agent      not running; enrolled pods stay redirected"), "{}", ended.out);
    assert!(ended.out.contains(" programs attached, build "), "{}", ended.out);
    assert!(ended.errors.contains("is `veer agent` running?"), "{}", ended.errors);
    let ended = say(&mesh.agent, &["status", "--json"]);
    let status: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((ended.code, &status["agent"], &status["enrolled"]), (69, &Value::Null, &json!(1)));
    assert_eq!(say(&mesh.agent, &["pods"]).code, 0, "the pods need no agent");
}

#[test]
fn a_stuck_agent_does_not_hold_a_command_up() {
    let mesh = Mesh::new().unwrap();
    mesh.agent.signal(Signal::SIGSTOP).unwrap();
    let start = |command| {
        let mut command = mesh.agent.command(&[command]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut started = ["status", "monitor"].map(start);
    for child in &mut started {
        wait::until("the command to give up", wait::LIMIT, || child.try_wait().unwrap().is_some()).unwrap();
    }
    let ended = started.map(|child| ended(child.wait_with_output().unwrap()));
    mesh.agent.signal(Signal::SIGCONT).unwrap();
    for ended in ended {
        assert_eq!(ended.code, 69, "{}", ended.errors);
        assert!(ended.errors.contains("the agent says nothing for 5 s"), "{}", ended.errors);
    }
    assert_eq!(say(&mesh.agent, &["status"]).code, 0);
}

/// The proxy's word in the table of `veer pods`.
fn state(agent: &Agent) -> String {
    let table = say(agent, &["pods"]).out;
    let (heading, row) = table.split_once('\n').unwrap();
    let column = heading.split_whitespace().position(|word| word == "PROXY").unwrap();
    row.split_whitespace().nth(column).unwrap().to_owned()
}

#[test]
fn pods_says_in_one_word_whether_traffic_flows() {
    let mesh = Mesh::not_enrolled().unwrap();
    let agent = &mesh.agent;
    assert_eq!(say(agent, &["pods"]).out, "no pod is enrolled on this node\n");
    assert_eq!(agent.json(&["pods"]).unwrap(), json!([]));
    agent.enrol(&mesh.pod).unwrap();
    assert_eq!(state(agent), "waiting");
    let mut listeners = Listeners::default();
    listeners.add("outbound", mesh.pod.proxy(), (Ipv4Addr::UNSPECIFIED, OUTBOUND)).unwrap();
    assert_eq!(state(agent), "waiting", "it needs both ports");
    listeners.add("inbound", mesh.pod.proxy(), (Ipv4Addr::UNSPECIFIED, INBOUND)).unwrap();
    assert_eq!(state(agent), "ready");
    drop(listeners);
    wait::until("the listeners to go", PATIENCE, || state(agent) == "dead").unwrap();
    let cookie = agent.json(&["pods", "test/pod"]).unwrap()["netnsCookie"].as_u64().unwrap();
    Pinned::of(agent).remove_netns_link(cookie).unwrap();
    assert_eq!(state(agent), "detached");
    Pinned::of(agent).remove_policy(cookie).unwrap();
    assert_eq!(state(agent), "half-enrolled");
    assert_eq!(agent.json(&["pods", "test/pod"]).unwrap()["policy"], Value::Null);
}

fn pods_counts_every_connection_under_its_reason(backend: Backend) {
    let mesh =
        Mesh::on_with(backend, |manifest| manifest.with_traffic("excludeOutboundPorts", "9000")).unwrap();
    let mut listeners = mesh.proxy_listeners().unwrap();
    listeners.add("app", mesh.pod.app(), (Ipv4Addr::UNSPECIFIED, APP)).unwrap();
    listeners.add_in_world("outside", &mesh.world, (REMOTE_V4, 9000)).unwrap();
    for _ in 0..3 {
        dial(mesh.pod.app(), REMOTE, &listeners).unwrap();
    }
    dial(mesh.pod.app(), (REMOTE_V4, 9000), &listeners).unwrap();
    dial(mesh.pod.app(), (Ipv4Addr::LOCALHOST, APP), &listeners).unwrap();
    for _ in 0..2 {
        dial_from_world(&mesh.world, (mesh.pod.v4(), APP), &listeners).unwrap();
    }
    let refused = connect(&tcp(mesh.pod.proxy(), (REMOTE_V4, 1)).unwrap(), (REMOTE_V4, 1)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    let pod = mesh.agent.json(&["pods", "test/pod"]).unwrap();
    assert_eq!(
        pod["reasons"],
        json!({"all-outbound": 3, "excluded-port": 1, "app-to-own-address": 1, "all-inbound": 2, "proxy": 1})
    );
    assert_eq!(
        pod["totals"],
        json!({"direct": 3, "toOutbound": 3, "toInbound": 2, "toDns": 0, "dropped": 0})
    );
    assert_eq!(mesh.agent.json(&["pods"]).unwrap(), json!([pod]), "one pod is the same as in the list");
    let table = say(&mesh.agent, &["pods"]).out;
    assert!(table.lines().all(|line| line.len() <= 100), "{table}");
    let mut cells: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    // How long that is, nobody knows.
    assert!(cells[1].remove(4).ends_with('s'), "{table}");
    cells[1].insert(4, "-");
    let heading =
        ["POD", "BACKEND", "DRIVER", "PROXY", "SINCE", "OUT", "IN", "DNS", "DIRECT", "DROPPED", "FAULTS"];
    assert_eq!(
        cells,
        [heading, ["test/pod", backend.name(), "sidecar", "ready", "-", "3", "2", "0", "3", "0", "0"]]
    );
    let detail = say(&mesh.agent, &["pods", "test/pod"]).out;
    for (reason, direction, action, count) in
        [("all-outbound", "outbound", "to-outbound", "3"), ("all-inbound", "inbound", "to-inbound", "2")]
    {
        let row = [reason, direction, action, count];
        assert!(detail.lines().any(|line| line.split_whitespace().eq(row)), "{row:?} is not in\n{detail}");
    }
}

fn a_pod_is_told_whole(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let _listeners = mesh.proxy_listeners().unwrap();
    let pod = mesh.agent.json(&["pods", "test/pod"]).unwrap();
    let attachment = mesh.pod.attachment();
    let expected = [
        "backend",
        "containerId",
        "driver",
        "enrolledAt",
        "faults",
        "inboundAttached",
        "name",
        "namespace",
        "netns",
        "netnsCookie",
        "policy",
        "proxy",
        "reasons",
        "totals",
    ];
    assert_eq!(keys(&pod), expected);
    assert_eq!(
        (&pod["namespace"], &pod["name"], &pod["containerId"], &pod["netns"]),
        (&json!("test"), &json!("pod"), &json!(attachment.container_id), &json!(attachment.netns))
    );
    assert_eq!(
        (&pod["inboundAttached"], &pod["reasons"], &pod["faults"]),
        (&json!(true), &json!({}), &json!({}))
    );
    assert_eq!(
        pod["policy"],
        json!({
            "mode": "redirect", "families": ["IPv4", "IPv6"], "proxyUid": 1337, "proxyGid": 1337, "proxyIdentity": "uid",
            "beforeProxy": "refuse",
            "outbound": {"port": 15001, "listeners": 2}, "inbound": {"port": 15006, "listeners": 2},
            "allOutbound": true, "allInbound": true, "beforeProxy": "refuse",
        })
    );
    let detail = say(&mesh.agent, &["pods", "test/pod"]);
    assert_eq!(detail.code, 0);
    assert!(detail.out.contains("no connection yet"), "{}", detail.out);
}

#[test]
fn an_unknown_pod_is_64() {
    let mesh = Mesh::new().unwrap();
    for name in ["test/none", "pod", "none/pod", ""] {
        let ended = say(&mesh.agent, &["pods", name]);
        assert_eq!((ended.code, ended.out.as_str()), (64, ""), "{name}");
        let hint = if name.contains('/') { "" } else { " (a pod is NAMESPACE/NAME)" };
        let text = format!(
            "veer: pod {name} is not enrolled on this node{hint}; `veer pods` lists those that are\n"
        );
        assert_eq!(ended.errors, text);
    }
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let mesh = Mesh::new().unwrap();
    for arguments in [&["status"][..], &["pods"], &["pods", "test/pod"], &["pods", "--json"]] {
        let mut child =
            mesh.agent.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let ended = ended(child.wait_with_output().unwrap());
        assert_eq!((ended.code, ended.errors.as_str()), (0, ""), "{arguments:?}");
    }
    let full = std::fs::File::options().write(true).open(Path::new("/dev/full")).unwrap();
    let ended = ended(mesh.agent.command(&["pods"]).stdout(full).output().unwrap());
    assert_eq!(ended.code, 70, "a full disk is one");
}
