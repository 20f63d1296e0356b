//! An agent that keeps its plugin in the configuration: beside vendors that come late, start anew, or fight.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::http::{self, Headers, Response};
use veer_tests::wait;

use super::*;

fn flags(node: &Node, mode: &str) -> Vec<String> {
    let mut flags = node.flags();
    // The agent has a run directory of its own.
    flags.remove(0);
    flags.push(format!("--cni-install={mode}"));
    flags.push(format!("--cni-plugin={}", plugin().display()));
    flags.push(format!("--cni-cache={}", node.path("cache").display()));
    flags
}

/// With the cgroup of its pods, which its programs hang on.
fn start(node: &Node, mode: &str) -> (Agent, Cgroup) {
    let flags = flags(node, mode);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let cgroup = Cgroup::new().unwrap();
    (Agent::start_with(&cgroup, Launch::new(), &flags).unwrap(), cgroup)
}

fn state(agent: &Agent) -> Value {
    agent.json(&["status"]).unwrap()["agent"]["cni"].clone()
}

#[track_caller]
fn wait_for(agent: &Agent, phase: &str) -> Value {
    let found = wait::until_some(&format!("phase {phase}"), wait::LIMIT, || {
        let state = state(agent);
        (state["phase"] == phase).then_some(state)
    });
    found.unwrap_or_else(|error| panic!("{error}: {}\n{}", state(agent), agent.log()))
}

fn has_veer(node: &Node, name: &str) -> bool {
    fs::read_to_string(node.conf(name)).is_ok_and(|text| text.contains("veer-cni"))
}

#[track_caller]
fn wait_until_veer_is_in(node: &Node, agent: &Agent, name: &str) {
    wait::until(&format!("veer-cni in {name}"), wait::LIMIT, || has_veer(node, name))
        .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
}

#[test]
fn an_agent_puts_it_in_and_a_stop_or_a_start_takes_nothing_out() {
    let node = Node::new([("10-calico.conflist", CALICO)]);
    let (mut agent, _cgroup) = start(&node, "auto");
    let state = wait_for(&agent, "installed");
    assert_eq!(
        (&state["placed"]["mode"], &state["placed"]["vendor"]),
        (&"chained".into(), &"Calico's install-cni".into())
    );
    assert_eq!(state["installs"]["success"], 1);
    let installed = node.files();
    let text = String::from_utf8(agent.command(&["status"]).output().unwrap().stdout).unwrap();
    assert!(text.contains("/10-calico.conflist (chained), for the network k8s-pod-network"), "{text}");
    agent.stop().unwrap();
    assert_eq!(node.files(), installed);
    assert!(node.plugin().exists());
    agent.start_again().unwrap();
    wait_for(&agent, "installed");
    assert_eq!(node.files(), installed);
    agent.kill().unwrap();
    assert_eq!(node.files(), installed);
}

#[test]
fn a_broken_chain_is_not_ready_and_a_mended_one_is() {
    let node = Node::new([("10-calico.conflist", CALICO)]);
    let mut flags = flags(&node, "auto");
    flags.push("--health-addr=127.0.0.1:0".to_owned());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let cgroup = Cgroup::new().unwrap();
    let agent = Agent::start_with(&cgroup, Launch::new(), &flags).unwrap();
    let status = agent.json(&["status"]).unwrap();
    let health: SocketAddr = status["agent"]["healthAddr"].as_str().unwrap().parse().unwrap();
    let ready = || {
        let Response { status, body, .. } = http::get_from(health, "/readyz", &Headers::new()).unwrap();
        (status, String::from_utf8(body).unwrap())
    };
    let wait_for = |what: &str, wanted: u16, text: &str| {
        let is_so = || ready().0 == wanted && ready().1.contains(text);
        wait::until(what, wait::LIMIT, is_so).unwrap_or_else(|error| panic!("{error}: {:?}", ready()));
    };
    wait_for("an agent that is ready", 200, "ready");
    fs::remove_file(node.conf("10-calico.conflist")).unwrap();
    wait_for("a broken chain", 503, "cni: there is no network");
    node.write("10-calico.conflist", CALICO);
    wait_for("a mended chain", 200, "ready");
    // Whoever asks hears at once that the plugin would not be answered.
    let (socket, aside) = (agent.run_dir().join("cni.sock"), agent.run_dir().join("aside.sock"));
    fs::rename(&socket, &aside).unwrap();
    let (status, text) = ready();
    assert!(status == 503 && text.starts_with("socket: ") && text.contains("cni.sock"), "{status} {text}");
    fs::rename(&aside, &socket).unwrap();
    assert_eq!(ready().0, 200);
}

