//! Pods with a user namespace of their own (`hostUsers: false`): 1337 is the id inside the pod.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use veer_tests::launch::Identity;
use veer_tests::mesh::{APP, Listeners, Mesh, dial, dual_stack, proxy_listeners};
use veer_tests::netns::NetNs;
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, TestPod};
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
