//! In and out of ztunnel, and between ztunnel and the node's Envoy.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;
use veer_tests::launch::Identity;
use veer_tests::load::{self, Progress};
use veer_tests::manifest::Manifest;
use veer_tests::mesh::APP;
use veer_tests::process::Process;
use veer_tests::serving_ztunnel::Serving;
use veer_tests::streams::{self, BYTES, Stream};
use veer_tests::ztunnel::{Message, Ztunnel};
use veer_tests::{scratch, wait};

use super::{Dialler, Node, PASS, ask};

/// Istio's label.
const MODE: &str = "istio.io/dataplane-mode";

/// A node with both of its proxies; ztunnel need not be there.
struct Scene {
    _apps: [Process; 2],
    node: Node,
    // Its thread ends with the agent.
    ztunnel: Option<Serving>,
    place: TempDir,
}

impl Scene {
    fn new() -> Self {
        let mut scene = Self::without_ztunnel();
        scene.ztunnel_comes();
        scene
    }

    fn without_ztunnel() -> Self {
        let place = scratch::directory().unwrap();
        let node = Node::start_with(Some(&socket(&place)));
        let apps = [node.app(&node.moving, "moving"), node.app(&node.other, "other")];
        Self { _apps: apps, node, ztunnel: None, place }
    }

    fn ztunnel_comes(&mut self) {
        let pods = [&self.node.moving];
        self.ztunnel = Some(Serving::start(&socket(&self.place), &pods, &self.node.cgroup).unwrap());
    }

    fn ztunnel(&self) -> &Serving {
        self.ztunnel.as_ref().unwrap()
    }

    /// The moving pod's manifest, of no driver.
    fn bare(&self) -> Manifest {
        self.node.moving.manifest().with_uid(&self.node.uid).without_sidecar()
    }

    fn write(&self, manifest: &Manifest) {
        self.node.agent.write_manifest(manifest).unwrap();
    }

    fn moves_to_ztunnel(&self) {
        self.write(&self.bare().with_label(MODE, "ambient"));
        self.node.wait_driven_by("ztunnel");
    }

    /// Waits until the pod is out, and ztunnel has nothing of it.
    fn wait_out(&self) {
        wait::until("the pod to be out of the mesh", PASS, || self.node.pod().is_none()).unwrap();
        self.nothing_of_ztunnel_is_left();
    }

    fn nothing_of_ztunnel_is_left(&self) {
        let netns = self.node.moving.netns();
        let is_closed = || netns.listening(15008).unwrap() == 0;
        wait::until("ztunnel to listen no more", wait::LIMIT, is_closed).unwrap();
        let says_so = || self.ztunnel().told().last().is_some_and(|said| said.starts_with("del "));
        wait::until("ztunnel to have said so", wait::LIMIT, says_so).unwrap();
    }

    /// Out of the pod and into it, by both families.
    fn diallers(&self) -> [Dialler<'_>; 4] {
        let (moving, other) = (&self.node.moving, &self.node.other);
        let app = || moving.maker(Identity::app()).unwrap();
        [
            Dialler::Out(app(), (other.v4(), APP).into()),
            Dialler::Out(app(), (other.v6(), APP).into()),
            Dialler::In(&self.node.world, (moving.v4(), APP).into()),
            Dialler::In(&self.node.world, (moving.v6(), APP).into()),
        ]
    }

    fn under_load(&self, meanwhile: impl FnOnce(&Progress)) {
        let made = load::during(&self.diallers(), |dialler, _turn| ask(dialler), meanwhile);
        let log = || format!("{}\n{:?}", self.node.agent.log(), self.ztunnel.as_ref().map(Serving::told));
        made.unwrap_or_else(|error| panic!("{error:#}\n{}", log()));
    }

    /// What is opened from here on goes through ztunnel, all of it.
    fn goes_through_ztunnel(&self, progress: &Progress) {
        // What was opened before has ended.
        progress.wait_for(20).unwrap();
        let (before, done) = (self.ztunnel().carried(), progress.done());
        progress.wait_for(100).unwrap();
        let (after, all) = (self.ztunnel().carried(), progress.done() - done);
        let carried: u64 = (0..2).map(|index| after[index] - before[index]).sum();
        // Each of the four may be between its connection and its count, at either end of the time.
        assert!(carried + 8 >= all, "{carried} of {all}");
        assert!(after[0] > before[0] && after[1] > before[1], "{before:?} {after:?}");
    }

