//! Another build of the agent comes, and goes: its programs take the place of those of before, all of them or none,
//! and nobody who has a connection notices.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests panic as tests do"
)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitStatus;

use nix::errno::Errno;
use serde_json::{Value, json};
use veer_common::cni::{Reply, Verb};
use veer_tests::agent::Agent;
use veer_tests::bpf_gate::{BpfGate, Fate};
use veer_tests::launch::{Launch, executable};
use veer_tests::load;
use veer_tests::mesh::Mesh;
use veer_tests::objects::Objects;
use veer_tests::pinned::Pinned;
use veer_tests::wait;

/// A number of which no call is: it lets all go, and they are counted.
const NONE: u64 = u64::MAX;
/// Of the calls that replace anything every so many are tried, where not all are asked for.
const STRIDE: usize = 13;
/// `BPF_MAP_UPDATE_ELEM` and `BPF_OBJ_PIN`: the first of these (the note that it has begun) and the last of those (the
/// last program's name) are the ends of a replacement.
const UPDATE_PIN: [u64; 2] = [2, 6];

/// The two builds, each time in the other order.
struct Builds {
    current: PathBuf,
    other: PathBuf,
}

impl Builds {
    fn new() -> Self {
        let binary = |variable| {
            let path = std::env::var_os(variable).unwrap_or_else(|| {
                panic!(
                    "{variable} is not set; `cargo xtask test build` builds both, the other one with --features \
                     veer/other-build"
                )
            });
            executable(path.into(), variable).unwrap()
        };
        Self { current: binary("VEER_BIN"), other: binary("VEER_OTHER_BIN") }
    }

    /// From now on the other one is started, and it is no more the other one.
    fn change(&mut self, agent: &mut Agent) {
        agent.use_program(&self.other);
        std::mem::swap(&mut self.current, &mut self.other);
    }
}

fn status(agent: &Agent) -> Value {
    agent.json(&["status"]).unwrap()
}

fn objects(agent: &Agent) -> Objects {
    Objects::of(&Pinned::of(agent)).unwrap()
}

/// What tells programs apart: a hash over their instructions.
fn tags(agent: &Agent) -> BTreeSet<u64> {
    objects(agent).program_infos().iter().map(aya::programs::ProgramInfo::tag).collect()
}

/// All is attached, of the build that runs.
#[track_caller]
fn assert_whole(agent: &Agent) {
    let status = status(agent);
    assert!(status["programs"].as_array().unwrap().iter().all(|program| program["attached"] == true));
    assert!(status["build"].is_string() && status["build"] == status["agent"]["build"], "{status}");
}

#[test]
fn an_agent_of_the_same_build_loads_nothing_and_leaves_every_link_as_it_is() {
    let mut mesh = Mesh::new().unwrap();
    let _another = mesh.another_pod("another").unwrap();
    let before = objects(&mesh.agent);
    mesh.agent.kill().unwrap();
    mesh.agent.start_again().unwrap();
    assert_eq!(objects(&mesh.agent), before);
    assert!(mesh.agent.log().contains("before=\"this build, which stays as it is\""), "{}", mesh.agent.log());
    assert_whole(&mesh.agent);
    assert_eq!(mesh.agent.check(&mesh.pod).unwrap(), Reply::Done);
}

#[test]
fn an_agent_of_the_same_build_puts_a_program_that_lost_its_place_back() {
    let mut mesh = Mesh::new().unwrap();
    let before = objects(&mesh.agent);
    for pin in ["links/veer_sockops", "programs/veer_connect6"] {
        mesh.agent.kill().unwrap();
        std::fs::remove_file(Pinned::of(&mesh.agent).root().join(pin)).unwrap();
        mesh.agent.start_again().unwrap();
        assert_whole(&mesh.agent);
        let count = |objects: &Objects| (objects.programs.len(), objects.links.len());
        // What nobody has any more goes a moment later.
        wait::until("the programs of before to go", wait::LIMIT, || {
            count(&objects(&mesh.agent)) == count(&before)
        })
        .unwrap();
    }
}

#[test]
fn another_build_and_back_while_connections_are_opened_changes_nothing_for_them() {
    let mut mesh = Mesh::new().unwrap();
    let mut builds = Builds::new();
    let (of_first, build) = (tags(&mesh.agent), status(&mesh.agent)["build"].clone());
    let Mesh { agent, pod, world, .. } = &mut mesh;
    let mut of_second = BTreeSet::new();
    let [out, back] = load::both_ways(pod, world, |progress| {
        progress.wait_for(300).unwrap();
        agent.stop().unwrap();
        builds.change(agent);
        agent.start_again().unwrap();
        progress.wait_for(300).unwrap();
        assert_whole(agent);
        assert_ne!(status(agent)["build"], build);
        let text = format!("before=\"build {}\"", build.as_str().unwrap());
        assert!(agent.log().contains(&text), "{}", agent.log());
        of_second = tags(agent);
        agent.kill().unwrap();
        builds.change(agent);
        agent.start_again().unwrap();
        progress.wait_for(300).unwrap();
    })
    .unwrap();
    assert_whole(agent);
    wait::until("the other build's programs to go", wait::LIMIT, || tags(agent) == of_first).unwrap();
    assert!(!of_second.is_subset(&of_first), "VEER_OTHER_BIN has the same programs: it is no other build");
    let view = agent.json(&["pods", "test/pod"]).unwrap();
    assert_eq!(view["reasons"], json!({"all-outbound": out, "all-inbound": back}));
    assert_eq!(view["faults"], json!({}));
    mesh.no_hand_off_left().unwrap();
}