#[test]
fn off_touches_nothing_and_is_the_default() {
    let node = Node::new([("10-calico.conflist", CALICO)]);
    let before = node.files();
    let (agent, cgroup) = start(&node, "off");
    assert_eq!(state(&agent)["phase"], "off");
    agent.wait_settled().unwrap();
    assert_eq!(node.files(), before);
    let agent = Agent::start(&cgroup).unwrap();
    assert_eq!(state(&agent)["phase"], "off");
}

#[test]
fn a_network_that_comes_late_and_in_two_halves_is_waited_for() {
    let node = Node::new([]);
    let (agent, _cgroup) = start(&node, "auto");
    let state = wait_for(&agent, "waiting");
    assert!(state["problem"].as_str().unwrap().contains("no network"), "{state}");
    let (first, second) = CALICO.split_at(60);
    node.write("10-calico.conflist", first);
    wait::until("the half to be seen", wait::LIMIT, || {
        self::state(&agent)["problem"]
            .as_str()
            .is_some_and(|problem| problem.contains("10-calico.conflist comes first"))
    })
    .unwrap();
    assert_eq!(node.read("10-calico.conflist"), first);
    node.write("10-calico.conflist", &format!("{first}{second}"));
    wait_for(&agent, "installed");
    assert!(has_veer(&node, "10-calico.conflist"));
}

#[test]
fn a_vendor_that_starts_anew_is_put_right_at_once_and_named() {
    let node = Node::new([("10-calico.conflist", CALICO)]);
    let (agent, _cgroup) = start(&node, "auto");
    wait_for(&agent, "installed");
    node.write("10-calico.conflist", &CALICO.replace("calico-ipam", "host-local"));
    wait_until_veer_is_in(&node, &agent, "10-calico.conflist");
    assert!(node.read("10-calico.conflist").contains("host-local"), "what is new stays");
    let state = wait_for(&agent, "installed");
    let writer = &state["otherWriter"];
    assert_eq!(
        (&writer["vendor"], &writer["uid"], &writer["times"]),
        (&"Calico's install-cni".into(), &0.into(), &1.into())
    );
    assert!(agent.log().contains("somebody has taken veer out of the CNI configuration"), "{}", agent.log());
}

#[test]
fn the_plugin_comes_back_when_it_is_removed_or_another_one() {
    let node = Node::new([("10-calico.conflist", CALICO)]);
    let (agent, _cgroup) = start(&node, "auto");
    wait_for(&agent, "installed");
    let is_ours = || fs::read(node.plugin()).is_ok_and(|there| there == fs::read(plugin()).unwrap());
    fs::remove_file(node.plugin()).unwrap();
    wait::until("the plugin to come back", wait::LIMIT, is_ours).unwrap();
    let draft = node.path("bin/new");
    fs::write(&draft, "another").unwrap();
    fs::rename(draft, node.plugin()).unwrap();
    wait::until("the plugin to be ours", wait::LIMIT, is_ours).unwrap();
}

