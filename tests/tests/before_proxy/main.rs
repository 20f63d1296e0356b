//! Before the proxy listens, on a node whose agent has `--before-proxy=direct`: what an init container dials goes past
//! the mesh, and from the first listener on nothing does any more, whatever ends or starts anew.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests panic as tests do")]

mod agent;
mod told;
mod who;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Domain, Protocol, Type};
use veer_tests::dns::{self, DNS, PROXY_DNS, Responder};
use veer_tests::launch::Launch;
use veer_tests::manifest::Manifest;
use veer_tests::mesh::{
    APP, Listeners, Mesh, OUTBOUND, PATIENCE, connect, dial, dial_from_world, dual_stack, tcp,
};
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, TestPod};
use veer_tests::socket_maker::Maker;
use veer_tests::wait;

const REMOTES: [SocketAddr; 2] =
    [SocketAddr::new(IpAddr::V4(REMOTE_V4), 80), SocketAddr::new(IpAddr::V6(REMOTE_V6), 80)];
const DIRECT: &str = "--before-proxy=direct";

/// A pod that captures DNS, and services out of it: a server and a resolver.
struct Scene {
    outside: Listeners,
    resolver: Responder,
    mesh: Mesh,
}

impl Scene {
    fn new(arguments: &[&str]) -> Self {
        let scene = Self::not_enrolled(arguments);
        scene.mesh.agent.enrol_as(&scene.mesh.pod, &scene.manifest()).unwrap();
        scene
    }

    fn not_enrolled(arguments: &[&str]) -> Self {
        let mesh = Mesh::on_node(Launch::new(), &[&["--backend=ebpf"], arguments].concat()).unwrap();
        let mut outside = Listeners::default();
        for remote in REMOTES {
            outside.add_in_world("outside", &mesh.world, remote).unwrap();
        }
        let resolver = Responder::in_world(&mesh.world, &[REMOTE_V4.into(), REMOTE_V6.into()]).unwrap();
        Self { outside, resolver, mesh }
    }

    fn manifest(&self) -> Manifest {
        dual_stack(&self.mesh.pod).with_proxy_env("ISTIO_META_DNS_CAPTURE", "true")
    }

    fn pod(&self) -> &TestPod {
        &self.mesh.pod
    }

    /// Where what somebody dials ends: with the proxy, whose listeners these are, or outside.
    #[track_caller]
    fn end(&self, maker: &Maker, to: SocketAddr, proxy: &Listeners) -> &'static str {
        connect(&tcp(maker, to).unwrap(), to).unwrap();
        wait::until_some("a connection to arrive", PATIENCE, || {
            let ends = [("proxy", proxy), ("outside", &self.outside)];
            ends.into_iter().find_map(|(end, listeners)| (!listeners.is_idle().unwrap()).then_some(end))
        })
        .unwrap()
    }

    #[track_caller]
    fn is_at(&self, proxy: &Listeners) {
        for maker in [self.pod().app(), self.pod().root()] {
            assert_eq!(REMOTES.map(|to| self.end(maker, to, proxy)), ["proxy", "proxy"]);
        }
    }

    #[track_caller]
    fn is_direct(&self) {
        for maker in [self.pod().app(), self.pod().root()] {
            for to in REMOTES {
                let (arrival, ..) = dial(maker, to, &self.outside).unwrap();
                assert_eq!((arrival.at, arrival.local), ("outside", to));
            }
        }
    }

    /// Whether all that the app dials, and its questions by TCP, is refused as where the proxy does not listen.
    #[track_caller]
    fn is_refused(&self) {
        // A listener that the test has closed may be open for a moment yet: in its maker, or in a child of another
        // test that has not begun its program.
        let listening = |port| self.pod().netns().listening(port).unwrap();
        wait::until("the proxy's listeners to be closed", PATIENCE, || {
            [OUTBOUND, PROXY_DNS].map(listening) == [0, 0]
        })
        .unwrap();
        for maker in [self.pod().app(), self.pod().root()] {
            for to in REMOTES.into_iter().chain([SocketAddr::from((REMOTE_V4, DNS))]) {
                let dialled = connect(&tcp(maker, to).unwrap(), to).map_err(|error| error.kind());
                assert_eq!(dialled, Err(ErrorKind::ConnectionRefused), "{to}");
            }
        }
        assert!(self.outside.is_idle().unwrap());
    }

    /// Who answers the app's questions: a connected socket, one that is not, and TCP.
    fn answering(&self) -> [String; 3] {
        let app = self.pod().app();
        let resolver = SocketAddr::from((REMOTE_V4, DNS));
        let [connected, unconnected] = [udp(app), udp(app)];
        connected.connect(resolver).unwrap();
        connected.send(&dns::question(1)).unwrap();
        unconnected.send_to(&dns::question(2), resolver).unwrap();
        let by_udp = [connected, unconnected].map(|socket| {
            let mut buffer = [0; 512];
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(from, resolver);
            dns::told(&buffer[..length]).unwrap().1
        });
        let [first, second] = by_udp;
        let mut stream = tcp(app, resolver).unwrap();
        connect(&stream, resolver).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        dns::send_framed(&mut stream, &dns::question(3)).unwrap();
        let by_tcp = dns::told(&dns::receive_framed(&mut stream).unwrap()).unwrap().1;
        [first, second, by_tcp].map(|told| told.split(' ').take(2).collect::<Vec<_>>().join(" "))
    }

    /// As `veer pods` tells it; `None` for a pod that has lost its policy.
    fn before_proxy_or_none(&self) -> Option<String> {
        let pod = self.mesh.agent.json(&["pods", "test/pod"]).unwrap();
        pod["policy"]["beforeProxy"].as_str().map(str::to_owned)
    }

    #[track_caller]
    fn before_proxy(&self) -> String {
        self.before_proxy_or_none().unwrap()
    }
}

