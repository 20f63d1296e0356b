//! The agent ends and another one comes: killed, stopped, in the way of a second one. The pods must not
//! notice, and the new agent must find everything.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests panic as tests do")]

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use veer_common::cni::Reply;
use veer_tests::agent::Agent;
use veer_tests::backend::{Backend, Kept};
use veer_tests::load;
use veer_tests::mesh::{APP, Listeners, Mesh, PATIENCE, dial, dial_from_world};
use veer_tests::netns::NetNs;
use veer_tests::on_each_backend;
use veer_tests::pinned::Pinned;
use veer_tests::pod::{REMOTE_V4, TestPod};
use veer_tests::process::Process;
use veer_tests::wait;

on_each_backend! {
    killing_the_agent_while_connections_are_opened_changes_nothing,
    stopping_the_agent_while_connections_are_opened_changes_nothing,
    a_new_agent_takes_over_what_a_killed_one_left,
    a_stopped_agent_removes_its_sockets_and_nothing_else,
    a_netns_that_went_without_del_is_cleaned_up_by_the_next_agent,
}

const REMOTE: SocketAddr = SocketAddr::new(IpAddr::V4(REMOTE_V4), 80);

fn view(agent: &Agent, pod: &TestPod) -> Value {
    agent.json(&["pods", &format!("test/{}", pod.name())]).unwrap()
}

/// Where connections of the pod and to the pod end.
fn ends(mesh: &Mesh, listeners: &Listeners) -> (&'static str, &'static str) {
    let (outbound, ..) = dial(mesh.pod.app(), REMOTE, listeners).unwrap();
    let (inbound, ..) = dial_from_world(&mesh.world, (mesh.pod.v4(), APP), listeners).unwrap();
    (outbound.at, inbound.at)
}

const CAPTURED: (&str, &str) = ("outbound", "inbound");

/// How often connections are counted that the proxy got. Where NAT would give one the addresses of another that has
/// just ended, its SYN is lost, sent again and counted again; the kernel counts those, too (`TCPSynRetrans`).
fn counted(backend: Backend, clients: &NetNs, accepted: u64) -> u64 {
    if backend == Backend::Ebpf {
        return accepted;
    }
    accepted + clients.tcp_counter("TCPSynRetrans").unwrap()
}

fn killing_the_agent_while_connections_are_opened_changes_nothing(backend: Backend) {
    let mut mesh = Mesh::on(backend).unwrap();
    let Mesh { agent, pod, world, .. } = &mut mesh;
    let [out, back] = load::both_ways(pod, world, |progress| {
        progress.wait_for(500).unwrap();
        agent.kill().unwrap();
        progress.wait_for(2000).unwrap();
        // The programs are replaced under the connections' feet.
        agent.start_again().unwrap();
        progress.wait_for(500).unwrap();
    })
    .unwrap();
    let (out, back) = (counted(backend, pod.netns(), out), counted(backend, world.netns(), back));
    let pod = view(agent, pod);
    assert_eq!(pod["reasons"], json!({"all-outbound": out, "all-inbound": back}));
    assert_eq!(pod["faults"], json!({}));
    mesh.no_hand_off_left().unwrap();
}

fn stopping_the_agent_while_connections_are_opened_changes_nothing(backend: Backend) {
    let mut mesh = Mesh::on(backend).unwrap();
    let Mesh { agent, pod, world, .. } = &mut mesh;
    let [out, back] = load::both_ways(pod, world, |progress| {
        progress.wait_for(500).unwrap();
        agent.stop().unwrap();
        progress.wait_for(1000).unwrap();
    })
    .unwrap();
    let (out, back) = (counted(backend, pod.netns(), out), counted(backend, world.netns(), back));
    let pod = view(agent, pod);
    assert_eq!(
        pod["totals"],
        json!({"direct": 0, "toOutbound": out, "toInbound": back, "toDns": 0, "dropped": 0})
    );
}

