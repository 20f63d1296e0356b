//! Pods of another ABI version beside those of this one. What is pinned under another version here are programs and
//! maps of this one, moved to that version's directory while no agent ran: to an agent they are foreign all the
//! same, for it looks into the directories of its own version alone, and the kernel knows no versions.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde_json::{Value, json};
use veer_common::ABI_VERSION;
use veer_common::cni::{Reply, code};
use veer_tests::agent::Agent;
use veer_tests::mesh::{APP, Listeners, Mesh, dial, dial_from_world, dual_stack, proxy_listeners};
use veer_tests::pinned::Pinned;
use veer_tests::pod::{REMOTE_V4, TestPod};
use veer_tests::{load, wait};

const REMOTE: SocketAddr = SocketAddr::new(IpAddr::V4(REMOTE_V4), 80);

fn pins(agent: &Agent, version: u32) -> PathBuf {
    agent.bpffs().join(format!("v{version}"))
}

/// Ends the agent, and starts one to which all pods so far are of this version.
fn move_to(agent: &mut Agent, version: u32) {
    agent.stop().unwrap();
    fs::rename(pins(agent, ABI_VERSION), pins(agent, version)).unwrap();
    agent.start_again().unwrap();
}

/// Where connections of a pod and to it end.
fn ends(mesh: &Mesh, pod: &TestPod, listeners: &Listeners) -> (&'static str, &'static str) {
    let (outbound, ..) = dial(pod.app(), REMOTE, listeners).unwrap();
    let (inbound, ..) = dial_from_world(&mesh.world, (pod.v4(), APP), listeners).unwrap();
    (outbound.at, inbound.at)
}

const CAPTURED: (&str, &str) = ("outbound", "inbound");

fn status(agent: &Agent) -> Value {
    agent.json(&["status"]).unwrap()
}

fn names(agent: &Agent) -> Vec<Value> {
    let pods = agent.json(&["pods"]).unwrap();
    pods.as_array().unwrap().iter().filter_map(|pod| pod.get("name").cloned()).collect()
}

#[test]
fn pods_of_another_abi_version_stay_redirected_by_its_programs_and_are_not_enrolled_again() {
    for version in [ABI_VERSION - 1, ABI_VERSION + 1] {
        let mut mesh = Mesh::new().unwrap();
        let old = proxy_listeners(&mesh.pod).unwrap();
        move_to(&mut mesh.agent, version);
        let young = mesh.another_pod("young").unwrap();
        let its = proxy_listeners(&young).unwrap();
        assert_eq!((ends(&mesh, &mesh.pod, &old), ends(&mesh, &young, &its)), (CAPTURED, CAPTURED));

        assert_eq!(mesh.agent.check(&mesh.pod).unwrap(), Reply::Done);
        mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();

        assert_eq!(names(&mesh.agent), ["young"]);
        assert_eq!((ends(&mesh, &mesh.pod, &old), ends(&mesh, &young, &its)), (CAPTURED, CAPTURED));
        let pins = pins(&mesh.agent, version);
        let other = json!([{"abi": version, "pods": 1, "pins": pins.display().to_string()}]);
        assert_eq!(status(&mesh.agent).get("otherVersions"), Some(&other));
        let text =
            format!("1 pod is redirected by programs of ABI v{version} ({}) and stays so", pins.display());
        assert!(mesh.agent.log().contains(&text), "{}", mesh.agent.log());
        let told = String::from_utf8(mesh.agent.command(&["status"]).output().unwrap().stdout).unwrap();
        assert!(told.contains(&format!("warning    {text}")), "{told}");
    }
}

#[test]
fn the_change_of_the_abi_version_loses_no_connection() {
    let mut mesh = Mesh::new().unwrap();
    let Mesh { agent, pod, world, .. } = &mut mesh;
    load::both_ways(pod, world, |progress| {
        progress.wait_for(200).unwrap();
        move_to(agent, ABI_VERSION + 1);
        progress.wait_for(200).unwrap();
        // And back again: to the first agent, the pod is its own.
        agent.stop().unwrap();
        fs::rename(pins(agent, ABI_VERSION), pins(agent, ABI_VERSION + 2)).unwrap();
        fs::rename(pins(agent, ABI_VERSION + 1), pins(agent, ABI_VERSION)).unwrap();
        agent.start_again().unwrap();
        progress.wait_for(200).unwrap();
    })
    .unwrap();
    assert_eq!(mesh.agent.check(&mesh.pod).unwrap(), Reply::Done);
    assert_eq!(names(&mesh.agent), ["pod"]);
    assert!(!pins(&mesh.agent, ABI_VERSION + 2).exists(), "none of its pods was alive");
}

#[test]
fn what_another_abi_version_has_pinned_goes_with_the_last_of_its_pods() {
    let mut mesh = Mesh::new().unwrap();
    let last = mesh.another_pod("last").unwrap();
    let young = TestPod::new(&mesh.world, &mesh.cgroup, "young").unwrap();
    let version = ABI_VERSION + 1;
    move_to(&mut mesh.agent, version);
    mesh.agent.enrol_as(&young, &dual_stack(&young)).unwrap();
    let its = proxy_listeners(&young).unwrap();
    let counts = Pinned::of(&mesh.agent).counts().unwrap();
    let alive = |agent: &Agent| {
        let status = status(agent);
        status.pointer("/otherVersions/0/pods").and_then(Value::as_u64).unwrap_or_default()
    };
    assert_eq!(alive(&mesh.agent), 2);
    mesh.agent.unenrol(&last).unwrap();
    drop(last);
    wait::until("the kernel to end the netns", wait::LIMIT, || alive(&mesh.agent) == 1).unwrap();
    mesh.agent.kill().unwrap();
    mesh.agent.start_again().unwrap();
    assert_eq!((alive(&mesh.agent), pins(&mesh.agent, version).exists()), (1, true));

    let Mesh { mut agent, pod, world, cgroup } = mesh;
    drop(pod);
    wait::until("the kernel to end the netns", wait::LIMIT, || alive(&agent) == 0).unwrap();
    agent.kill().unwrap();
    agent.start_again().unwrap();

    assert!(!pins(&agent, version).exists());
    assert!(
        agent.log().contains("removed another ABI version: none of its pods is alive"),
        "{}",
        agent.log()
    );
    assert_eq!(Pinned::of(&agent).counts().unwrap(), counts);
    let (outbound, ..) = dial(young.app(), REMOTE, &its).unwrap();
    assert_eq!(outbound.at, "outbound");
    let nobody = TestPod::new(&world, &cgroup, "nobody").unwrap();
    assert!(matches!(agent.check(&nobody).unwrap(), Reply::Failed { code: code::NOT_ENROLLED, .. }));
}