    fn goes_through_envoy(&self, progress: &Progress) {
        let carried = self.ztunnel.as_ref().map(Serving::carried);
        let lines = || {
            let is_line = |direction: &str| {
                let log = self.node.proxy.log();
                let entries = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
                entries.filter(|entry| entry["direction"] == direction && entry["status"] == 200).count()
            };
            ["outbound", "inbound"].map(is_line)
        };
        let before = lines();
        progress.wait_for(50).unwrap();
        wait::until("Envoy to log both directions", wait::LIMIT, || {
            let after = lines();
            after[0] > before[0] && after[1] > before[1]
        })
        .unwrap();
        assert_eq!(self.ztunnel.as_ref().map(Serving::carried), carried);
    }

    fn goes_through_nobody(&self, progress: &Progress) {
        let carried = self.ztunnel.as_ref().map(Serving::carried);
        progress.wait_for(100).unwrap();
        assert_eq!(self.ztunnel.as_ref().map(Serving::carried), carried);
    }

    /// The pod's uid in what ztunnel was told, since `from`.
    fn told(&self, from: usize) -> Vec<String> {
        let uid = &self.node.uid;
        self.ztunnel().told().split_off(from).iter().map(|said| said.replace(uid, "it")).collect()
    }
}

fn socket(place: &TempDir) -> PathBuf {
    place.path().join("ztunnel.sock")
}

#[test]
fn a_pod_that_comes_under_ztunnel_and_leaves_it_twice_loses_no_request() {
    let scene = Scene::new();
    scene.write(&scene.bare());
    scene.under_load(|progress| {
        scene.goes_through_nobody(progress);
        for _turn in 1..=2 {
            scene.moves_to_ztunnel();
            scene.goes_through_ztunnel(progress);
            scene.write(&scene.bare());
            scene.wait_out();
            scene.goes_through_nobody(progress);
        }
    });
    assert_eq!(scene.told(0), ["snapshot", "add it", "del it", "add it", "del it"]);
    assert_eq!(super::ways(&scene.node.moving), 0);
    // Of its listeners none was forgotten while it slept.
    let log = scene.node.agent.log();
    assert!(!log.contains("brought back"), "{log}");
}

#[test]
fn a_pod_moves_to_ztunnel_with_the_label_of_its_namespace_and_loses_no_request() {
    let scene = Scene::new();
    scene.write(&scene.bare());
    let label = |word| scene.node.agent.write_namespace("test", (MODE, word)).unwrap();
    scene.under_load(|progress| {
        scene.goes_through_nobody(progress);
        label("ambient");
        scene.node.wait_driven_by("ztunnel");
        scene.goes_through_ztunnel(progress);
        label("none");
        scene.wait_out();
        scene.goes_through_nobody(progress);
    });
    assert_eq!(scene.told(0), ["snapshot", "add it", "del it"]);
}

#[test]
fn a_pod_goes_from_envoy_to_ztunnel_and_back_and_loses_no_request() {
    let scene = Scene::new();
    scene.under_load(|progress| {
        scene.node.moves_in();
        scene.goes_through_envoy(progress);
        for _turn in 1..=2 {
            scene.moves_to_ztunnel();
            scene.goes_through_ztunnel(progress);
            scene.node.moves_in();
            scene.nothing_of_ztunnel_is_left();
            scene.goes_through_envoy(progress);
        }
    });
    // Nobody was asked to listen where the other one did.
    assert_eq!(scene.told(0), ["snapshot", "add it", "del it", "add it", "del it"]);
    let log = scene.node.agent.log();
    assert!(!log.contains("move it to another driver"), "{log}");
    assert_eq!(super::ways(&scene.node.moving), 0);
}

