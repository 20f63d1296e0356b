//! Excluded interfaces, next to istio-init's rules on a pod of the same make: every connection must end where
//! it ends there.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::Value;
use socket2::Socket;
use veer_common::maps::name;
use veer_tests::backend::{Backend, Kept};
use veer_tests::istio_init;
use veer_tests::mesh::{
    APP, INBOUND, Listeners, Mesh, OUTBOUND, connect, dial, dial_from_world, dual_stack, tcp,
};
use veer_tests::pinned::Counts;
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, ROUTER_V4, ROUTER_V6, TestPod, World};
use veer_tests::socket_maker::Maker;
use veer_tests::veth::ip;
use veer_tests::wait;

use crate::{SECOND, add_second_interface, listeners, wait_ends_at};

/// The world's addresses on the second network, and others that the pod reaches by it, or in spite of it not.
const NEIGHBOUR: [&str; 2] = ["10.88.0.1", "fd88::1"];
const BEHIND: [&str; 2] = ["203.0.113.1", "2001:db8:113::1"];
/// In the same network, with a longer route that leads out of eth0.
const BESIDE: [&str; 2] = ["203.0.113.129", "2001:db8:113:8000::1"];

/// A pod with a second interface and routes.
struct Scene {
    mesh: Mesh,
    listeners: Listeners,
}

/// The addresses of one family.
struct Family {
    /// The pod's, on each of its interfaces.
    own: [IpAddr; 2],
    /// The world's, reached by the one or the other.
    outside: [IpAddr; 4],
    localhost: IpAddr,
}

/// Where a connection ended, and what the proxy knows of where it was dialled.
#[derive(PartialEq, Eq)]
struct End {
    at: &'static str,
    original: Option<SocketAddr>,
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proxy = self.original.map_or_else(String::new, |original| format!(" (for {original})"));
        write!(f, "{}{proxy}", self.at)
    }
}

impl Scene {
    fn new() -> Self {
        let mesh = Mesh::not_enrolled().unwrap();
        add_second_interface(&mesh.world, &mesh.pod);
        let listeners = all_listeners(&mesh.world, &mesh.pod);
        add_routes(&mesh.pod);
        // By the second network to the pod's first address, for sockets that are tied to it.
        ip(
            mesh.world.netns(),
            [
                "route add 10.77.0.0/24 via 10.88.0.2 dev second metric 4096",
                "route add fd77::/64 via fd88::2 dev second metric 4096",
            ],
        )
        .unwrap();
        Self { mesh, listeners }
    }

    fn by_istio(excluded: &str) -> Self {
        let scene = Self::new();
        istio_init::apply_with(scene.mesh.pod.netns(), ["--dual-stack", "-c", excluded]).unwrap();
        scene
    }

    fn by_veer(excluded: &str) -> Self {
        let scene = Self::new();
        let manifest = dual_stack(&scene.mesh.pod).with_traffic("excludeInterfaces", excluded);
        scene.mesh.agent.enrol_as(&scene.mesh.pod, &manifest).unwrap();
        scene
    }

    /// Every connection of interest, and where it ended.
    fn ends(&self, excluded: &str) -> Vec<(String, End)> {
        self.families().iter().flat_map(|family| self.ends_of(family, excluded)).collect()
    }

    fn families(&self) -> [Family; 2] {
        let pod = &self.mesh.pod;
        let [[neighbour, neighbour_v6], [behind, behind_v6], [beside, beside_v6]] =
            [NEIGHBOUR, BEHIND, BESIDE].map(|both| both.map(|text| text.parse::<IpAddr>().unwrap()));
        let [second, second_v6] = SECOND.map(|own| own.ip());
        [
            Family {
                own: [pod.v4().into(), second],
                outside: [neighbour, behind, beside, REMOTE_V4.into()],
                localhost: Ipv4Addr::LOCALHOST.into(),
            },
            Family {
                own: [pod.v6().into(), second_v6],
                outside: [neighbour_v6, behind_v6, beside_v6, REMOTE_V6.into()],
                localhost: Ipv6Addr::LOCALHOST.into(),
            },
        ]
    }