/// Waits until the agent serves or has ended; how it ended, if it did.
fn ready_or_ended(agent: &mut Agent) -> Option<ExitStatus> {
    let mut status = None;
    wait::until("the agent to serve or to end", wait::LIMIT, || {
        status = agent.process_mut().ended().ok().flatten();
        status.is_some() || matches!(agent.ask(Verb::Status), Ok(Reply::Done))
    })
    .unwrap();
    status
}

/// How many calls of bpf(2) another build makes to replace the programs, and which of its start to try.
fn calls_of_another_build(agent: &mut Agent, builds: &mut Builds, gate: &BpfGate) -> (u64, Vec<u64>) {
    agent.use_launch(Launch::new().before_bpf_gate(gate));
    agent.kill().unwrap();
    builds.change(agent);
    gate.choose(NONE, Fate::Kill);
    agent.start_again().unwrap();
    let commands = gate.commands();
    let [update, pin] = UPDATE_PIN;
    let first = commands.iter().position(|command| *command == update).unwrap();
    let last = commands.iter().rposition(|command| *command == pin).unwrap();
    let stride = if std::env::var_os("VEER_LONG").is_some() { 1 } else { STRIDE };
    ((last - first) as u64, (first as u64..last as u64).step_by(stride).collect())
}

#[test]
fn a_replacement_by_another_build_that_is_killed_at_any_call_is_ended_by_the_next_start() {
    let mut mesh = Mesh::new().unwrap();
    let (mut builds, gate) = (Builds::new(), BpfGate::new().unwrap());
    let Mesh { agent, pod, world, .. } = &mut mesh;
    let counted = {
        let objects = objects(agent);
        (objects.programs.len(), objects.links.len())
    };
    load::both_ways(pod, world, |progress| {
        let (calls, chosen) = calls_of_another_build(agent, &mut builds, &gate);
        let mut interrupted = 0;
        for number in chosen {
            agent.kill().unwrap();
            builds.change(agent);
            gate.choose(number, Fate::Kill);
            agent.begin_again().unwrap();
            // The calls of one start are not always as many as of another.
            let ended = ready_or_ended(agent);
            gate.open();
            if ended.is_none() {
                continue;
            }
            interrupted += u32::from(status_of_nobody(agent)["build"].is_null());
            progress.wait_for(20).unwrap();
            if number % 2 == 0 {
                // Back to the one before, instead.
                builds.change(agent);
            }
            agent.start_again().unwrap();
            assert_whole(agent);
            assert_eq!(agent.check(pod).unwrap(), Reply::Done, "killed at call {number} of {calls}");
            wait::until("what one of the builds had to go", wait::LIMIT, || {
                let objects = objects(agent);
                (objects.programs.len(), objects.links.len()) == counted
            })
            .unwrap();
        }
        assert!(interrupted >= 5, "{interrupted} of {calls}");
    })
    .unwrap();
    mesh.no_hand_off_left().unwrap();
}

/// What the datapath itself says: the command ends with 69, because there is no agent.
fn status_of_nobody(agent: &Agent) -> Value {
    let output = agent.command(&["status", "--json"]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn another_build_that_the_kernel_refuses_leaves_all_of_the_one_before_in_its_place() {
    let mut mesh = Mesh::new().unwrap();
    let (mut builds, gate) = (Builds::new(), BpfGate::new().unwrap());
    let Mesh { agent, pod, world, .. } = &mut mesh;
    load::both_ways(pod, world, |progress| {
        let (calls, chosen) = calls_of_another_build(agent, &mut builds, &gate);
        let (before, build) = (objects(agent), status(agent)["build"].clone());
        let of_before = tags(agent);
        let mut refused = 0;
        for number in chosen {
            agent.kill().unwrap();
            builds.change(agent);
            let logged = agent.log().len();
            gate.choose(number, Fate::Fail(if number % 2 == 0 { Errno::ENOMEM } else { Errno::EPERM }));
            agent.begin_again().unwrap();
            let status = ready_or_ended(agent);
            gate.open();
            progress.wait_for(20).unwrap();
            let log = agent.log().split_off(logged);
            if let Some(status) = status {
                assert_eq!(status.code(), Some(70), "{log}");
            }
            if log.contains("nothing has changed for the pods") {
                refused += 1;
                assert!(status.is_some(), "{log}");
                let text = "the programs of the build before are attached, all of them";
                assert!(log.contains(text), "call {number} of {calls}: {log}");
                wait::until("the refused programs to go", wait::LIMIT, || tags(agent) == of_before).unwrap();
                let now = (objects(agent).links, status_of_nobody(agent)["build"].clone());
                assert_eq!(now, (before.links.clone(), build.clone()));
            }
            // Back to where it was: what was refused or went through is undone.
            builds.change(agent);
            if status.is_none() {
                agent.kill().unwrap();
            }
            agent.start_again().unwrap();
            assert_whole(agent);
            assert_eq!(agent.check(pod).unwrap(), Reply::Done);
        }
        assert!(refused >= 5, "{refused} of {calls}");
    })
    .unwrap();
    mesh.no_hand_off_left().unwrap();
}
