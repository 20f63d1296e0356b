//! Listeners older than the enrolment, than the agent, and those that outlive it.

use std::net::{Ipv4Addr, Ipv6Addr, Shutdown};

use socket2::{Domain, Protocol, Type};
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::mesh::{APP, INBOUND, Listeners, Mesh, dual_stack, proxy_listeners};
use veer_tests::pod::{TestPod, World};

use crate::{
    PROXY_PORTS, assert_inbound, assert_meshed, assert_untouched, bystanders, refused, registered, v4, v6,
};

/// The proxy's listeners, with the proxy's process holding them, too: so are they found by the agent.
fn held_listeners(pod: &TestPod) -> Listeners {
    let mut listeners = Listeners::default();
    for (label, port) in PROXY_PORTS {
        for at in [v4(Ipv4Addr::UNSPECIFIED, port), v6(Ipv6Addr::UNSPECIFIED, port)] {
            let maker = pod.proxy();
            let domain = Domain::for_address(at);
            let socket = maker.kept_socket(domain, Type::STREAM, Some(Protocol::TCP)).unwrap();
            listeners.listen(label, socket, at).unwrap();
        }
    }
    listeners
}

#[test]
fn a_proxy_may_listen_before_or_after_the_enrolment() {
    let mesh = Mesh::not_enrolled().unwrap();
    let older = held_listeners(&mesh.pod);
    mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
    assert_eq!(registered(&mesh, &mesh.pod), [2, 2]);
    assert_meshed(&mesh.world, &mesh.pod, &older);

    let pod = mesh.another_pod("younger").unwrap();
    let younger = held_listeners(&pod);
    assert_meshed(&mesh.world, &pod, &younger);
}

#[test]
fn a_proxy_older_than_the_agent_is_found() {
    let cgroup = Cgroup::new().unwrap();
    let world = World::new().unwrap();
    let pod = TestPod::new(&world, &cgroup, "pod").unwrap();
    let listeners = held_listeners(&pod);
    let agent = Agent::start(&cgroup).unwrap();
    agent.enrol_as(&pod, &dual_stack(&pod)).unwrap();
    assert_meshed(&world, &pod, &listeners);
}

#[test]
fn older_and_younger_listeners_stand_side_by_side() {
    let mesh = Mesh::not_enrolled().unwrap();
    let mut listeners = Listeners::default();
    let at = v4(Ipv4Addr::UNSPECIFIED, INBOUND);
    let maker = mesh.pod.proxy();
    let older = maker.kept_socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    older.set_reuse_port(true).unwrap();
    older.bind(&at.into()).unwrap();
    listeners.take("older", older).unwrap();
    mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
    listeners.take("younger", crate::worker(&mesh.pod, at)).unwrap();
    assert_eq!(registered(&mesh, &mesh.pod), [0, 2]);
    let to = v4(mesh.pod.v4(), APP);
    let mut reached = std::collections::BTreeSet::new();
    for _ in 0..64 {
        let (arrival, ..) = veer_tests::mesh::dial_from_world(&mesh.world, to, &listeners).unwrap();
        assert_eq!(arrival.original, Some(to));
        reached.insert(arrival.at);
    }
    assert_eq!(reached.into_iter().collect::<Vec<_>>(), ["older", "younger"]);
}

#[test]
fn a_pod_may_be_enrolled_unenrolled_and_enrolled_again() {
    let mesh = Mesh::new().unwrap();
    let proxy = held_listeners(&mesh.pod);
    let mut all = bystanders(&mesh.world, &mesh.pod);
    all.extend(proxy);
    for _ in 0..2 {
        assert_meshed(&mesh.world, &mesh.pod, &all);
        mesh.agent.unenrol(&mesh.pod).unwrap();
        assert_untouched(&mesh.world, &mesh.pod, &all);
        mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
        assert_eq!(registered(&mesh, &mesh.pod), [2, 2]);
    }
    assert_meshed(&mesh.world, &mesh.pod, &all);
}

#[test]
fn an_older_listener_where_nothing_is_redirected_to_is_not_the_proxys() {
    let mesh = Mesh::not_enrolled().unwrap();
    let elsewhere = v4(Ipv4Addr::new(127, 0, 0, 9), INBOUND);
    let socket = mesh.pod.app().kept_socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    let mut listeners = Listeners::default();
    listeners.listen("app", socket, elsewhere).unwrap();
    mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
    assert_eq!(registered(&mesh, &mesh.pod), [0, 0]);
    assert!(refused(&mesh.world, v4(mesh.pod.v4(), APP)));
    assert!(listeners.is_idle().unwrap());
}

#[test]
fn a_second_add_of_the_same_pod_keeps_its_listeners() {
    let mesh = Mesh::new().unwrap();
    let listeners = proxy_listeners(&mesh.pod).unwrap();
    mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
    assert_eq!(registered(&mesh, &mesh.pod), [2, 2]);
    assert_meshed(&mesh.world, &mesh.pod, &listeners);
}

#[test]
fn a_listener_that_paused_listens_again() {
    // What a proxy does that stops taking connections for a while: shutdown(), and later listen().
    let mesh = Mesh::new().unwrap();
    let to = v4(mesh.pod.v4(), APP);
    let mut listeners = Listeners::default();
    let socket = crate::worker(&mesh.pod, v4(Ipv4Addr::UNSPECIFIED, INBOUND));
    listeners.take("inbound", socket).unwrap();
    for _ in 0..2 {
        assert_inbound(&mesh.world, to, &listeners);
        let socket = listeners.remove(0);
        socket.shutdown(Shutdown::Both).unwrap();
        assert!(refused(&mesh.world, to));
        listeners.take("inbound", socket).unwrap();
    }
    assert_inbound(&mesh.world, to, &listeners);
}

#[test]
fn a_worker_that_paused_leaves_the_connections_to_the_others() {
    let mesh = Mesh::new().unwrap();
    let mut listeners = Listeners::default();
    for label in ["paused", "inbound"] {
        let socket = crate::worker(&mesh.pod, v4(Ipv4Addr::UNSPECIFIED, INBOUND));
        listeners.take(label, socket).unwrap();
    }
    let paused = listeners.remove(0);
    paused.shutdown(Shutdown::Both).unwrap();
    for _ in 0..16 {
        assert_inbound(&mesh.world, v4(mesh.pod.v4(), APP), &listeners);
    }
}

#[test]
fn listening_twice_is_listening_once() {
    let mesh = Mesh::new().unwrap();
    let mut listeners = Listeners::default();
    let socket = crate::worker(&mesh.pod, v4(Ipv4Addr::UNSPECIFIED, INBOUND));
    socket.listen(8).unwrap();
    listeners.take("inbound", socket).unwrap();
    assert_eq!(registered(&mesh, &mesh.pod), [0, 1]);
    assert_inbound(&mesh.world, v4(mesh.pod.v4(), APP), &listeners);
}
