//! How a sidecar stands, and since when: the real Envoy that is missing, comes, is killed, comes back, and drains.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::fs;
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use socket2::{Domain, Type};
use tempfile::TempDir;
use veer_tests::agent::Agent;
use veer_tests::envoy::{ADMIN, Envoy, STATUS, Sidecar};
use veer_tests::http::{self, Headers};
use veer_tests::launch::Identity;
use veer_tests::mesh::{INBOUND, Mesh, OUTBOUND};
use veer_tests::pod::TestPod;
use veer_tests::{scratch, wait};

fn envoy(pod: &TestPod, directory: &TempDir, name: &str) -> Envoy {
    let directory = directory.path().join(name);
    fs::create_dir(&directory).unwrap();
    let launch = pod.launch(Identity::proxy());
    let sidecar = Sidecar { netns: pod.netns(), launch, directory: &directory, http_ports: &[], workers: 2 };
    sidecar.start().unwrap()
}

/// What is said of the proxy of the one pod.
fn proxy(agent: &Agent) -> Value {
    agent.json(&["pods", "test/pod"]).unwrap().get("proxy").unwrap().clone()
}

fn since(proxy: &Value) -> u64 {
    proxy["since"].as_u64().unwrap()
}

#[track_caller]
fn wait_for(agent: &Agent, state: &str) -> Value {
    let found = wait::until_some(&format!("the proxy to be {state}"), wait::LIMIT, || {
        Some(proxy(agent)).filter(|proxy| proxy["state"] == state)
    });
    found.unwrap()
}

#[test]
fn a_sidecar_is_awaited_then_ready_dead_when_it_is_killed_and_ready_again_and_a_new_agent_knows_since_when() {
    let mut mesh = Mesh::new().unwrap();
    let directory = scratch::directory().unwrap();
    let waiting = proxy(&mesh.agent);
    assert_eq!((&waiting["state"], &waiting["words"]), (&json!("waiting"), &Value::Null));
    let first = envoy(&mesh.pod, &directory, "first");
    let ready = wait_for(&mesh.agent, "ready");
    assert!(since(&ready) >= since(&waiting));

    first.process().signal(Signal::SIGKILL).unwrap();
    let dead = wait_for(&mesh.agent, "dead");
    assert!(since(&dead) >= since(&ready));
    let status = mesh.agent.json(&["status"]).unwrap()["agent"].clone();
    assert_eq!(status["proxies"], json!({"sidecar": {"dead": 1}}));
    assert_eq!(status["proxyProblems"][0]["name"], "pod");
    wait::until("the agent to log it unasked", wait::LIMIT, || {
        mesh.agent.log().contains("its proxy is dead")
    })
    .unwrap();

    // Without an agent the maps tell, and an agent that was not there knows it, too.
    mesh.agent.kill().unwrap();
    let told = |proxy: &Value| (proxy["state"].clone(), since(proxy).abs_diff(since(&dead)) <= 1);
    assert_eq!(told(&proxy(&mesh.agent)), (json!("dead"), true));
    mesh.agent.start_again().unwrap();
    assert_eq!(told(&proxy(&mesh.agent)), (json!("dead"), true));

    let _second = envoy(&mesh.pod, &directory, "second");
    let again = wait_for(&mesh.agent, "ready");
    assert!(since(&again) >= since(&dead));
    let status = mesh.agent.json(&["status"]).unwrap()["agent"].clone();
    assert_eq!((&status["proxies"], status.get("proxyProblems")), (&json!({"sidecar": {"ready": 1}}), None));
}

#[test]
fn a_sidecar_whose_listeners_are_drained_drains_and_one_that_ends_then_is_dead() {
    let mesh = Mesh::new().unwrap();
    let directory = scratch::directory().unwrap();
    let mut envoy = envoy(&mesh.pod, &directory, "envoy");
    wait_for(&mesh.agent, "ready");
    let drain = || http::request_from(ADMIN, "POST", "/drain_listeners", &Headers::new());
    assert_eq!(mesh.pod.netns().run(drain).unwrap().unwrap().status, 200);
    let draining = wait_for(&mesh.agent, "draining");
    assert_eq!(draining["words"], Value::Null);
    envoy.stop().unwrap();
    wait_for(&mesh.agent, "dead");
}

#[test]
fn a_sidecar_that_says_it_is_not_ready_drains_while_it_listens() {
    let mesh = Mesh::new().unwrap();
    let _listeners = mesh.proxy_listeners().unwrap();
    // As pilot-agent, which says so from the moment when it is to end.
    let says = Arc::new(AtomicU16::new(200));
    let socket = mesh.pod.proxy().socket(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, STATUS)).into()).unwrap();
    socket.listen(16).unwrap();
    let (listener, answer) = (TcpListener::from(socket), Arc::clone(&says));
    thread::spawn(move || {
        http::serve_with(&listener, move |request| {
            let status = if request.path == "/healthz/ready" { answer.load(Ordering::SeqCst) } else { 404 };
            (status, Vec::new())
        })
    });
    assert_eq!(proxy(&mesh.agent)["state"], "ready");
    says.store(503, Ordering::SeqCst);
    let draining = proxy(&mesh.agent);
    assert_eq!(
        (&draining["state"], &draining["words"]),
        (&json!("draining"), &json!("its readiness says 503"))
    );
    // Who does not ask it knows it from whoever did.
    let status = mesh.agent.json(&["status"]).unwrap();
    assert_eq!(status["agent"]["proxies"], json!({"sidecar": {"draining": 1}}));
    says.store(200, Ordering::SeqCst);
    assert_eq!(proxy(&mesh.agent)["state"], "ready");
}

#[test]
fn a_sidecar_that_never_listens_is_missing_after_half_a_minute() {
    let mesh = Mesh::new().unwrap();
    let waiting = proxy(&mesh.agent);
    let state = |is: &str| proxy(&mesh.agent)["state"] == is;
    wait::until("the proxy to be missing", Duration::from_secs(40), || state("missing")).unwrap();
    assert_eq!(proxy(&mesh.agent)["since"], waiting["since"]);
}

#[test]
fn a_pod_that_listens_and_ceases_to_without_end_does_not_flood_the_agent_which_knows_how_it_ends() {
    /// More than the ring buffer has room for, of which each pod has a part alone.
    const TIMES: usize = 20_000;
    let mesh = Mesh::new().unwrap();
    assert_eq!(proxy(&mesh.agent)["state"], "waiting");
    let listener = |port: u16| {
        let socket = mesh.pod.proxy().socket(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&std::net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).unwrap();
        socket
    };
    let (outbound, inbound) = (listener(OUTBOUND), listener(INBOUND));
    outbound.listen(1).unwrap();
    // An agent that is not as quick as the pod.
    mesh.agent.signal(Signal::SIGSTOP).unwrap();
    for _ in 0..TIMES {
        inbound.listen(1).unwrap();
        inbound.shutdown(Shutdown::Both).unwrap();
    }
    inbound.listen(1).unwrap();
    mesh.agent.signal(Signal::SIGCONT).unwrap();
    wait::until("the agent to see unasked that it listens", wait::LIMIT, || {
        mesh.agent.log().contains("its proxy is ready")
    })
    .unwrap();
    assert_eq!(mesh.counter("faults", "event-lost").unwrap(), 0);
}
