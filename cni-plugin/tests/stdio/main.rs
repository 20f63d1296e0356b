//! The plugin as a process: the real binary, the real socket, the agent's place taken by the test.
//!
//! What fits into a file is a golden case ([`golden`]); what is too long, too hostile or a product of lists
//! is here. All of it needs root: the network namespaces are real.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests panic as tests do")]

mod agent;
mod golden;
mod plugin;

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{fs, thread};

use agent::{Agent, Behaviour};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::sys::stat::Mode;
use plugin::{Outcome, command, feed, run, wait};
use serde_json::{Value, json};
use tempfile::TempDir;
use veer_common::cni::{Reply, SOCKET_NAME, code};
use veer_tests::netns::NetNs;

/// As the plugin documents it.
const MAX_CONFIGURATION: usize = 4 << 20;

#[test]
fn add_answers_as_its_cases_say() {
    golden::check("add");
}

#[test]
fn check_answers_as_its_cases_say() {
    golden::check("check");
}

#[test]
fn del_answers_as_its_cases_say() {
    golden::check("del");
}

#[test]
fn gc_answers_as_its_cases_say() {
    golden::check("gc");
}

#[test]
fn status_answers_as_its_cases_say() {
    golden::check("status");
}

#[test]
fn version_answers_as_its_cases_say() {
    golden::check("version");
}

#[test]
fn results_of_real_networks_pass_through_as_their_cases_say() {
    golden::check("results");
}

/// What containerd really passes, recorded by `cargo xtask test kube`.
#[test]
fn what_containerd_passes_is_answered_as_its_cases_say() {
    golden::check("containerd");
}

#[test]
fn hostile_input_is_answered_as_its_cases_say() {
    golden::check("hostile");
}

#[test]
fn every_directory_of_cases_is_run() {
    let mut found = golden::directories();
    found.sort();
    assert_eq!(found, ["add", "check", "containerd", "del", "gc", "hostile", "results", "status", "version"]);
}

/// A pod's namespace, a run directory and, where one is started, an agent.
struct Node {
    netns: NetNs,
    run_dir: TempDir,
}

impl Node {
    fn new() -> Self {
        Self { netns: NetNs::new().unwrap(), run_dir: TempDir::with_prefix("veer-cni-test-").unwrap() }
    }

    fn agent(&self) -> Agent {
        Agent::start(self.run_dir.path(), Behaviour::Reply(Reply::Done))
    }

    /// A configuration for this node, with further keys.
    fn netconf(&self, version: &str, keys: Value) -> Vec<u8> {
        let mut netconf = json!({
            "cniVersion": version,
            "name": "pods",
            "type": "veer-cni",
            "runDir": self.run_dir.path(),
            "timeoutSeconds": 1,
        });
        let Value::Object(keys) = keys else { panic!("{keys} are no keys") };
        netconf.as_object_mut().unwrap().extend(keys);
        serde_json::to_vec(&netconf).unwrap()
    }

    fn run(&self, verb: &str, stdin: &[u8]) -> Outcome {
        let netns = self.netns.path();
        run(&variables(verb, netns.to_str().unwrap()), stdin)
    }
}

fn variables<'a>(verb: &'a str, netns: &'a str) -> [(&'a str, &'a str); 5] {
    [
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "c0ffee"),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart"),
    ]
}

/// The error on stdout, whose form is checked.
fn error(outcome: &Outcome) -> (u64, String) {
    assert_eq!(outcome.exit, 1, "{outcome:?}");
    let error: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let keys: Vec<&str> = error.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["cniVersion", "code", "details", "msg"], "{error}");
    (error["code"].as_u64().unwrap(), error["msg"].as_str().unwrap().to_owned())
}

fn assert_error(outcome: &Outcome, code: u32, msg: &str) {
    let (found, text) = error(outcome);
    assert!(found == u64::from(code) && text.contains(msg), "{outcome:?}");
}

#[test]
fn every_version_has_the_verbs_that_its_specification_has() {
    let node = Node::new();
    let agent = node.agent();
    for (version, verbs) in [
        ("0.3.0", ["ADD", "DEL"].as_slice()),
        ("0.3.1", &["ADD", "DEL"]),
        ("0.4.0", &["ADD", "DEL", "CHECK"]),
        ("1.0.0", &["ADD", "DEL", "CHECK"]),
        ("1.1.0", &["ADD", "DEL", "CHECK", "GC", "STATUS"]),
    ] {
        let keys = json!({"prevResult": {"ips": []}, "cni.dev/valid-attachments": []});
        let netconf = node.netconf(version, keys);
        for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            let outcome = node.run(verb, &netconf);
            if !verbs.contains(&verb) {
                assert_error(&outcome, code::INCOMPATIBLE_VERSION, &format!("{version} has no {verb}"));
                continue;
            }
            assert_eq!((outcome.exit, outcome.stderr.as_str()), (0, ""), "{verb} {version}");
            let result = format!("{{\"cniVersion\":\"{version}\",\"ips\":[]}}\n");
            assert_eq!(
                outcome.stdout,
                if verb == "ADD" { result } else { String::new() },
                "{verb} {version}"
            );
        }
        let outcome = run(&[("CNI_COMMAND", "VERSION")], &netconf);
        let versions: Value = serde_json::from_str(&outcome.stdout).unwrap();
        let all = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
        assert_eq!(versions, json!({"cniVersion": version, "supportedVersions": all}));
    }
    assert_eq!(agent.stop().len(), 15);
}