fn a_new_agent_takes_over_what_a_killed_one_left(backend: Backend) {
    let mut mesh = Mesh::on(backend).unwrap();
    mesh.agent.kill().unwrap();
    // The proxy comes up while there is no agent.
    let mut listeners = mesh.proxy_listeners().unwrap();
    assert_eq!(ends(&mesh, &listeners), CAPTURED);
    let before = view(&mesh.agent, &mesh.pod);
    let counts = Kept::by(&mesh.agent, backend).counts().unwrap();

    mesh.agent.start_again().unwrap();

    assert_eq!(view(&mesh.agent, &mesh.pod), before);
    assert_eq!(Kept::by(&mesh.agent, backend).counts().unwrap(), counts);
    assert_eq!(mesh.agent.check(&mesh.pod).unwrap(), Reply::Done);
    let status = mesh.agent.json(&["status"]).unwrap();
    assert!(
        status["programs"].as_array().unwrap().iter().all(|program| program["attached"] == true),
        "{status}"
    );
    assert_eq!((&status["enrolled"], &status["agent"]["enrolled"]), (&1.into(), &1.into()));
    assert_eq!(ends(&mesh, &listeners), CAPTURED);

    let another = mesh.another_pod("another").unwrap();
    listeners.extend(veer_tests::mesh::proxy_listeners(&another).unwrap());
    let (arrival, ..) = dial(another.app(), REMOTE, &listeners).unwrap();
    assert_eq!((arrival.at, arrival.peer.ip()), ("outbound", another.v4().into()));
    mesh.agent.unenrol(&mesh.pod).unwrap();
    let left = Kept::by(&mesh.agent, backend).of_pod(before["netnsCookie"].as_u64().unwrap()).unwrap();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(mesh.agent.check(&another).unwrap(), Reply::Done);
}

fn a_stopped_agent_removes_its_sockets_and_nothing_else(backend: Backend) {
    let mut mesh = Mesh::on(backend).unwrap();
    let listeners = mesh.proxy_listeners().unwrap();
    let counts = Kept::by(&mesh.agent, backend).counts().unwrap();
    for socket in ["cni.sock", "control.sock"] {
        assert!(mesh.agent.run_dir().join(socket).exists(), "{socket}");
    }
    mesh.agent.stop().unwrap();
    for socket in ["cni.sock", "control.sock"] {
        assert!(!mesh.agent.run_dir().join(socket).exists(), "{socket}");
    }
    assert!(mesh.agent.log().contains("stopping; the pods stay as they are signal=\"SIGTERM\""));
    assert_eq!(Kept::by(&mesh.agent, backend).counts().unwrap(), counts);
    assert_eq!(ends(&mesh, &listeners), CAPTURED);
    mesh.agent.start_again().unwrap();
    assert_eq!(mesh.agent.check(&mesh.pod).unwrap(), Reply::Done);
}

#[test]
fn a_second_agent_on_the_same_directory_refuses_and_leaves_the_first_alone() {
    let mesh = Mesh::new().unwrap();
    let listeners = mesh.proxy_listeners().unwrap();
    let place = mesh.agent.run_dir();
    let pods_from = format!("--pods-from={}", place.with_file_name("pods").display());
    let cgroup = format!("--cgroup={}", mesh.cgroup.path().display());
    let command = mesh.agent.command(&["agent", &pods_from, &cgroup]);
    let mut second = Process::start("a second agent", command, &place.with_file_name("second.log")).unwrap();
    assert_eq!(second.wait().unwrap().code(), Some(70), "{}", second.log());
    let text = format!(
        "veer: another agent runs on {}: a node has one; `veer status` names it, SIGTERM ends it\n",
        place.join("agent.lock").display()
    );
    assert_eq!(second.log(), text);
    assert_eq!(mesh.agent.check(&mesh.pod).unwrap(), Reply::Done);
    assert!(mesh.agent.json(&["status"]).unwrap()["agentError"].is_null());
    assert_eq!(ends(&mesh, &listeners), CAPTURED);
    mesh.another_pod("another").unwrap();
}

