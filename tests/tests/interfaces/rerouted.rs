//! A virtual machine in the pod, as KubeVirt has one: behind a bridge, with a network of its own. What it opens is
//! outbound, next to istio-init's rules on a pod of the same make.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use veer_tests::envoy::STATUS;
use veer_tests::istio_init;
use veer_tests::manifest::Manifest;
use veer_tests::mesh::{APP, Arrival, INBOUND, Listeners, Mesh, OUTBOUND, dual_stack};
use veer_tests::netfilter::Netfilter;
use veer_tests::netns::NetNs;
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, TestPod};
use veer_tests::socket_maker::Maker;
use veer_tests::veth::{self, End, ip};

/// The bridge, and the machine behind it.
const BRIDGE: &str = "k6t-eth0";
const REROUTE: &str = "istio.io/reroute-virtual-interfaces";
const GATEWAY: [&str; 2] = ["10.0.2.1", "fd10:0:2::1"];
const MACHINE: [&str; 2] = ["10.0.2.2", "fd10:0:2::2"];
/// Outside, besides the kit's own.
const OTHER: [&str; 2] = ["198.51.100.1", "2002::1"];
/// Where the app, the machine and the services outside listen.
const PORTS: [u16; 7] = [53, 80, 443, APP, 15008, 15020, STATUS];

/// With TPROXY the answers of a machine to what comes from outside are lost, with istio-init's rules as well.
const LOST_AFTER: Duration = Duration::from_secs(1);

/// What a pod's annotations say, and the arguments that the injector makes of them.
struct Policy {
    annotations: &'static [(&'static str, &'static str)],
    arguments: &'static [&'static str],
    tproxy: bool,
}

const PLAIN: Policy = Policy { annotations: &[], arguments: &[], tproxy: false };

/// A pod with a machine in it.
struct Scene {
    /// Who redirects.
    by: &'static str,
    mesh: Mesh,
    machine: NetNs,
    listeners: Listeners,
}

/// Where a connection ended, and who was told what.
#[derive(PartialEq, Eq)]
enum Ended {
    At { at: &'static str, original: Option<SocketAddr>, local: SocketAddr, client: IpAddr },
    Failed(ErrorKind),
}

impl fmt::Debug for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At { at, original, local, client } => {
                write!(f, "{at} at {local} for {original:?} from {client}")
            }
            Self::Failed(kind) => write!(f, "{kind}"),
        }
    }
}

impl Scene {
    /// Nobody redirects yet.
    fn new(by: &'static str, tproxy: bool) -> Self {
        let mesh = Mesh::not_enrolled().unwrap();
        let machine = NetNs::new().unwrap();
        add_machine(&mesh.pod, &machine);
        for (address, length) in OTHER.into_iter().zip([32, 128]) {
            mesh.world.add_address(&format!("{address}/{length}")).unwrap();
        }
        let back = [mesh.pod.v4().to_string(), mesh.pod.v6().to_string()];
        let routes = MACHINE.into_iter().zip(back).map(|(to, via)| format!("route add {to} via {via}"));
        ip(mesh.world.netns(), routes).unwrap();
        let listeners = all_listeners(&mesh, &machine, tproxy);
        Self { by, mesh, machine, listeners }
    }

    fn by_istio(policy: &Policy) -> Self {
        let scene = Self::new("istio", policy.tproxy);
        let arguments = ["--dual-stack", "-k", BRIDGE].into_iter().chain(policy.arguments.iter().copied());
        istio_init::apply_with(scene.mesh.pod.netns(), arguments).unwrap();
        scene
    }

    fn by_veer(policy: &Policy) -> Self {
        let scene = Self::new("veer", policy.tproxy);
        let manifest = policy
            .annotations
            .iter()
            .fold(manifest(&scene.mesh.pod), |manifest, (name, value)| manifest.with_annotation(name, value));
        scene.mesh.agent.enrol_as(&scene.mesh.pod, &manifest).unwrap();
        scene
    }