#[test]
fn a_version_that_is_not_spoken_is_refused_by_every_verb() {
    let node = Node::new();
    for version in ["0.1.0", "0.2.0", "0.3.2", "1.2.0", "2.0.0", "1.0", "1.0.0.0", "v1.0.0"] {
        for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            let outcome = node.run(verb, &node.netconf(version, json!({})));
            assert_error(&outcome, code::INCOMPATIBLE_VERSION, &format!("CNI version {version} is not"));
            assert!(outcome.stdout.contains("0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{outcome:?}");
        }
    }
}

#[test]
fn a_configuration_without_end_is_refused_and_not_read_on() {
    let mut child = command(&variables("ADD", "/none")).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let endless = thread::spawn(move || {
        let chunk = [b' '; 1 << 12];
        (0..1 << 14).take_while(|_| pipe.write_all(&chunk).is_ok()).count() * chunk.len()
    });
    assert_error(&wait(child), code::INVALID_CONFIG, "longer than 4194304 bytes");
    let (written, in_the_pipe) = (endless.join().unwrap(), 1 << 20);
    assert!(written <= MAX_CONFIGURATION + in_the_pipe, "{written} bytes were taken");
}

#[test]
fn ten_megabytes_are_refused_whatever_they_are() {
    let node = Node::new();
    let padding = "x".repeat(10 << 20);
    let json = node.netconf("1.0.0", json!({"padding": padding}));
    for stdin in [padding.as_bytes(), json.as_slice()] {
        for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"] {
            assert_error(&node.run(verb, stdin), code::INVALID_CONFIG, "longer than 4194304 bytes");
        }
    }
}

#[test]
fn a_configuration_of_the_greatest_length_is_taken_whole() {
    let node = Node::new();
    let agent = node.agent();
    let bare = node.netconf("1.0.0", json!({"prevResult": {"x": ""}})).len();
    let value = "y".repeat(MAX_CONFIGURATION - bare);
    let outcome = node.run("ADD", &node.netconf("1.0.0", json!({"prevResult": {"x": value}})));
    assert_eq!(outcome.stdout, format!("{{\"cniVersion\":\"1.0.0\",\"x\":\"{value}\"}}\n"));
    let outcome = node.run("ADD", &node.netconf("1.0.0", json!({"prevResult": {"x": value + "y"}})));
    assert_error(&outcome, code::INVALID_CONFIG, "longer than 4194304 bytes");
    assert_eq!(agent.stop().len(), 1);
}

#[test]
fn nesting_of_any_depth_passes_through() {
    let node = Node::new();
    let agent = node.agent();
    let nested = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
    let run_dir = node.run_dir.path().display();
    let netconf = format!(
        r#"{{"cniVersion":"0.3.1","name":"pods","runDir":"{run_dir}","prevResult":{{"deep":{nested}}}}}"#
    );
    let outcome = node.run("ADD", netconf.as_bytes());
    assert_eq!(outcome.exit, 0, "{}", outcome.stderr);
    assert_eq!(outcome.stdout, format!("{{\"cniVersion\":\"0.3.1\",\"deep\":{nested}}}\n"));
    assert_eq!(agent.stop().len(), 1);
}

#[test]
fn a_netns_path_that_is_not_one_is_named_and_refused() {
    let node = Node::new();
    let agent = node.agent();
    let directory = TempDir::with_prefix("veer-cni-test-").unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("file"), "").unwrap();
    nix::unistd::mkfifo(Path::new(&path("fifo")), Mode::S_IRWXU).unwrap();
    let _listener = UnixListener::bind(path("socket")).unwrap();
    let netconf = node.netconf("1.0.0", json!({}));
    for (netns, problem) in [
        (path("file"), "is not a network namespace"),
        (path("fifo"), "is not a network namespace"),
        (path(""), "is not a network namespace"),
        ("/dev/null".into(), "is not a network namespace"),
        ("/proc/self/ns".into(), "is not a network namespace"),
        (path("socket"), "No such device or address"),
        (path("missing"), "No such file or directory"),
        (path("file/below"), "Not a directory"),
        ("/proc/thread-self/ns/net".into(), "is the network namespace of the node"),
    ] {
        for verb in ["ADD", "CHECK"] {
            let outcome = run(&variables(verb, &netns), &netconf);
            assert_error(&outcome, code::INVALID_ENVIRONMENT, problem);
            assert!(error(&outcome).1.contains(&netns), "{outcome:?}");
        }
        let outcome = run(&variables("DEL", &netns), &netconf);
        assert_eq!((outcome.exit, outcome.stdout.as_str(), outcome.stderr.as_str()), (0, "", ""));
    }
    assert_eq!(agent.stop().len(), 9, "only DEL reaches the agent");
}