fn a_netns_that_went_without_del_is_cleaned_up_by_the_next_agent(backend: Backend) {
    let mut mesh = Mesh::on(backend).unwrap();
    let listeners = mesh.proxy_listeners().unwrap();
    let gone = mesh.another_pod("gone").unwrap();
    let cookie = view(&mesh.agent, &gone)["netnsCookie"].as_u64().unwrap();
    let name = gone.name().to_owned();
    mesh.agent.kill().unwrap();
    drop(gone);
    let attached = || mesh.agent.json(&["pods", &format!("test/{name}")]).unwrap()["inboundAttached"] == true;
    wait::until("the kernel to end the netns", wait::LIMIT, || !attached()).unwrap();
    assert!(!Kept::by(&mesh.agent, backend).of_pod(cookie).unwrap().is_empty());

    mesh.agent.start_again().unwrap();

    let left = Kept::by(&mesh.agent, backend).of_pod(cookie).unwrap();
    assert!(left.is_empty(), "{left:?}");
    let pods = mesh.agent.json(&["pods"]).unwrap();
    assert_eq!((pods.as_array().unwrap().len(), &pods[0]["name"]), (1, &"pod".into()));
    assert_eq!(mesh.agent.check(&mesh.pod).unwrap(), Reply::Done);
    assert_eq!(ends(&mesh, &listeners), CAPTURED);
}

#[test]
fn what_a_crash_left_half_enrolled_is_brought_to_its_end_by_the_next_agent() {
    let mut mesh = Mesh::new().unwrap();
    let listeners = mesh.proxy_listeners().unwrap();
    let pinned = Pinned::of(&mesh.agent);
    let cookie = view(&mesh.agent, &mesh.pod)["netnsCookie"].as_u64().unwrap();
    mesh.agent.kill().unwrap();
    // The policy is the last step of an ADD and the first of a DEL.
    pinned.remove_policy(cookie).unwrap();
    mesh.agent.start_again().unwrap();
    let is_whole = || mesh.agent.check(&mesh.pod).unwrap() == Reply::Done;
    wait::until("the pod to be whole", PATIENCE, is_whole).unwrap();
    assert_eq!(ends(&mesh, &listeners), CAPTURED);
    mesh.agent.unenrol(&mesh.pod).unwrap();
    let left = pinned.counts().unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_pod_that_lives_is_never_let_go_by_a_new_agent() {
    let mut mesh = Mesh::new().unwrap();
    let listeners = mesh.proxy_listeners().unwrap();
    let cookie = view(&mesh.agent, &mesh.pod)["netnsCookie"].as_u64().unwrap();
    mesh.agent.kill().unwrap();
    Pinned::of(&mesh.agent).remove_netns_link(cookie).unwrap();
    mesh.agent.start_again().unwrap();
    assert_eq!(mesh.agent.check(&mesh.pod).unwrap(), Reply::Done);
    assert_eq!(ends(&mesh, &listeners), CAPTURED);
}

#[test]
fn programs_that_lost_their_place_are_attached_again_by_the_next_agent() {
    let mut mesh = Mesh::new().unwrap();
    let listeners = mesh.proxy_listeners().unwrap();
    let link = mesh.agent.bpffs().join(format!("v{}/links/veer_connect4", veer_common::ABI_VERSION));
    std::fs::remove_file(link).unwrap();
    let status = |agent: &Agent| agent.command(&["status"]).output().unwrap();
    let is_off = || status(&mesh.agent).status.code() == Some(70);
    wait::until("the kernel to take the program off", PATIENCE, is_off).unwrap();
    let errors = String::from_utf8(status(&mesh.agent).stderr).unwrap();
    assert_eq!(errors, "veer: not attached: veer_connect4; a restart of the agent attaches them\n");
    mesh.agent.stop().unwrap();
    mesh.agent.start_again().unwrap();
    assert_eq!(status(&mesh.agent).status.code(), Some(0));
    assert_eq!(ends(&mesh, &listeners), CAPTURED);
}
