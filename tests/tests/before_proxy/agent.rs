//! The agent ends, starts, heals and is told of the pod again: what is over stays over.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Type};
use veer_common::cni::Reply;
use veer_common::maps::name;
use veer_tests::mesh::{Listeners, OUTBOUND};
use veer_tests::pinned::Pinned;
use veer_tests::wait;

use super::{DIRECT, Scene};

/// A pass comes each second here; a look at all processes takes a while on a busy machine.
const PASS: Duration = Duration::from_mins(1);
const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), OUTBOUND);

impl Scene {
    /// As an installer that is in the chain twice does.
    fn add_again(&self) {
        assert_eq!(self.mesh.agent.add(self.pod()).unwrap(), Reply::Done);
    }

    fn restart(&mut self) {
        self.mesh.agent.kill().unwrap();
        self.mesh.agent.start_again().unwrap();
        self.mesh.agent.wait_settled().unwrap();
    }

    fn cookie(&self) -> u64 {
        self.mesh.agent.json(&["pods", "test/pod"]).unwrap()["netnsCookie"].as_u64().unwrap()
    }

    /// A listener that is found in the pod's processes, too.
    fn kept_listener(&self) -> Listeners {
        let kept = self.pod().proxy().kept_socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        let mut listeners = Listeners::default();
        listeners.listen("outbound", kept, ANY).unwrap();
        listeners
    }
}

#[test]
fn an_agent_that_starts_or_is_told_again_leaves_each_stage_as_it_is() {
    let mut scene = Scene::new(&[DIRECT]);
    for _ in 0..2 {
        scene.add_again();
        scene.is_direct();
        scene.restart();
        scene.is_direct();
    }
    let mut proxy = scene.mesh.proxy_listeners().unwrap();
    for _ in 0..2 {
        scene.add_again();
        scene.is_at(&proxy);
        scene.restart();
        scene.is_at(&proxy);
    }
    drop(std::mem::take(&mut proxy));
    for _ in 0..2 {
        scene.add_again();
        scene.is_refused();
        scene.restart();
        scene.is_refused();
    }
}

#[test]
fn a_proxy_that_listens_and_dies_while_there_is_no_agent_has_listened() {
    let mut scene = Scene::new(&[DIRECT]);
    scene.mesh.agent.kill().unwrap();
    scene.is_direct();
    let proxy = scene.mesh.proxy_listeners().unwrap();
    scene.is_at(&proxy);
    drop(proxy);
    scene.is_refused();
    scene.mesh.agent.start_again().unwrap();
    scene.mesh.agent.wait_settled().unwrap();
    scene.add_again();
    scene.is_refused();
}

#[test]
fn a_pod_that_was_enrolled_under_refuse_stays_so_and_one_under_direct_loses_it_with_the_setting() {
    let mut scene = Scene::new(&[]);
    scene.mesh.agent.set_arguments(&["--backend=ebpf", DIRECT]);
    scene.restart();
    scene.add_again();
    assert_eq!(scene.before_proxy(), "over");
    scene.is_refused();

    let mut scene = Scene::new(&[DIRECT]);
    scene.mesh.agent.set_arguments(&["--backend=ebpf"]);
    scene.restart();
    // What the node's setting is today is told to a pod with its next ADD, as all settings are.
    scene.is_direct();
    scene.add_again();
    assert_eq!(scene.before_proxy(), "refuse");
    scene.is_refused();
}

#[test]
fn what_a_pod_loses_comes_back_without_a_way_past_the_mesh() {
    for map in [name::PODS, name::COUNTERS, name::ENROLMENTS] {
        let scene = Scene::new(&[DIRECT, "--reconcile-interval=1"]);
        let (pinned, cookie) = (Pinned::of(&scene.mesh.agent), scene.cookie());
        drop(scene.mesh.proxy_listeners().unwrap());
        scene.is_refused();
        // Whoever made the listeners may close the last of them a moment later, and what was refused leaves its hand-off.
        let whole = wait::until_some("what passes to be gone", PASS, || {
            let counts = pinned.of_pod(cookie).unwrap();
            [name::LISTENERS, name::HAND_OFFS].iter().all(|map| !counts.contains_key(map)).then_some(counts)
        })
        .unwrap();
        pinned.lose(map, cookie).unwrap();
        let is_back = || {
            let now = pinned.of_pod(cookie).unwrap();
            if now == whole { Ok(()) } else { Err(now) }
        };
        wait::until_ok(map, PASS, is_back).unwrap();
        scene.is_refused();
    }
}

#[test]
fn of_a_pod_that_waits_for_its_proxy_what_is_lost_of_that_is_not_given_back() {
    let scene = Scene::new(&[DIRECT, "--reconcile-interval=1"]);
    let (pinned, cookie) = (Pinned::of(&scene.mesh.agent), scene.cookie());
    scene.is_direct();
    assert_eq!(pinned.lose(name::BEFORE_PROXY, cookie).unwrap(), 1);
    scene.is_refused();
    pinned.lose(name::PODS, cookie).unwrap();
    wait::until("the policy to be back", PASS, || scene.before_proxy_or_none().is_some()).unwrap();
    assert_eq!(scene.before_proxy(), "over");
    scene.is_refused();
    scene.mesh.agent.unenrol(scene.pod()).unwrap();
}

#[test]
fn a_listener_that_no_program_saw_ends_it_as_soon_as_the_agent_does() {
    let scene = Scene::new(&[DIRECT, "--reconcile-interval=1"]);
    Pinned::of(&scene.mesh.agent).detach("veer_sockops").unwrap();
    let proxy = scene.kept_listener();
    let is_over = || scene.before_proxy() == "over";
    wait::until("the agent to see the listener", PASS, is_over).unwrap();
    drop(proxy);
}

#[test]
fn a_pod_that_runs_with_its_proxy_is_not_before_it() {
    let scene = Scene::not_enrolled(&[DIRECT]);
    let proxy = scene.kept_listener();
    scene.mesh.agent.enrol_as(scene.pod(), &scene.manifest()).unwrap();
    assert_eq!(scene.before_proxy(), "over");
    drop(proxy);
}

#[test]
fn nothing_is_left_of_a_pod_that_goes_before_its_proxy_comes() {
    let scene = Scene::new(&[DIRECT]);
    let (pinned, cookie) = (Pinned::of(&scene.mesh.agent), scene.cookie());
    assert_eq!(pinned.of_pod(cookie).unwrap().get(name::BEFORE_PROXY), Some(&1));
    scene.mesh.agent.unenrol(scene.pod()).unwrap();
    let left = pinned.of_pod(cookie).unwrap();
    assert!(left.is_empty(), "{left:?}");
    // The next pod of that name begins anew.
    scene.mesh.agent.enrol_as(scene.pod(), &scene.manifest()).unwrap();
    scene.is_direct();
}