    fn ends_of(&self, family: &Family, excluded: &str) -> Vec<(String, End)> {
        let mut ends = Vec::new();
        let (pod, world) = (&self.mesh.pod, &self.mesh.world);
        for port in [APP, INBOUND, OUTBOUND] {
            for to in family.own {
                let (arrival, ..) = dial_from_world(world, (to, port), &self.listeners).unwrap();
                ends.push((format!("world -> {to}:{port}"), end(&arrival)));
            }
        }
        let [first, _] = family.own;
        let by_second = self.dialled_by_second((first, APP).into());
        ends.push((format!("world -> {first}:{APP} by net1"), by_second));
        for (who, maker) in [("app", pod.app()), ("proxy", pod.proxy()), ("root", pod.root())] {
            for to in family.outside {
                ends.push((format!("{who} -> {to}"), self.dialled(maker, (to, 80).into(), None)));
                if excluded == "lo" {
                    continue;
                }
                let ended = self.dialled(maker, (to, 80).into(), Some(excluded));
                ends.push((format!("{who} tied to {excluded} -> {to}"), ended));
            }
            for to in family.own.into_iter().chain([family.localhost]) {
                ends.push((format!("{who} -> {to}"), self.dialled(maker, (to, APP).into(), None)));
            }
        }
        ends
    }

    fn dialled(&self, maker: &Maker, to: SocketAddr, device: Option<&str>) -> End {
        let socket = tcp(maker, to).unwrap();
        if let Some(device) = device {
            socket.bind_device(Some(device.as_bytes())).unwrap();
        }
        self.ended(&socket, to)
    }

    fn dialled_by_second(&self, to: SocketAddr) -> End {
        let domain = socket2::Domain::for_address(to);
        let socket =
            self.mesh.world.socket(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP)).unwrap();
        socket.bind_device(Some(b"second")).unwrap();
        self.ended(&socket, to)
    }

    fn ended(&self, socket: &Socket, to: SocketAddr) -> End {
        connect(socket, to).unwrap_or_else(|error| panic!("dial {to}: {error}"));
        end(&self.listeners.accept().unwrap().0)
    }
}

/// What is not at the proxy has no original destination, or what conntrack has for one.
fn end(arrival: &veer_tests::mesh::Arrival) -> End {
    let at_proxy = ["outbound", "inbound"].contains(&arrival.at);
    // Dialled to the proxy's own port, it was not redirected, and neither says anything of interest.
    End { at: arrival.at, original: arrival.original.filter(|_| at_proxy) }
}

/// The proxy, the app, and servers on everything of the world's.
fn all_listeners(world: &World, pod: &TestPod) -> Listeners {
    let mut listeners = listeners(pod);
    for lengths in [BEHIND, BESIDE] {
        for (address, length) in lengths.into_iter().zip([32, 128]) {
            world.add_address(&format!("{address}/{length}")).unwrap();
        }
    }
    let remote = [REMOTE_V4.to_string(), REMOTE_V6.to_string()];
    let all = NEIGHBOUR.into_iter().chain(BEHIND).chain(BESIDE).chain(remote.iter().map(String::as_str));
    for address in all {
        let at = SocketAddr::new(address.parse().unwrap(), 80);
        listeners.add_in_world("outside", world, at).unwrap();
    }
    listeners
}

fn add_routes(pod: &TestPod) {
    ip(
        pod.netns(),
        [
            "route add 203.0.113.0/24 via 10.88.0.1 dev net1".to_owned(),
            "route add 2001:db8:113::/48 via fd88::1 dev net1".to_owned(),
            format!("route add 203.0.113.128/25 via {ROUTER_V4} dev eth0"),
            format!("route add 2001:db8:113:8000::/49 via {ROUTER_V6} dev eth0"),
            // For sockets that are tied to the interface.
            "route add default via 10.88.0.1 dev net1 metric 4096".to_owned(),
            "route add default via fd88::1 dev net1 metric 4096".to_owned(),
        ],
    )
    .unwrap();
}

/// Runs all connections by both, and wants them to end alike.
#[track_caller]
fn agree(excluded: &str) -> Scene {
    let istio = Scene::by_istio(excluded).ends(excluded);
    let scene = Scene::by_veer(excluded);
    let veer = scene.ends(excluded);
    assert_eq!(istio.len(), veer.len());
    for ((what, istio), (_, veer)) in istio.iter().zip(&veer) {
        assert_eq!(veer, istio, "{what}, with {excluded} excluded");
    }
    // For each family 7 from the world, and of each of three makers 7, and 4 more by the device.
    assert_eq!(veer.len(), if excluded == "lo" { 56 } else { 80 });
    scene
}