fn udp(maker: &Maker) -> UdpSocket {
    let socket = maker.socket(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}

const BY_WORLD: [&str; 3] = ["world udp", "world udp", "world tcp"];
const BY_PROXY: [&str; 3] = ["proxy udp", "proxy udp", "proxy tcp"];

#[test]
fn what_an_init_container_dials_is_direct_until_the_proxy_listens_and_never_again() {
    let scene = Scene::new(&[DIRECT]);
    scene.is_direct();
    assert_eq!(scene.answering(), BY_WORLD);
    assert_eq!(scene.mesh.counter("reasons", "before-proxy").unwrap(), 4 + 3);
    assert_eq!(scene.before_proxy(), "direct");

    let dns = Responder::of_proxy(scene.pod()).unwrap();
    let asked = scene.resolver.asked();
    let proxy = scene.mesh.proxy_listeners().unwrap();
    scene.is_at(&proxy);
    assert_eq!(scene.answering(), BY_PROXY);
    assert_eq!((scene.resolver.asked(), scene.before_proxy().as_str()), (asked, "over"));

    // It dies; then it starts anew, as a native sidecar does.
    drop((dns, proxy));
    scene.is_refused();
    scene.is_at(&scene.mesh.proxy_listeners().unwrap());
    assert_eq!(scene.mesh.counter("reasons", "before-proxy").unwrap(), 4 + 3);
}

#[test]
fn by_default_what_comes_before_the_proxy_is_refused() {
    let scene = Scene::new(&[]);
    scene.is_refused();
    assert_eq!(scene.before_proxy(), "refuse");
    scene.is_at(&scene.mesh.proxy_listeners().unwrap());
    assert_eq!(scene.before_proxy(), "refuse");
}

#[test]
fn what_arrives_before_the_proxy_listens_is_refused_all_the_same() {
    let scene = Scene::new(&[DIRECT]);
    let mut app = Listeners::default();
    app.add("app", scene.pod().app(), (scene.pod().v4(), APP)).unwrap();
    let error = dial_from_world(&scene.mesh.world, (scene.pod().v4(), APP), &app).unwrap_err();
    assert_eq!(error.downcast_ref::<std::io::Error>().unwrap().kind(), ErrorKind::ConnectionRefused);
    // Within the pod there is no proxy to be asked.
    assert_eq!(dial(scene.pod().app(), (scene.pod().v4(), APP), &app).unwrap().0.at, "app");
}

#[test]
fn while_the_proxy_begins_to_listen_no_connection_is_refused_and_none_goes_back_to_direct() {
    let scene = Scene::new(&[DIRECT]);
    let socket = scene.pod().proxy().tcp4().unwrap();
    socket.bind(&SocketAddr::from(([0, 0, 0, 0], OUTBOUND)).into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let listens = AtomicBool::new(false);
    let is_direct = AtomicBool::new(false);
    let ends: Vec<&str> = std::thread::scope(|scope| {
        scope.spawn(|| {
            let is_direct = || is_direct.load(Ordering::SeqCst);
            wait::until("a connection that went direct", PATIENCE, is_direct).unwrap();
            socket.listen(1024).unwrap();
            listens.store(true, Ordering::SeqCst);
        });
        let mut ends = Vec::new();
        while !listens.load(Ordering::SeqCst) || ends.last() != Some(&"proxy") {
            connect(&tcp(scene.pod().app(), REMOTES[0]).unwrap(), REMOTES[0]).unwrap();
            let end = wait::until_some("a connection to arrive", PATIENCE, || {
                let outside = !scene.outside.is_idle().unwrap();
                socket.accept().is_ok().then_some("proxy").or_else(|| outside.then_some("outside"))
            });
            ends.push(end.unwrap());
            is_direct.store(true, Ordering::SeqCst);
        }
        ends
    });
    assert!(ends.is_sorted_by_key(|end| *end == "proxy") && ends.contains(&"outside"), "{ends:?}");
}
