//! Pods with a user namespace of their own (`hostUsers: false`): 1337 is the id inside the pod.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests panic as tests do")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Value, json};
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::launch::{Identity, Launch};
use veer_tests::mesh::{APP, Listeners, Mesh, dial, dual_stack, proxy_listeners};
use veer_tests::netns::NetNs;
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, TestPod, World};
use veer_tests::socket_maker::Maker;

/// What id 0 of the pod is to the node.
const FIRST: u32 = 100_000;

fn pod(mesh: &Mesh) -> TestPod {
    let netns = NetNs::of_user_namespace(FIRST).unwrap();
    TestPod::in_netns(&mesh.world, &mesh.cgroup, "own-users", netns).unwrap()
}

#[test]
fn the_proxy_is_who_has_1337_inside_of_the_pod() {
    let mesh = Mesh::not_enrolled().unwrap();
    let pod = pod(&mesh);
    mesh.agent.enrol_as(&pod, &dual_stack(&pod).without_host_users()).unwrap();
    let mut listeners: Listeners = proxy_listeners(&pod).unwrap();
    listeners.add("app", pod.app(), (Ipv4Addr::UNSPECIFIED, APP)).unwrap();
    for remote in [IpAddr::from(REMOTE_V4), REMOTE_V6.into()] {
        listeners.add_in_world("outside", &mesh.world, (remote, 80)).unwrap();
    }
    let inside = |id: u32| pod.maker(Identity::new(FIRST + id, FIRST + id)).unwrap();
    let own = SocketAddr::new(pod.v4().into(), APP);
    for remote in [IpAddr::from(REMOTE_V4), REMOTE_V6.into()] {
        let at = |maker: &Maker| dial(maker, (remote, 80), &listeners).unwrap().0.at;
        assert_eq!(at(&inside(1337)), "outside", "the proxy");
        assert_eq!(at(&inside(1000)), "outbound", "an app");
        assert_eq!(at(&inside(0)), "outbound", "root of the pod");
        assert_eq!(at(pod.proxy()), "outbound", "1337 of the node is nobody in this pod");
    }
    let (arrival, ..) = dial(&inside(1337), own, &listeners).unwrap();
    assert_eq!((arrival.at, arrival.original), ("inbound", Some(own)));
}

/// What is explained of somebody with this id, and the notes to it.
fn explained(mesh: &Mesh, pod: &TestPod, id: u32) -> (Value, Vec<String>) {
    let (name, to) = (format!("test/{}", pod.name()), format!("--to={REMOTE_V4}:80"));
    let report = mesh.agent.json(&["explain", &name, &to, &format!("--as={id}:{id}")]).unwrap();
    let notes = report["notes"].as_array().unwrap();
    let notes = notes.iter().map(|note| note.as_str().unwrap().to_owned()).collect();
    (report, notes)
}

#[test]
fn explain_tells_whose_ids_it_speaks_of() {
    for (backend, first, whose) in [("ebpf", FIRST, "are the node's"), ("nftables", 0, "are the pod's")] {
        let cgroup = Cgroup::new().unwrap();
        let arguments = [&format!("--backend={backend}"), "--outbound-owner-groups-exclude=3000"];
        let agent = Agent::start_with(&cgroup, Launch::new(), &arguments).unwrap();
        let world = World::new().unwrap();
        let usual = TestPod::new(&world, &cgroup, "usual").unwrap();
        let mesh = Mesh { agent, pod: usual, world, cgroup };
        let own = pod(&mesh);
        mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
        mesh.agent.enrol_as(&own, &dual_stack(&own).without_host_users()).unwrap();

        let (report, notes) = explained(&mesh, &own, first + 1337);
        assert_eq!(
            (&report["reason"], report["because"][0]["origin"]["value"].as_i64()),
            (&json!("proxy"), Some(1337))
        );
        // And none says that the manifest has changed.
        let [note] = notes.as_slice() else { panic!("{notes:?}") };
        assert!(note.contains("(spec.hostUsers false)") && note.contains(whose), "{note}");
        let inbound = ["explain", "test/own-users", "--from=192.0.2.1", "--port=80"];
        assert_eq!(mesh.agent.json(&inbound).unwrap()["notes"], json!([]));

        let (report, notes) = explained(&mesh, &mesh.pod, 1337);
        assert_eq!((&report["reason"], notes.len()), (&json!("proxy"), 0), "{notes:?}");
    }
}

#[test]
fn a_runtime_without_user_namespaces_is_told() {
    let mesh = Mesh::not_enrolled().unwrap();
    let error = mesh.agent.enrol_as(&mesh.pod, &mesh.pod.manifest().without_host_users()).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("its netns belongs to the node's user namespace"), "{text}");
}

#[test]
fn an_id_that_the_pod_cannot_have_is_an_error() {
    let mesh = Mesh::not_enrolled().unwrap();
    let pod = pod(&mesh);
    let manifest = pod.manifest().without_host_users().with_proxy_user(70_000);
    let text = format!("{:#}", mesh.agent.enrol_as(&pod, &manifest).unwrap_err());
    assert!(text.contains("the proxy's uid 70000 is not mapped in the pod's user namespace"), "{text}");
}
