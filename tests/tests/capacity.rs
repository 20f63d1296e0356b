//! A map that is full: the pod that does not fit is told so, and nobody else notices.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests panic as tests do")]

use std::net::{IpAddr, SocketAddr};

use veer_common::cni::{Reply, code};
use veer_common::maps::{MAX_PORTS, name};
use veer_tests::manifest::Manifest;
use veer_tests::mesh::{Listeners, Mesh, dial, dual_stack, proxy_listeners};
use veer_tests::pinned::{Counts, Pinned};
use veer_tests::pod::{REMOTE_V4, TestPod};

const REMOTE: IpAddr = IpAddr::V4(REMOTE_V4);
/// Ports that each of the large pods excludes.
const LARGE: u16 = 65_000;
/// A port that they do not exclude.
const NOT_EXCLUDED: u16 = 65_001;
/// What every pod has besides: 15020, 15021 and 15090, inbound.
const OWN_PORTS: usize = 3;

/// A node with so many large pods that there is no room for another.
struct Full {
    mesh: Mesh,
    large: Vec<TestPod>,
    listeners: Listeners,
    before: Counts,
}

fn excluding_many(pod: &TestPod) -> Manifest {
    let ports: Vec<String> = (1..=LARGE).map(|port| port.to_string()).collect();
    dual_stack(pod).with_traffic("excludeOutboundPorts", &ports.join(","))
}

fn full() -> Full {
    let mesh = Mesh::new().unwrap();
    let each = usize::from(LARGE) + OWN_PORTS;
    let room = usize::try_from(MAX_PORTS).unwrap();
    let large: Vec<TestPod> = (0..room / each)
        .map(|number| TestPod::new(&mesh.world, &mesh.cgroup, &format!("large-{number}")).unwrap())
        .collect();
    for pod in &large {
        mesh.agent.enrol_as(pod, &excluding_many(pod)).unwrap();
    }
    let mut listeners = proxy_listeners(&mesh.pod).unwrap();
    for pod in &large {
        listeners.extend(proxy_listeners(pod).unwrap());
    }
    for port in [80, NOT_EXCLUDED] {
        listeners.add_in_world("outside", &mesh.world, SocketAddr::new(REMOTE, port)).unwrap();
    }
    let before = Pinned::of(&mesh.agent).counts().unwrap();
    // The pod of every mesh has its default list besides: 15020, outbound.
    assert_eq!(before.get(name::PORTS).copied().unwrap(), large.len() * each + OWN_PORTS + 1);
    Full { mesh, large, listeners, before }
}

impl Full {
    #[track_caller]
    fn assert_refused(&self, reply: &Reply) {
        let Reply::Failed { code: code::ENROLMENT_FAILED, msg, .. } = reply else { panic!("{reply:?}") };
        let text = format!("map PORTS is full ({MAX_PORTS} entries)");
        assert!(msg.contains(&text), "{msg}");
        assert_eq!(Pinned::of(&self.mesh.agent).counts().unwrap(), self.before);
        for pod in self.large.iter().chain([&self.mesh.pod]) {
            assert_eq!(self.mesh.agent.check(pod).unwrap(), Reply::Done);
        }
    }

    /// Where connections to an excluded port and to another end.
    fn ends(&self, pod: &TestPod) -> [&'static str; 2] {
        [80, NOT_EXCLUDED].map(|port| dial(pod.app(), (REMOTE, port), &self.listeners).unwrap().0.at)
    }
}

#[test]
fn a_pod_that_does_not_fit_is_refused_and_leaves_nothing() {
    let mut full = full();
    let agent = &full.mesh.agent;
    let late = TestPod::new(&full.mesh.world, &full.mesh.cgroup, "late").unwrap();
    agent.write_manifest(&excluding_many(&late)).unwrap();
    full.assert_refused(&agent.add(&late).unwrap());
    assert_eq!(full.ends(&late), ["outside", "outside"]);
    assert_eq!(full.ends(&full.large[0]), ["outside", "outbound"]);

    // One that fits is still welcome, and the other is once there is room.
    let small = TestPod::new(&full.mesh.world, &full.mesh.cgroup, "small").unwrap();
    full.mesh.agent.enrol(&small).unwrap();
    let leaving = full.large.pop().unwrap();
    full.mesh.agent.unenrol(&leaving).unwrap();
    full.listeners.extend(proxy_listeners(&late).unwrap());
    assert_eq!(full.mesh.agent.add(&late).unwrap(), Reply::Done);
    assert_eq!(full.ends(&late), ["outside", "outbound"]);
}

#[test]
fn a_second_add_that_does_not_fit_leaves_the_pod_with_what_it_had() {
    let full = full();
    let pod = &full.mesh.pod;
    full.mesh.agent.write_manifest(&excluding_many(pod)).unwrap();
    full.assert_refused(&full.mesh.agent.add(pod).unwrap());
    assert_eq!(full.ends(pod), ["outbound", "outbound"]);
    full.mesh.agent.unenrol(pod).unwrap();
    let left = Pinned::of(&full.mesh.agent).counts().unwrap();
    assert_eq!(left[name::PORTS], full.large.len() * (usize::from(LARGE) + OWN_PORTS));
}