#[test]
fn del_twice_succeeds_twice() {
    let node = Node::new();
    let agent = node.agent();
    for _ in 0..2 {
        let outcome = node.run("DEL", &node.netconf("0.3.1", json!({})));
        assert_eq!(outcome, Outcome { stdout: String::new(), stderr: String::new(), exit: 0 });
    }
    assert_eq!(agent.stop().len(), 2);
}

/// An agent that is stopped (SIGSTOP) and whose queue is full: even connecting waits.
#[test]
fn an_agent_that_does_not_accept_is_one_that_does_not_answer() {
    let node = Node::new();
    let address = UnixAddr::new(&node.run_dir.path().join(SOCKET_NAME)).unwrap();
    let new = |flags| socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    let listener = new(SockFlag::SOCK_CLOEXEC);
    bind(listener.as_raw_fd(), &address).unwrap();
    listen(&listener, Backlog::new(1).unwrap()).unwrap();
    let mut queue = Vec::new();
    while connect(new_in(&mut queue, new(SockFlag::SOCK_NONBLOCK)), &address).is_ok() {}
    let netconf = node.netconf("1.1.0", json!({"cni.dev/valid-attachments": []}));
    for verb in ["DEL", "GC"] {
        let outcome = node.run(verb, &netconf);
        assert_eq!((outcome.exit, outcome.stdout.as_str()), (0, ""), "{verb}");
        assert!(outcome.stderr.contains("cni.sock: no answer within 1 s"), "{outcome:?}");
    }
    for (verb, expected) in
        [("ADD", code::TRY_AGAIN), ("CHECK", code::TRY_AGAIN), ("STATUS", code::NOT_AVAILABLE)]
    {
        assert_error(&node.run(verb, &netconf), expected, "cni.sock: no answer within 1 s");
    }
}

fn new_in<T: AsRawFd>(kept: &mut Vec<T>, socket: T) -> i32 {
    let fd = socket.as_raw_fd();
    kept.push(socket);
    fd
}

#[test]
fn an_answer_that_trickles_in_does_not_stretch_the_deadline() {
    let node = Node::new();
    let listener = UnixListener::bind(node.run_dir.path().join(SOCKET_NAME)).unwrap();
    let (stop, stopped) = mpsc::channel::<()>();
    let agent = thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        connection.write_all(&1_000_000_u32.to_le_bytes()).unwrap();
        let pause = Duration::from_millis(20);
        while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            // It fails from the moment that the plugin gave up.
            if connection.write_all(b" ").is_err() {
                return;
            }
        }
    });
    let outcome = node.run("ADD", &node.netconf("1.0.0", json!({})));
    assert_error(&outcome, code::TRY_AGAIN, "no answer within 1 s");
    drop(stop);
    agent.join().unwrap();
}

#[test]
fn gc_names_more_pods_than_any_node_has() {
    let node = Node::new();
    let agent = node.agent();
    let attachments = |count: usize| -> Vec<Value> {
        (0..count).map(|id| json!({"containerID": format!("{id:064x}"), "ifname": "eth0"})).collect()
    };
    let valid = |count| node.netconf("1.1.0", json!({"cni.dev/valid-attachments": attachments(count)}));
    let outcome = node.run("GC", &valid(5_000));
    assert_eq!((outcome.exit, outcome.stderr.as_str()), (0, ""));
    // Half of a list would make the agent forget the other half.
    let outcome = node.run("GC", &valid(20_000));
    assert_error(&outcome, code::INVALID_CONFIG, "is longer than");
    let received = agent.stop();
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].request.matches("containerId").count(), 5_000);
}

#[test]
fn a_result_that_nobody_reads_is_a_failure_and_not_a_panic() {
    let node = Node::new();
    let agent = node.agent();
    let netns = node.netns.path();
    let mut child = command(&variables("ADD", netns.to_str().unwrap())).spawn().unwrap();
    drop(child.stdout.take());
    let outcome = feed(child, &node.netconf("1.0.0", json!({})));
    assert_eq!(outcome.exit, 1);
    assert_eq!(
        outcome.stderr,
        "veer-cni: error: ADD c0ffee shop/cart: write the result to stdout: Broken pipe (os error 32)\n"
    );
    drop(agent.stop());
}

#[test]
fn a_log_that_nobody_reads_changes_nothing() {
    let node = Node::new();
    let netns = node.netns.path();
    let mut child = command(&variables("DEL", netns.to_str().unwrap())).spawn().unwrap();
    drop(child.stderr.take());
    let outcome = feed(child, &node.netconf("1.0.0", json!({})));
    assert_eq!((outcome.exit, outcome.stdout.as_str()), (0, ""));
}

#[test]
fn many_pods_at_once_each_get_their_answer() {
    let node = Node::new();
    let agent = node.agent();
    let netconf = node.netconf("1.0.0", json!({"timeoutSeconds": 30, "prevResult": {"ips": []}}));
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert_eq!(node.run("ADD", &netconf).exit, 0));
        }
    });
    let received = agent.stop();
    assert_eq!(received.len(), 20);
    assert!(received.iter().all(|one| one.has_netns(&node.netns.path())));
}