#[test]
fn a_file_that_is_put_back_is_never_used_without_veer() {
    let node = Node::new([("00-multus.conf", TKE)]);
    let (agent, _cgroup) = start(&node, "auto");
    wait_for(&agent, "installed");
    let copy = || node.read("00-00-veer.conflist");
    assert_eq!(types(&copy()), ["multus", "veer-cni"]);
    // Tencent's agent starts, with another delegate; the copy comes first all the time, and follows.
    fs::remove_file(node.conf("00-multus.conf")).unwrap();
    assert_eq!(types(&copy()), ["multus", "veer-cni"]);
    node.write("00-multus.conf", &TKE.replace("tke-bridge", "tke-route-eni"));
    wait::until("the copy to follow", wait::LIMIT, || copy().contains("tke-route-eni")).unwrap();
    assert_eq!(types(&copy()), ["multus", "veer-cni"]);
}

#[test]
fn a_writer_that_fights_is_left_longer_and_longer_and_the_state_says_so() {
    let node = Node::new([(
        "05-cilium.conflist",
        r#"{"name":"cilium","cniVersion":"0.3.1","plugins":[{"type":"cilium-cni"}]}"#,
    )]);
    let before = node.read("05-cilium.conflist");
    let (agent, _cgroup) = start(&node, "auto");
    wait_for(&agent, "installed");
    let (stop, undone) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let writer = thread::spawn({
        let (stop, undone, path, text) =
            (Arc::clone(&stop), Arc::clone(&undone), node.conf("05-cilium.conflist"), before.clone());
        move || {
            while !stop.load(Ordering::Relaxed) {
                if fs::read_to_string(&path).unwrap_or_default().contains("veer-cni") {
                    // As Cilium writes: beside it, and renamed.
                    fs::write(path.with_extension("draft"), &text).unwrap();
                    fs::rename(path.with_extension("draft"), &path).unwrap();
                    undone.fetch_add(1, Ordering::Relaxed);
                }
                thread::yield_now();
            }
        }
    });
    wait::until("the fight", wait::LIMIT, || undone.load(Ordering::Relaxed) >= 4).unwrap();
    let state = wait_for(&agent, "drifted");
    assert!(state["problem"].as_str().unwrap().contains("again and again"), "{state}");
    assert_eq!(state["otherWriter"]["vendor"], "Cilium");
    // Waits of 0.5 s, 1 s, 2 s and so on: whatever it did by now took the sum of them.
    let since = state["installs"]["success"].as_u64().unwrap();
    assert!(since <= 8, "{since} installations\n{}", agent.log());
    let text = String::from_utf8(agent.command(&["status"]).output().unwrap().stdout).unwrap();
    assert!(text.contains("Cilium took it out by writing") && text.contains("cni.exclusive=false"), "{text}");
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    wait_until_veer_is_in(&node, &agent, "05-cilium.conflist");
    wait_for(&agent, "installed");
}

#[test]
fn while_an_agent_sees_to_it_the_commands_do_not() {
    let node = Node::new([("10-calico.conflist", CALICO)]);
    let (mut agent, _cgroup) = start(&node, "auto");
    wait_for(&agent, "installed");
    let run = |command: &str, agent: &Agent| {
        let mut flags = flags(&node, "auto");
        flags.retain(|flag| !flag.contains("--cni-install") && !flag.contains("--cni-plugin"));
        if command == "install-cni" {
            flags.retain(|flag| !flag.contains("--cni-cache"));
        }
        let mut process = Command::new(veer_binary("VEER_BIN", "veer").unwrap());
        process.arg(command).args(flags).arg(format!("--run-dir={}", agent.run_dir().display()));
        process.output().unwrap()
    };
    for command in ["install-cni", "uninstall-cni"] {
        let output = run(command, &agent);
        assert_eq!(output.status.code(), Some(75), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("--cni-install=auto"), "{output:?}");
    }
    agent.stop().unwrap();
    assert!(run("uninstall-cni", &agent).status.success());
    assert_eq!(node.read("10-calico.conflist"), CALICO);
}
