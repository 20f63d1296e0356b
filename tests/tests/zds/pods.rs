//! Pods of ambient mode: whom ztunnel is told of, with what, and what an ADD makes of its answer.

use std::thread;

use serde_json::json;
use veer_common::cni::Reply;
use veer_tests::pod::{TestPod, World};
use veer_tests::wait;
use veer_tests::ztunnel::{DONE, Message, Ztunnel, identity};

use super::Node;

/// A node, and the network that its pods are in.
struct Scene {
    node: Node,
    world: World,
}

impl Scene {
    fn new() -> Self {
        Self { node: Node::start(), world: World::new().unwrap() }
    }

    /// A pod whose manifest is there, and that is not enrolled.
    fn pod(&self, name: &str) -> TestPod {
        let pod = TestPod::new(&self.world, &self.node.cgroup, name).unwrap();
        self.node.agent.write_manifest(&pod.manifest().of_ambient_mode()).unwrap();
        pod
    }

    /// A ztunnel that has its snapshot, and what it was told up to that.
    fn ztunnel(&self) -> (Ztunnel, Vec<String>) {
        let mut ztunnel = self.node.ztunnel();
        let told = ztunnel.obey_to_the_snapshot().unwrap();
        (ztunnel, told)
    }

    /// ADD, while `ztunnel` does what it likes.
    fn add<T: Send>(&self, pod: &TestPod, ztunnel: impl FnOnce() -> T + Send) -> (Reply, T) {
        thread::scope(|scope| {
            let added = scope.spawn(|| self.node.agent.add(pod).unwrap());
            let outcome = ztunnel();
            (added.join().unwrap(), outcome)
        })
    }

    /// Enrols one with a ztunnel that is content.
    fn enrol(&self, name: &str, ztunnel: &mut Ztunnel) -> TestPod {
        let pod = self.pod(name);
        let (reply, told) = self.add(&pod, || ztunnel.obey().unwrap());
        assert_eq!((reply, told), (Reply::Done, add(&pod)));
        pod
    }
}

/// The kit's runtime says no uid, so a pod is known by its container's id.
fn uid(pod: &TestPod) -> String {
    pod.attachment().container_id
}

fn add(pod: &TestPod) -> String {
    format!("add {}", uid(pod))
}

fn del(pod: &TestPod) -> String {
    format!("del {}", uid(pod))
}

fn failed(reply: Reply) -> (u32, String) {
    let Reply::Failed { code, msg, .. } = reply else { unreachable!("{reply:?}") };
    (code, msg)
}

#[test]
fn a_pod_is_enrolled_when_ztunnel_has_its_netns_and_is_gone_from_it_after_its_del() {
    let scene = Scene::new();
    let (mut ztunnel, told) = scene.ztunnel();
    assert_eq!(told, ["snapshot"]);
    let pod = scene.enrol("pod", &mut ztunnel);
    let workload = ztunnel.pods()[&uid(&pod)].as_ref().unwrap();
    assert_eq!(workload.netns, identity(pod.netns()).unwrap());
    let who = [&workload.namespace, &workload.name, &workload.service_account];
    assert_eq!(who, ["test", "pod", "default"]);
    let standing = scene.node.standing();
    assert_eq!((&standing["pods"], &standing["served"]), (&json!(1), &json!(1)), "{standing}");

    scene.node.agent.unenrol(&pod).unwrap();
    assert_eq!(ztunnel.obey().unwrap(), del(&pod));
}

#[test]
fn without_a_ztunnel_an_add_fails_to_be_tried_again_and_leaves_nothing() {
    let scene = Scene::new();
    let pod = scene.pod("pod");
    let (code, msg) = failed(scene.node.agent.add(&pod).unwrap());
    assert_eq!(code, 11);
    assert!(msg.starts_with("enrol pod test/pod: ztunnel is not connected"), "{msg}");
    assert_eq!(scene.node.agent.json(&["pods"]).unwrap(), json!([]));
    assert_eq!(scene.ztunnel().1, ["snapshot"]);
}