    /// Every connection of interest, and where it ended.
    fn ends(&self) -> Vec<(String, Ended)> {
        let mut ends = Vec::new();
        let pod = &self.mesh.pod;
        for own in [IpAddr::from(pod.v4()), pod.v6().into()] {
            let remote: IpAddr = if own.is_ipv4() { REMOTE_V4.into() } else { REMOTE_V6.into() };
            let [gateway, machine, other] = [GATEWAY, MACHINE, OTHER].map(|both| of_family(own, both));
            for to in [remote, other, own, gateway] {
                for port in PORTS.into_iter().chain([OUTBOUND, INBOUND]) {
                    let ended = self.from(&self.machine, (to, port).into());
                    ends.push((format!("machine -> {to}:{port}"), ended));
                }
            }
            for port in PORTS {
                let ended = self.from(self.mesh.world.netns(), (machine, port).into());
                ends.push((format!("world -> {machine}:{port}"), ended));
            }
            for (who, maker) in [("app", pod.app()), ("proxy", pod.proxy())] {
                for to in [machine, remote, own, gateway] {
                    ends.push((format!("{who} -> {to}"), self.by(maker, (to, APP).into())));
                }
            }
        }
        ends
    }

    fn from(&self, netns: &NetNs, to: SocketAddr) -> Ended {
        let (domain, protocol) = (Domain::for_address(to), Some(Protocol::TCP));
        self.ended(&netns.run(|| Socket::new(domain, Type::STREAM, protocol)).unwrap().unwrap(), to)
    }

    fn by(&self, maker: &Maker, to: SocketAddr) -> Ended {
        let (domain, protocol) = (Domain::for_address(to), Some(Protocol::TCP));
        self.ended(&maker.socket(domain, Type::STREAM, protocol).unwrap(), to)
    }

    fn ended(&self, socket: &Socket, to: SocketAddr) -> Ended {
        if let Err(error) = socket.connect_timeout(&to.into(), LOST_AFTER) {
            return Ended::Failed(error.kind());
        }
        // `veer pods` asks what listens on 15021 whether it is ready, from within the pod; here that is the app.
        let is_veers = |arrival: &Arrival| {
            (arrival.at, arrival.local.port()) == ("app", STATUS) && arrival.peer.ip().is_loopback()
        };
        let (arrival, _accepted) = loop {
            let accepted = self.listeners.accept().unwrap_or_else(|error| {
                let from = socket.local_addr().ok().and_then(|local| local.as_socket());
                let known = known_of(self.mesh.pod.netns(), from.map_or(0, |from| from.port()));
                panic!("nobody accepts what {from:?} has opened to {to}, by {}: {error:#}\n{known}", self.by)
            });
            if !is_veers(&accepted.0) {
                break accepted;
            }
        };
        let original = arrival.original.filter(|_| ["outbound", "inbound"].contains(&arrival.at));
        Ended::At { at: arrival.at, original, local: arrival.local, client: arrival.peer.ip() }
    }

    /// Where what the machine opens ends.
    fn machines_end(&self) -> &'static str {
        match self.from(&self.machine, (REMOTE_V4, 80).into()) {
            Ended::At { at, .. } => at,
            Ended::Failed(kind) => panic!("it failed: {kind}"),
        }
    }

    fn backend_of(&self, pod: &str) -> String {
        let view = self.mesh.agent.json(&["pods", pod]).unwrap();
        view.get("backend").and_then(Value::as_str).unwrap().to_owned()
    }
}

fn manifest(pod: &TestPod) -> Manifest {
    dual_stack(pod).with_annotation(REROUTE, BRIDGE)
}

fn of_family(like: IpAddr, [v4, v6]: [&str; 2]) -> IpAddr {
    if like.is_ipv4() { v4 } else { v6 }.parse().unwrap()
}

/// What the kernel has in a netns about connections from a port: sockets, entries of conntrack, and what TCP has counted.
fn known_of(netns: &NetNs, port: u16) -> String {
    let (in_hex, in_words) = (format!(":{port:04X} "), format!("port={port} "));
    let read = |name: &str| {
        let path = format!("/proc/thread-self/net/{name}");
        netns.run(|| fs::read_to_string(&path)).unwrap().unwrap_or_else(|error| format!("{in_words}{error}"))
    };
    let mut known = String::new();
    for name in ["tcp", "tcp6", "nf_conntrack"] {
        let text = read(name);
        let about = text.lines().filter(|line| line.contains(&in_hex) || line.contains(&in_words));
        known.extend(about.map(|line| format!("{name}: {line}\n")));
    }
    let counters = netns.tcp_counters().unwrap().into_iter().filter(|(_, count)| *count != 0);
    known.extend(counters.map(|(name, count)| format!("{name}={count} ")));
    known
}

