//! The node's ztunnel, told by the real agent on a real socket.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests panic as tests do")]

mod pods;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::launch::Launch;
use veer_tests::ztunnel::{DONE, HELLO, Ztunnel};
use veer_tests::{scratch, wait};

/// A node with an agent that tells ztunnel.
struct Node {
    agent: Agent,
    cgroup: Cgroup,
    place: TempDir,
}

impl Node {
    fn start() -> Self {
        let (place, cgroup) = (scratch::directory().unwrap(), Cgroup::new().unwrap());
        let flag = format!("--ztunnel-socket={}", socket(&place).display());
        let agent = Agent::start_with(&cgroup, Launch::new(), &[&flag]).unwrap();
        Self { agent, cgroup, place }
    }

    fn socket(&self) -> PathBuf {
        socket(&self.place)
    }

    fn ztunnel(&self) -> Ztunnel {
        Ztunnel::start(&self.socket()).unwrap()
    }

    fn standing(&self) -> Value {
        self.agent.json(&["status"]).unwrap()["agent"]["ztunnel"].clone()
    }

    fn wait_connected(&self, count: u32) {
        let is_so = || self.standing()["connected"] == json!(count);
        wait::until("the agent to notice who is connected", wait::LIMIT, is_so).unwrap();
    }
}

/// In a directory that the agent makes.
fn socket(place: &TempDir) -> PathBuf {
    place.path().join("ztunnel/ztunnel.sock")
}

#[test]
fn a_ztunnel_on_a_node_without_pods_becomes_ready_by_an_empty_snapshot() {
    let node = Node::start();
    let nobody = json!({"connected": 0, "has_snapshot": false, "pods": 0, "served": 0, "refused": {}});
    assert_eq!(node.standing(), nobody);
    let mut ztunnel = node.ztunnel();
    assert_eq!(ztunnel.obey_to_the_snapshot().unwrap(), ["snapshot"]);
    let is_so = || node.standing()["has_snapshot"] == json!(true);
    wait::until("the agent to have its answer", wait::LIMIT, is_so).unwrap();
    drop(ztunnel);
    node.wait_connected(0);
}

#[test]
fn whoever_breaks_the_protocol_is_closed_with_a_reason_in_the_log_and_the_next_one_is_served() {
    let node = Node::start();
    let too_long = vec![b'x'; 1025];
    let breaches: [(&[&[u8]], &str); 6] = [
        (&[DONE], "it is no hello of ZDS"),
        (&[b"\x08\x02"], "it speaks version 2 of ZDS, this agent 1"),
        (&[HELLO, b"\xff\xff"], "it is no answer of ZDS"),
        (&[HELLO, DONE, DONE], "it answers what it was not asked"),
        (&[&too_long], "a message of 1025 bytes, 1024 is the most"),
        (&[], "it has not said hello within 5 s"),
    ];
    for (packets, reason) in breaches {
        let mut ztunnel = Ztunnel::connect(&node.socket()).unwrap();
        for packet in packets {
            ztunnel.say(packet).unwrap();
            // Answers of its own accord, too, come when it has been asked.
            if *packet == HELLO {
                ztunnel.hear().unwrap();
            }
        }
        ztunnel.wait_closed().unwrap();
        let log = node.agent.log();
        assert!(log.contains(reason), "{reason} is not in {log}");
    }
    assert_eq!(node.ztunnel().obey_to_the_snapshot().unwrap(), ["snapshot"]);
}

#[test]
fn one_that_does_not_answer_is_closed_after_its_five_seconds() {
    let node = Node::start();
    let mut silent = node.ztunnel();
    silent.hear().unwrap().unwrap();
    silent.wait_closed().unwrap();
    assert!(node.agent.log().contains("it has not answered within 5 s"), "{}", node.agent.log());
}

#[test]
fn an_agent_that_starts_again_takes_its_own_socket_back_and_sends_a_new_snapshot() {
    let mut node = Node::start();
    let mut ztunnel = node.ztunnel();
    ztunnel.obey_to_the_snapshot().unwrap();
    node.agent.kill().unwrap();
    ztunnel.wait_closed().unwrap();
    node.agent.start_again().unwrap();
    assert_eq!(node.ztunnel().obey_to_the_snapshot().unwrap(), ["snapshot"]);
}

#[test]
fn two_are_connected_while_one_takes_over_and_each_has_its_snapshot_once() {
    let node = Node::start();
    let (mut old, mut new) = (node.ztunnel(), node.ztunnel());
    for ztunnel in [&mut old, &mut new] {
        assert_eq!(ztunnel.obey_to_the_snapshot().unwrap(), ["snapshot"]);
    }
    node.wait_connected(2);
    drop(new);
    node.wait_connected(1);
    // It has had its own: a second one would end it.
    assert!(old.is_quiet(std::time::Duration::ZERO).unwrap());
}

#[test]
fn the_socket_is_roots_alone_and_one_that_somebody_serves_is_left_to_him() {
    let node = Node::start();
    let metadata = fs::metadata(node.socket()).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);

    let (place, cgroup) = (scratch::directory().unwrap(), Cgroup::new().unwrap());
    let flag = format!("--ztunnel-socket={}", node.socket().display());
    let Err(error) = Agent::start_in(place.path(), &cgroup, Launch::new(), &[&flag]) else {
        unreachable!("it started");
    };
    let error = format!("{error:#}");
    assert!(error.contains("somebody else serves it: istio-cni"), "{error}");
    assert_eq!(node.ztunnel().obey_to_the_snapshot().unwrap(), ["snapshot"]);
}
