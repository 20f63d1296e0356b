//! A socket load balancer on the same node: a program of somebody else's that rewrites service addresses in
//! connect(). Above veer it must not be in the way; before veer it must be reported.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::{Value, json};
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::mesh::{Arrival, Listeners, OUTBOUND, dial, dual_stack, proxy_listeners};
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, TestPod, World};
use veer_tests::socket_lb::SocketLb;

/// What no host has and no route leads to: an address of a service, and where it is really served.
const SERVICES: [(SocketAddr, SocketAddr); 2] = [
    (
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 80),
        SocketAddr::new(IpAddr::V4(REMOTE_V4), 8080),
    ),
    (
        SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x10)), 80),
        SocketAddr::new(IpAddr::V6(REMOTE_V6), 8080),
    ),
];

/// The load balancer's programs for both families.
fn load_balancer(cgroup: &Cgroup) -> Vec<SocketLb> {
    let attach = |(service, backend): (SocketAddr, SocketAddr)| {
        let name = if service.is_ipv4() { "lb_connect4" } else { "lb_connect6" };
        SocketLb::attach(cgroup, name, service, backend).unwrap()
    };
    SERVICES.into_iter().map(attach).collect()
}

/// An enrolled pod and one that is not, and whoever listens in this world.
struct Node {
    agent: Agent,
    enrolled: TestPod,
    other: TestPod,
    listeners: Listeners,
    _world: World,
}

impl Node {
    /// With the pods below `pods`, which the agent is attached to.
    fn new(pods: &Cgroup) -> Self {
        let agent = Agent::start(pods).unwrap();
        let world = World::new().unwrap();
        let pod = |name| TestPod::new(&world, pods, name).unwrap();
        let (enrolled, other) = (pod("enrolled"), pod("other"));
        agent.enrol_as(&enrolled, &dual_stack(&enrolled)).unwrap();
        let mut listeners = proxy_listeners(&enrolled).unwrap();
        for (_, backend) in SERVICES {
            listeners.add_in_world("backend", &world, backend).unwrap();
        }
        Self { agent, enrolled, other, listeners, _world: world }
    }

    /// Where the enrolled pod's app arrives when it dials a service.
    fn app(&self, service: SocketAddr) -> Arrival {
        let (arrival, socket, _accepted) = dial(self.enrolled.app(), service, &self.listeners).unwrap();
        assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(service));
        arrival
    }

    /// What `veer status` says of programs that run before ours.
    fn runs_before(&self) -> Vec<Value> {
        let status = self.agent.json(&["status"]).unwrap();
        status.pointer("/agent/runsBefore").unwrap().as_array().unwrap().clone()
    }

    fn status_text(&self) -> String {
        let output = self.agent.command(&["status"]).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }
}

fn loopback_of(service: SocketAddr) -> IpAddr {
    if service.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }
}

#[test]
fn above_the_pods_cgroup_it_comes_after_veer_and_the_proxy_sees_the_service() {
    // It was there before the agent: the place in the tree decides, not who came first.
    let root = Cgroup::new().unwrap();
    let _lb = load_balancer(&root);
    let kubepods = root.child("kubepods").unwrap();
    let node = Node::new(&kubepods);
    for (service, backend) in SERVICES {
        let arrival = node.app(service);
        assert_eq!((arrival.at, arrival.original), ("outbound", Some(service)));
        // Where veer sent it is no service, so that the load balancer has left it there.
        assert_eq!(arrival.local, SocketAddr::new(loopback_of(service), OUTBOUND));

        // The proxy's own connections, and a pod that is not in the mesh, are translated as ever.
        for maker in [node.enrolled.proxy(), node.other.app(), node.other.proxy()] {
            let (arrival, ..) = dial(maker, service, &node.listeners).unwrap();
            assert_eq!((arrival.at, arrival.local), ("backend", backend));
        }
    }
    assert_eq!(node.runs_before(), Vec::<Value>::new());
    assert!(!node.agent.log().contains("WARN"), "{}", node.agent.log());
    assert!(!node.status_text().contains("warning"));
}

#[test]
fn before_veer_at_the_same_cgroup_it_is_reported_with_its_name_and_the_way_out() {
    let cgroup = Cgroup::new().unwrap();
    let _lb = load_balancer(&cgroup);
    let mut node = Node::new(&cgroup);
    for (service, backend) in SERVICES {
        let (arrival, ..) = dial(node.enrolled.app(), service, &node.listeners).unwrap();
        assert_eq!((arrival.at, arrival.original), ("outbound", Some(backend)), "as the warning says");
    }

    let path = cgroup.path().to_str().unwrap();
    let found = node.runs_before();
    let named: Vec<_> =
        found.iter().map(|found| [&found["hook"], &found["program"], &found["cgroup"]]).collect();
    let expected = [["connect4", "lb_connect4", path], ["connect6", "lb_connect6", path]];
    assert_eq!(json!(named), json!(expected));
    let log = node.agent.log();
    let text = node.status_text();
    for (found, hook) in found.iter().zip(["connect4", "connect6"]) {
        let (id, program) = (&found["programId"], format!("lb_{hook}"));
        let sentence = format!("program {program} (id {id}, at {path}) runs before veer at {hook}: ");
        for shown in [&log, &text] {
            let line =
                shown.lines().find(|line| line.contains(&sentence)).unwrap_or_else(|| panic!("{shown}"));
            for part in ["backends", "--cgroup", "socketLB.hostNamespaceOnly=true"] {
                assert!(line.contains(part), "{line}");
            }
        }
    }

    // A new agent takes the place of the old one in the order, and says the same.
    node.agent.kill().unwrap();
    node.agent.start_again().unwrap();
    assert_eq!(node.runs_before().len(), 2);
}

#[test]
fn behind_veer_at_the_same_cgroup_it_is_no_more_in_the_way_than_above_it() {
    let cgroup = Cgroup::new().unwrap();
    let mut node = Node::new(&cgroup);
    let lb = load_balancer(&cgroup);
    for (service, backend) in SERVICES {
        assert_eq!(node.app(service).original, Some(service));
        let (arrival, ..) = dial(node.other.app(), service, &node.listeners).unwrap();
        assert_eq!((arrival.at, arrival.local), ("backend", backend));
    }
    assert_eq!(node.runs_before(), Vec::<Value>::new());

    // An upgrade of veer keeps its place, one of the load balancer goes behind.
    node.agent.stop().unwrap();
    node.agent.start_again().unwrap();
    drop(lb);
    let _lb = load_balancer(&cgroup);
    for (service, _) in SERVICES {
        assert_eq!(node.app(service).original, Some(service));
    }
    assert_eq!(node.runs_before(), Vec::<Value>::new());
}