/// The bridge, the machine's network card, and a pod that forwards.
fn add_machine(pod: &TestPod, machine: &NetNs) {
    let inside = pod.netns();
    ip(inside, [format!("link add name {BRIDGE} type bridge")]).unwrap();
    let [v4, v6] = GATEWAY;
    ip(inside, veth::up(BRIDGE, &[&format!("{v4}/24"), &format!("{v6}/64")])).unwrap();
    let [own, own_v6] = MACHINE;
    veth::pair(
        End { netns: inside, name: "tap0", addresses: &[] },
        End { netns: machine, name: "eth0", addresses: &[&format!("{own}/24"), &format!("{own_v6}/64")] },
    )
    .unwrap();
    ip(inside, [format!("link set tap0 master {BRIDGE}")]).unwrap();
    ip(machine, GATEWAY.map(|via| format!("route add default via {via}"))).unwrap();
    for name in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        inside.set_sysctl(name, "1").unwrap();
    }
}

fn all_listeners(mesh: &Mesh, machine: &NetNs, tproxy: bool) -> Listeners {
    let Mesh { pod, world, .. } = mesh;
    let mut listeners = Listeners::default();
    for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
        let domain = Domain::for_address((any, 0).into());
        for port in PORTS {
            listeners.add("app", pod.app(), (any, port)).unwrap();
            listeners.add_in_world("outside", world, (any, port)).unwrap();
            let socket = machine.run(|| Socket::new(domain, Type::STREAM, Some(Protocol::TCP))).unwrap();
            listeners.listen("machine", socket.unwrap(), (any, port).into()).unwrap();
        }
        listeners.add("outbound", pod.proxy(), (any, OUTBOUND)).unwrap();
        let inbound = pod.proxy().socket(domain, Type::STREAM, Some(Protocol::TCP)).unwrap();
        // What iptables' TPROXY asks of a listener; the test has the privilege.
        match any {
            IpAddr::V4(_) => inbound.set_ip_transparent_v4(tproxy).unwrap(),
            IpAddr::V6(_) => inbound.set_ip_transparent_v6(tproxy).unwrap(),
        }
        listeners.listen("inbound", inbound, (any, INBOUND).into()).unwrap();
    }
    listeners
}

/// Runs all connections by both, and wants them to end alike.
#[track_caller]
fn agree(policy: &Policy) -> Scene {
    let istio = Scene::by_istio(policy).ends();
    let scene = Scene::by_veer(policy);
    let veer = scene.ends();
    // For each family 36 of the machine's, 7 to it and 8 of the pod's own.
    assert_eq!((istio.len(), veer.len()), (102, 102));
    for ((what, istio), (_, veer)) in istio.iter().zip(&veer) {
        assert_eq!(veer, istio, "{what}, with {:?}", policy.arguments);
    }
    scene
}

#[test]
fn what_a_virtual_machine_opens_is_outbound() {
    let scene = agree(&PLAIN);
    let to = SocketAddr::from((REMOTE_V4, 80));
    let Ended::At { at, original, client, .. } = scene.from(&scene.machine, to) else { panic!("it failed") };
    let machine: IpAddr = MACHINE[0].parse().unwrap();
    assert_eq!((at, original, client), ("outbound", Some(to), machine));
    // A SYN that is sent again may be counted again.
    let counted = scene.mesh.counter("reasons", "rerouted-interface").unwrap();
    let repeated = scene.machine.tcp_counter("TCPSynRetrans").unwrap();
    assert!((73..=73 + repeated).contains(&counted), "{counted} with {repeated} repeated");
}

#[test]
fn of_what_it_opens_the_included_ranges_are_captured_and_no_other_list_counts() {
    let scene = agree(&Policy {
        annotations: &[
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", "192.0.2.0/24,2001:db8::/32"),
            ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "192.0.2.1/32,2001:db8::1/128"),
            ("traffic.sidecar.istio.io/includeOutboundPorts", "443"),
            ("traffic.sidecar.istio.io/excludeOutboundPorts", "80"),
        ],
        arguments: &[
            "-i",
            "192.0.2.0/24,2001:db8::/32",
            "-x",
            "192.0.2.1/32,2001:db8::1/128",
            "-q",
            "443",
            "-o",
            "80",
        ],
        tproxy: false,
    });
    let counted = |reason| scene.mesh.counter("reasons", reason).unwrap();
    assert_eq!((counted("rerouted-interface"), counted("rerouted-not-included")), (18, 54));
    agree(&Policy {
        annotations: &[("traffic.sidecar.istio.io/includeOutboundIPRanges", "")],
        arguments: &["-i", ""],
        ..PLAIN
    });
}