#[test]
fn what_arrives_on_or_leaves_by_an_excluded_interface_ends_where_istio_init_lets_it_end() {
    let scene = agree("net1");
    let counted = |reason| scene.mesh.counter("reasons", reason).unwrap();
    // For each family 4 connections to the app and the proxy's ports on net1's address or by net1; and of each
    // of three makers 2 by their routes and 4 by their device.
    assert_eq!(counted("excluded-interface-inbound"), 8);
    assert_eq!(counted("excluded-interface"), 36);
    assert_eq!(counted("rerouted-interface"), 0);
}

#[test]
fn the_main_interface_may_be_excluded() {
    agree("eth0");
}

/// What the proxy dials of its own pod is not captured then.
#[test]
fn lo_may_be_excluded() {
    agree("lo");
}

/// With istio-init's rules it hangs: what is sent to 127.0.0.1 does not come back to a socket that is tied to
/// another interface.
#[test]
fn a_socket_that_is_tied_to_another_interface_is_captured_whatever_the_routes_say() {
    let scene = Scene::by_veer("net1");
    for to in NEIGHBOUR.into_iter().chain(BEHIND).map(|to| SocketAddr::new(to.parse().unwrap(), 80)) {
        let ended = scene.dialled(scene.mesh.pod.app(), to, Some("eth0"));
        assert_eq!(ended, End { at: "outbound", original: Some(to) });
    }
}

#[test]
fn an_interface_that_appears_later_is_excluded_from_then_on_whatever_becomes_of_it() {
    let mesh = Mesh::with(|manifest| manifest.with_traffic("excludeInterfaces", "net1")).unwrap();
    let listeners = all_listeners_late(&mesh);
    let before = |to: SocketAddr| dial(mesh.pod.app(), to, &listeners).unwrap().0.at;
    let behind = BEHIND.map(|address| SocketAddr::new(address.parse().unwrap(), 80));
    assert_eq!(behind.map(before), ["outbound"; 2]);

    // It appears.
    add_second_interface(&mesh.world, &mesh.pod);
    add_routes(&mesh.pod);
    for to in behind {
        wait_ends_at(mesh.pod.app(), to, &listeners, "outside");
    }
    arrives_by_second(&mesh, &listeners, "app");

    // It gets another name, and its old one back.
    ip(mesh.pod.netns(), ["link set net1 down", "link set net1 name other", "link set other up"]).unwrap();
    add_routes_of("other", &mesh.pod);
    for to in behind {
        wait_ends_at(mesh.pod.app(), to, &listeners, "outbound");
    }
    arrives_by_second(&mesh, &listeners, "inbound");
    ip(mesh.pod.netns(), ["link set other down", "link set other name net1", "link set net1 up"]).unwrap();
    add_routes_of("net1", &mesh.pod);
    for to in behind {
        wait_ends_at(mesh.pod.app(), to, &listeners, "outside");
    }
    arrives_by_second(&mesh, &listeners, "app");

    // It goes down, and its routes with it; it goes wholly, and comes back with another index.
    ip(mesh.pod.netns(), ["link set net1 down"]).unwrap();
    for to in behind {
        wait_ends_at(mesh.pod.app(), to, &listeners, "outbound");
    }
    ip(mesh.pod.netns(), ["link delete net1"]).unwrap();
    add_second_interface(&mesh.world, &mesh.pod);
    add_routes_of("net1", &mesh.pod);
    for to in behind {
        wait_ends_at(mesh.pod.app(), to, &listeners, "outside");
    }
    arrives_by_second(&mesh, &listeners, "app");
}

#[test]
fn a_route_that_comes_or_goes_is_followed() {
    let mesh = Mesh::with(|manifest| manifest.with_traffic("excludeInterfaces", "net1")).unwrap();
    let listeners = all_listeners_late(&mesh);
    add_second_interface(&mesh.world, &mesh.pod);
    for (to, via) in BEHIND.into_iter().zip(NEIGHBOUR) {
        let to = SocketAddr::new(to.parse().unwrap(), 80);
        wait_ends_at(mesh.pod.app(), to, &listeners, "outbound");
        ip(mesh.pod.netns(), [format!("route add {} via {via} dev net1", to.ip())]).unwrap();
        wait_ends_at(mesh.pod.app(), to, &listeners, "outside");
        ip(mesh.pod.netns(), [format!("route delete {} via {via} dev net1", to.ip())]).unwrap();
        wait_ends_at(mesh.pod.app(), to, &listeners, "outbound");
    }
}

