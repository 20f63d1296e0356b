//! What one pod takes, and what is left for the others: lists of any length take nobody's room, and where a
//! map is full, the pod that does not fit is told so and nobody else notices.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests panic as tests do")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use veer_common::cni::{Reply, code};
use veer_common::maps::{MAX_OWN_ADDRESSES, name};
use veer_tests::manifest::Manifest;
use veer_tests::mesh::{Listeners, Mesh, dial, dual_stack, proxy_listeners};
use veer_tests::pinned::{Counts, Pinned};
use veer_tests::pod::{REMOTE_V4, TestPod};
use veer_tests::{filling, veth};

const REMOTE: IpAddr = IpAddr::V4(REMOTE_V4);
/// Ports that a large pod excludes: the most, from 1 on, that Kubernetes lets annotations say.
const LARGE: u16 = 45_000;
/// A port that nobody excludes.
const NOT_EXCLUDED: u16 = 45_001;
/// Bytes that all annotations of a Kubernetes object have.
const ANNOTATIONS: usize = 256 << 10;
/// Port lists of a pod with nothing but the proxy's own ports: excluded outbound and excluded inbound.
const OWN_LISTS: usize = 2;

fn excluding_many(pod: &TestPod) -> Manifest {
    let ports: Vec<String> = (1..=LARGE).map(|port| port.to_string()).collect();
    let ports = ports.join(",");
    assert!((ANNOTATIONS - (8 << 10)..ANNOTATIONS).contains(&ports.len()), "{} bytes", ports.len());
    dual_stack(pod).with_traffic("excludeOutboundPorts", &ports)
}

/// Listens in the world where an excluded port and another are dialled.
fn listen_outside(mesh: &Mesh, listeners: &mut Listeners) {
    for port in [80, NOT_EXCLUDED] {
        listeners.add_in_world("outside", &mesh.world, SocketAddr::new(REMOTE, port)).unwrap();
    }
}

/// Where connections to an excluded port and to another end.
fn ends(pod: &TestPod, listeners: &Listeners) -> [&'static str; 2] {
    [80, NOT_EXCLUDED].map(|port| dial(pod.app(), (REMOTE, port), listeners).unwrap().0.at)
}

#[test]
fn pods_with_the_longest_lists_take_no_room_of_others() {
    let mesh = Mesh::new().unwrap();
    let mut listeners = mesh.proxy_listeners().unwrap();
    listen_outside(&mesh, &mut listeners);
    let large: Vec<TestPod> = (0..8)
        .map(|number| TestPod::new(&mesh.world, &mesh.cgroup, &format!("large-{number}")).unwrap())
        .collect();
    for pod in &large {
        mesh.agent.enrol_as(pod, &excluding_many(pod)).unwrap();
        listeners.extend(proxy_listeners(pod).unwrap());
    }
    let late = mesh.another_pod("late").unwrap();
    listeners.extend(proxy_listeners(&late).unwrap());

    for pod in &large {
        assert_eq!(ends(pod, &listeners), ["outside", "outbound"], "{}", pod.name());
    }
    for pod in [&mesh.pod, &late] {
        assert_eq!(ends(pod, &listeners), ["outbound", "outbound"], "{}", pod.name());
    }
    let pods = large.len() + 2;
    assert_eq!(Pinned::of(&mesh.agent).counts().unwrap()[name::PORTS], pods * OWN_LISTS);
    for pod in &large {
        mesh.agent.unenrol(pod).unwrap();
    }
    assert_eq!(Pinned::of(&mesh.agent).counts().unwrap()[name::PORTS], 2 * OWN_LISTS);
}

/// A node whose map of addresses has no room for another.
struct Full {
    mesh: Mesh,
    listeners: Listeners,
    before: Counts,
}

fn full() -> Full {
    let mesh = Mesh::new().unwrap();
    let mut listeners = mesh.proxy_listeners().unwrap();
    listen_outside(&mesh, &mut listeners);
    let pinned = Pinned::of(&mesh.agent);
    filling::fill(&pinned, name::OWN_ADDRESSES).unwrap();
    let before = pinned.counts().unwrap();
    let all = usize::try_from(MAX_OWN_ADDRESSES).unwrap();
    assert_eq!(before.get(name::OWN_ADDRESSES), Some(&all));
    Full { mesh, listeners, before }
}

impl Full {
    #[track_caller]
    fn assert_refused(&self, reply: &Reply) {
        let Reply::Failed { code: code::ENROLMENT_FAILED, msg, .. } = reply else { panic!("{reply:?}") };
        let text = format!("map OWN_ADDRESSES is full ({MAX_OWN_ADDRESSES} entries)");
        assert!(msg.contains(&text), "{msg}");
        assert_eq!(Pinned::of(&self.mesh.agent).counts().unwrap(), self.before);
        assert_eq!(self.mesh.agent.check(&self.mesh.pod).unwrap(), Reply::Done);
    }

    fn make_room(&self) {
        filling::empty(&Pinned::of(&self.mesh.agent), name::OWN_ADDRESSES).unwrap();
    }
}

#[test]
fn a_pod_that_does_not_fit_is_refused_and_leaves_nothing() {
    let mut full = full();
    let agent = &full.mesh.agent;
    let late = TestPod::new(&full.mesh.world, &full.mesh.cgroup, "late").unwrap();
    agent.write_manifest(&excluding_many(&late)).unwrap();
    full.assert_refused(&agent.add(&late).unwrap());
    assert_eq!(ends(&late, &full.listeners), ["outside", "outside"]);
    assert_eq!(ends(&full.mesh.pod, &full.listeners), ["outbound", "outbound"]);

    full.make_room();
    full.listeners.extend(proxy_listeners(&late).unwrap());
    assert_eq!(agent.add(&late).unwrap(), Reply::Done);
    assert_eq!(ends(&late, &full.listeners), ["outside", "outbound"]);
}

#[test]
fn a_second_add_that_does_not_fit_leaves_the_pod_with_what_it_had() {
    let full = full();
    let (agent, pod) = (&full.mesh.agent, &full.mesh.pod);
    let second = Ipv4Addr::new(10, 77, 0, 200);
    veth::ip(pod.netns(), [format!("address add {second}/24 dev eth0")]).unwrap();
    agent.write_manifest(&excluding_many(pod)).unwrap();
    full.assert_refused(&agent.add(pod).unwrap());
    assert_eq!(ends(pod, &full.listeners), ["outbound", "outbound"]);

    full.make_room();
    assert_eq!(agent.add(pod).unwrap(), Reply::Done);
    assert_eq!(ends(pod, &full.listeners), ["outside", "outbound"]);
}