#[test]
fn an_interface_that_is_excluded_as_well_is_a_virtual_machines() {
    agree(&Policy {
        annotations: &[("traffic.sidecar.istio.io/excludeInterfaces", BRIDGE)],
        arguments: &["-c", BRIDGE],
        ..PLAIN
    });
}

#[test]
fn a_pod_with_tproxy_may_have_one() {
    agree(&Policy {
        annotations: &[("sidecar.istio.io/interceptionMode", "TPROXY")],
        arguments: &["-m", "TPROXY"],
        tproxy: true,
    });
}

#[test]
fn such_a_pod_is_redirected_by_rules_wherever_the_node_has_ebpf_and_its_delete_leaves_none() {
    let mut scene = Scene::by_veer(&PLAIN);
    let other = scene.mesh.another_pod("other").unwrap();
    assert_eq!(["test/pod", "test/other"].map(|pod| scene.backend_of(pod)), ["nftables", "ebpf"]);
    scene.mesh.agent.kill().unwrap();
    assert_eq!(scene.machines_end(), "outbound");
    scene.mesh.agent.start_again().unwrap();
    assert_eq!(["test/pod", "test/other"].map(|pod| scene.backend_of(pod)), ["nftables", "ebpf"]);
    scene.mesh.agent.unenrol(&scene.mesh.pod).unwrap();
    assert_eq!(Netfilter::of(scene.mesh.pod.netns()).unwrap().rules(), 0);
    assert_eq!(scene.machines_end(), "outside");
    assert_eq!(scene.backend_of("test/other"), "ebpf");
    drop(other);
}

#[test]
fn a_machine_that_moves_in_later_is_one_from_then_on() {
    let scene = Scene::by_veer(&PLAIN);
    ip(scene.mesh.pod.netns(), [format!("link set {BRIDGE} down"), format!("link set {BRIDGE} name late")])
        .unwrap();
    let bring_up = |name: &str| {
        let [v4, v6] = GATEWAY;
        ip(
            scene.mesh.pod.netns(),
            [
                format!("link set {name} up"),
                format!("address replace {v4}/24 dev {name}"),
                format!("address replace {v6}/64 dev {name} nodad"),
            ],
        )
        .unwrap();
    };
    bring_up("late");
    // As anything that arrives.
    assert_eq!(scene.machines_end(), "inbound");
    ip(scene.mesh.pod.netns(), ["link set late down".to_owned(), format!("link set late name {BRIDGE}")])
        .unwrap();
    bring_up(BRIDGE);
    assert_eq!(scene.machines_end(), "outbound");
}

#[test]
fn a_pod_that_ebpf_redirects_cannot_ask_for_it_later() {
    let scene = Scene::new("veer", false);
    let pod = &scene.mesh.pod;
    scene.mesh.agent.enrol_as(pod, &dual_stack(pod)).unwrap();
    let refused = scene.mesh.agent.enrol_as(pod, &manifest(pod)).unwrap_err();
    assert!(
        refused.to_string().contains("was enrolled by eBPF before it did: make the pod anew"),
        "{refused}"
    );
    assert_eq!(scene.backend_of("test/pod"), "ebpf");
}

#[test]
fn what_a_machine_opens_is_explained() {
    let scene = Scene::by_veer(&Policy {
        annotations: &[("traffic.sidecar.istio.io/includeOutboundIPRanges", "192.0.2.0/24")],
        ..PLAIN
    });
    for (at, reason, compared) in [
        (
            "192.0.2.1",
            "rerouted-interface",
            "it arrived on k6t-eth0, which is one of k6t-eth0, and 192.0.2.1 is in 192.0.2.0/24",
        ),
        (
            "198.51.100.1",
            "rerouted-not-included",
            "it arrived on k6t-eth0, which is one of k6t-eth0, and 198.51.100.1 is in none of 192.0.2.0/24",
        ),
    ] {
        let flags = ["--from=10.0.2.2", "--at", at, "--port=80", "--interface", BRIDGE];
        let report = scene.mesh.agent.json(&[&["explain", "test/pod"], &flags[..]].concat()).unwrap();
        let field = |name| report.get(name).and_then(Value::as_str);
        assert_eq!((field("reason"), field("compared")), (Some(reason), Some(compared)), "{report}");
        let because = report.pointer("/because/0/text").and_then(Value::as_str);
        assert_eq!(because, Some("annotation istio.io/reroute-virtual-interfaces=\"k6t-eth0\""), "{report}");
    }
}