#[test]
fn what_changed_while_no_agent_was_there_holds_when_the_next_one_is_and_goes_with_the_pod() {
    let mut mesh = Mesh::with(|manifest| manifest.with_traffic("excludeInterfaces", "net1")).unwrap();
    let listeners = all_listeners_late(&mesh);
    mesh.agent.kill().unwrap();
    add_second_interface(&mesh.world, &mesh.pod);
    add_routes(&mesh.pod);
    mesh.agent.start_again().unwrap();
    for to in BEHIND.map(|address| SocketAddr::new(address.parse().unwrap(), 80)) {
        // At once: it looked before it was ready.
        assert_eq!(dial(mesh.pod.app(), to, &listeners).unwrap().0.at, "outside");
    }
    arrives_by_second(&mesh, &listeners, "app");
    let backend = backend(&mesh);
    let kept = Kept::by(&mesh.agent, backend);
    let of_interfaces = match backend {
        Backend::Ebpf => name::INTERFACES,
        Backend::Nftables => "records",
    };
    assert_eq!(kept.counts().unwrap().get(of_interfaces), Some(&1));
    mesh.agent.unenrol(&mesh.pod).unwrap();
    assert_eq!(kept.counts().unwrap(), Counts::new());
}

/// What redirects the pod: before Linux 5.17, no programs can.
fn backend(mesh: &Mesh) -> Backend {
    let pod = mesh.agent.json(&["pods", "test/pod"]).unwrap();
    let name = pod.get("backend").and_then(Value::as_str).unwrap();
    [Backend::Ebpf, Backend::Nftables].into_iter().find(|backend| backend.name() == name).unwrap()
}

#[test]
fn a_second_add_with_other_interfaces_takes_effect_at_once() {
    let scene = Scene::by_veer("net1");
    let to = SocketAddr::new(BEHIND[0].parse().unwrap(), 80);
    let pod = &scene.mesh.pod;
    assert_eq!(scene.dialled(pod.app(), to, None).at, "outside");
    scene.mesh.agent.enrol_as(pod, &dual_stack(pod)).unwrap();
    assert_eq!(scene.dialled(pod.app(), to, None).at, "outbound");
    let own = SECOND[0];
    assert_eq!(dial_from_world(&scene.mesh.world, own, &scene.listeners).unwrap().0.at, "inbound");
    let again = dual_stack(pod).with_traffic("excludeInterfaces", "net9,net1");
    scene.mesh.agent.enrol_as(pod, &again).unwrap();
    assert_eq!(scene.dialled(pod.app(), to, None).at, "outside");
    assert_eq!(dial_from_world(&scene.mesh.world, own, &scene.listeners).unwrap().0.at, "app");
}

/// As [`all_listeners`], before there is a second network.
fn all_listeners_late(mesh: &Mesh) -> Listeners {
    for address in ["10.88.0.1/32", "fd88::1/128"] {
        mesh.world.add_address(address).unwrap();
    }
    all_listeners(&mesh.world, &mesh.pod)
}

/// IPv6 addresses and all routes go when an interface goes down.
fn add_routes_of(interface: &str, pod: &TestPod) {
    let [_, own] = SECOND;
    ip(
        pod.netns(),
        [
            format!("address replace {}/64 dev {interface} nodad", own.ip()),
            format!("route add 203.0.113.0/24 via 10.88.0.1 dev {interface}"),
            format!("route add 2001:db8:113::/48 via fd88::1 dev {interface}"),
        ],
    )
    .unwrap();
}

/// Waits until what arrives on the second interface ends there.
#[track_caller]
fn arrives_by_second(mesh: &Mesh, listeners: &Listeners, wanted: &str) {
    for own in SECOND {
        let outcome = wait::until(&format!("{own} to end at {wanted}"), wait::LIMIT, || {
            dial_from_world(&mesh.world, own, listeners).unwrap().0.at == wanted
        });
        outcome.unwrap();
    }
}
