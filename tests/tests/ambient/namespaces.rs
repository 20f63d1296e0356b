//! Pods that are of ambient mode because their namespace is.

use std::net::SocketAddr;

use veer_common::cni::Reply;
use veer_tests::mesh::{APP, dial};
use veer_tests::pod::REMOTE_V4;

use super::{REMOTE, Scene};

/// Istio's label.
const MODE: &str = "istio.io/dataplane-mode";

/// The pod has no label of its own.
fn by_namespace() -> Scene {
    Scene::enrolling(
        |agent, pod| {
            agent.write_namespace("test", (MODE, "ambient")).unwrap();
            agent.enrol_as(pod, &pod.manifest().without_sidecar()).unwrap();
        },
        &[],
    )
}

#[test]
fn its_connections_go_through_ztunnel_and_it_is_told_why() {
    let scene = by_namespace();
    let to = SocketAddr::from((REMOTE_V4, REMOTE));
    assert_eq!(dial(scene.pod.app(), to, &scene.listeners).unwrap().0.at, "outbound");
    let (inbound, ..) = dial(scene.client.app(), (scene.pod.v4(), APP), &scene.listeners).unwrap();
    assert_eq!(inbound.at, "inbound");
    let pod = scene.agent.json(&["pods", "test/pod"]).unwrap();
    assert_eq!(pod.get("driver").and_then(|driver| driver.as_str()), Some("ztunnel"), "{pod}");
    let explain = scene.agent.command(&["explain", "test/pod", "--to", "192.0.2.1:80"]).output().unwrap();
    let explained = String::from_utf8(explain.stdout).unwrap().replace("\n          ", " ");
    let why = "label istio.io/dataplane-mode=\"ambient\" of namespace test";
    assert!(explained.contains(why), "{explained}");
}

#[test]
fn a_pod_that_says_none_is_left_alone_and_so_is_one_with_a_sidecar() {
    let scene = by_namespace();
    let add = |manifest| {
        scene.agent.write_manifest(&manifest).unwrap();
        scene.agent.add(&scene.client).unwrap()
    };
    let out = scene.client.manifest().without_sidecar().with_label(MODE, "none");
    assert_eq!(add(out), Reply::Passed { reason: "not-injected".to_owned() });
    // Injected, and so its sidecar's.
    assert_eq!(add(scene.client.manifest()), Reply::Done);
    let pod = scene.agent.json(&["pods", "test/client"]).unwrap();
    assert_eq!(pod.get("driver").and_then(|driver| driver.as_str()), Some("sidecar"), "{pod}");
}