#[test]
fn connections_that_are_open_stay_what_they_are_when_their_pod_comes_from_ztunnel() {
    let scene = Scene::new();
    let moving = &scene.node.moving;
    let listener = streams::listen(moving, BYTES).unwrap();
    let to = SocketAddr::from((moving.v4(), BYTES));
    let connect = || Stream::from_world(&scene.node.world, &listener, to).unwrap();
    scene.write(&scene.bare());
    let mut direct = connect();
    scene.moves_to_ztunnel();
    direct.exchange().unwrap();
    let mut carried = connect();
    carried.exchange().unwrap();
    assert_eq!(scene.ztunnel().carried(), [0, 1]);
    scene.node.moves_in();
    let mut proxied = connect();
    for stream in [&mut direct, &mut carried, &mut proxied] {
        stream.exchange().unwrap();
    }
    scene.node.moves_out();
    for stream in [&mut direct, &mut carried, &mut proxied, &mut connect()] {
        stream.exchange().unwrap();
    }
    assert_eq!(scene.ztunnel().carried(), [0, 1]);
}

#[test]
fn without_a_ztunnel_a_pod_of_no_proxy_stays_as_it_is_until_one_comes() {
    let mut scene = Scene::without_ztunnel();
    scene.write(&scene.bare());
    scene.under_load(|progress| {
        scene.write(&scene.bare().with_label(MODE, "ambient"));
        wait_unrepaired(&scene);
        scene.goes_through_nobody(progress);
    });
    scene.ztunnel_comes();
    scene.under_load(|progress| {
        scene.node.wait_driven_by("ztunnel");
        scene.goes_through_ztunnel(progress);
    });
}

#[test]
fn without_a_ztunnel_a_pod_of_envoys_stays_there_until_one_comes() {
    let mut scene = Scene::without_ztunnel();
    scene.under_load(|progress| {
        scene.node.moves_in();
        scene.write(&scene.bare().with_label(MODE, "ambient"));
        wait_unrepaired(&scene);
        // It is in the mesh all the time.
        assert_eq!(scene.node.pod().unwrap()["driver"], json!("node"));
        scene.goes_through_envoy(progress);
    });
    scene.ztunnel_comes();
    scene.under_load(|progress| {
        scene.node.wait_driven_by("ztunnel");
        scene.goes_through_ztunnel(progress);
    });
    assert_eq!(scene.told(0), ["snapshot", "add it"]);
}

#[test]
fn an_agent_that_is_killed_while_a_pod_moves_to_ztunnel_brings_it_there_when_it_starts() {
    for before in ["none", "node"] {
        let mut scene = Scene::without_ztunnel();
        let mut slow = Ztunnel::start(&socket(&scene.place)).unwrap();
        slow.obey_to_the_snapshot().unwrap();
        scene.write(&scene.bare());
        if before == "node" {
            scene.node.moves_in();
        }
        scene.write(&scene.bare().with_label(MODE, "ambient"));
        // It has been told, and does not say that it listens.
        let message = wait::until_some("ztunnel to be told", PASS, || {
            let told = !slow.is_quiet(std::time::Duration::ZERO).unwrap();
            told.then(|| slow.hear().unwrap())
        });
        assert!(matches!(message.unwrap(), Some(Message::Add { .. })));
        scene.node.agent.kill().unwrap();
        drop(slow);
        // Nobody listens, and nothing is sent there.
        scene.under_load(|progress| scene.goes_through_nobody(progress));
        scene.ztunnel_comes();
        scene.node.agent.start_again().unwrap();
        scene.under_load(|progress| {
            scene.node.wait_driven_by("ztunnel");
            scene.goes_through_ztunnel(progress);
        });
        // Another agent knows it by the same uid, and ztunnel is told of its end by that.
        assert_eq!(scene.told(0), ["add it", "snapshot"], "from {before}");
        assert_eq!(scene.node.agent.json(&["status"]).unwrap()["agent"]["unrepaired"], json!([]));
        scene.write(&scene.bare());
        scene.wait_out();
        assert_eq!(scene.told(2), ["del it"], "from {before}");
    }
}

fn wait_unrepaired(scene: &Scene) {
    wait::until("the pod to be in veer status", PASS, || {
        let status = scene.node.agent.json(&["status"]).unwrap();
        let unrepaired = status["agent"]["unrepaired"].as_array().cloned().unwrap_or_default();
        unrepaired.iter().any(|one| one["problem"].as_str().unwrap_or_default().contains("not connected"))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", scene.node.agent.log()));
}