#[test]
fn what_ztunnel_refuses_is_in_the_add_and_harms_no_other_pod() {
    let scene = Scene::new();
    let (mut ztunnel, _) = scene.ztunnel();
    let pod = scene.pod("pod");
    let (reply, message) = scene.add(&pod, || {
        let message = ztunnel.hear().unwrap().unwrap();
        ztunnel.refuse("failure to start proxy : port is taken").unwrap();
        message
    });
    assert!(matches!(&message, Message::Add { uid: told, .. } if *told == uid(&pod)), "{message:?}");
    let (code, msg) = failed(reply);
    let expected = "enrol pod test/pod: ztunnel refuses it: failure to start proxy : port is taken";
    assert_eq!((code, msg.as_str()), (11, expected));
    // It would try again by itself, with a pod that is not enrolled.
    assert_eq!(ztunnel.obey().unwrap(), del(&pod));
    scene.enrol("other", &mut ztunnel);
}

#[test]
fn a_ztunnel_that_falls_silent_is_replaced_while_the_add_waits() {
    let scene = Scene::new();
    let (mut silent, _) = scene.ztunnel();
    let pod = scene.pod("pod");
    let (reply, told) = scene.add(&pod, || {
        silent.hear().unwrap().unwrap();
        silent.wait_closed().unwrap();
        scene.ztunnel().1
    });
    assert_eq!((reply, told), (Reply::Done, vec![add(&pod), "snapshot".to_owned()]));
}

#[test]
fn an_answer_that_nobody_has_asked_for_ends_the_connection_and_no_pod() {
    let scene = Scene::new();
    let (mut hasty, _) = scene.ztunnel();
    let pod = scene.enrol("pod", &mut hasty);
    hasty.say(DONE).unwrap();
    hasty.wait_closed().unwrap();
    assert_eq!(scene.ztunnel().1, [add(&pod), "snapshot".to_owned()]);
    scene.node.agent.check(&pod).unwrap();
}

#[test]
fn an_agent_that_is_killed_and_started_again_names_all_pods_before_the_snapshot() {
    let mut scene = Scene::new();
    let (mut ztunnel, _) = scene.ztunnel();
    let pods = [scene.enrol("a", &mut ztunnel), scene.enrol("b", &mut ztunnel)];
    scene.node.agent.kill().unwrap();
    ztunnel.wait_closed().unwrap();
    scene.node.agent.start_again().unwrap();
    let (again, mut told) = scene.ztunnel();
    assert_eq!(told.pop().as_deref(), Some("snapshot"));
    told.sort();
    let mut expected = pods.each_ref().map(add);
    expected.sort();
    assert_eq!(told, expected);
    for pod in &pods {
        let workload = again.pods()[&uid(pod)].as_ref().unwrap();
        assert_eq!(workload.netns, identity(pod.netns()).unwrap());
        assert_eq!(workload.service_account, "default");
    }
}

#[test]
fn while_one_takes_over_new_pods_go_to_the_newest_and_what_goes_goes_everywhere() {
    let scene = Scene::new();
    let (mut old, _) = scene.ztunnel();
    let first = scene.enrol("first", &mut old);
    let (mut new, told) = scene.ztunnel();
    assert_eq!(told, [add(&first), "snapshot".to_owned()]);
    let second = scene.enrol("second", &mut new);
    scene.node.agent.unenrol(&first).unwrap();
    // Nothing of the second pod in between.
    assert_eq!([old.obey().unwrap(), new.obey().unwrap()], [del(&first), del(&first)]);
    // The new one does not get ready, and the old one serves again.
    drop(new);
    assert_eq!(old.obey().unwrap(), add(&second));
    let served = || scene.node.standing()["served"] == json!(1);
    wait::until("the old one to serve the pod", wait::LIMIT, served).unwrap();
}
