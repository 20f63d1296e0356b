//! What the app dials, and what is dialled at the pod.

use std::net::{IpAddr, SocketAddr};

use veer_tests::ambient::HBONE;
use veer_tests::manifest::Manifest;
use veer_tests::mesh::{APP, INBOUND, OUTBOUND, connect, dial};
use veer_tests::pod::{REMOTE_V4, REMOTE_V6};

use super::{REMOTE, Scene, exchange, localhost};

const REMOTES: [(IpAddr, u16); 2] = [(IpAddr::V4(REMOTE_V4), REMOTE), (IpAddr::V6(REMOTE_V6), REMOTE)];

#[test]
fn what_leaves_the_pod_is_ztunnels_whoever_dials() {
    let scene = Scene::new();
    for ((own, _), to) in scene.families().into_iter().zip(REMOTES.map(SocketAddr::from)) {
        for maker in [scene.pod.app(), scene.pod.root(), scene.pod.proxy()] {
            let (arrival, socket, accepted) = dial(maker, to, &scene.listeners).unwrap();
            assert_eq!((arrival.at, arrival.original, arrival.peer.ip()), ("outbound", Some(to), own));
            assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(to));
            exchange(&socket, &accepted);
        }
    }
    assert_eq!(scene.counted("all-outbound"), 6);
    scene.nothing_on_its_way();
}

#[test]
fn what_ztunnel_dials_leaves_the_pod_from_its_address() {
    let scene = Scene::new();
    for ((own, _), to) in scene.families().into_iter().zip(REMOTES.map(SocketAddr::from)) {
        // Also bound to the pod's own address, as ztunnel does where it keeps the source of what the app dials.
        for bound in [None, Some(own)] {
            let socket =
                bound.map_or_else(|| scene.ztunnel.tcp(to), |own| scene.ztunnel.as_client(own)).unwrap();
            connect(&socket, to).unwrap();
            let (arrival, accepted) = scene.listeners.accept().unwrap();
            assert_eq!((arrival.at, arrival.peer.ip()), ("remote", own), "{bound:?}");
            exchange(&socket, &accepted);
        }
    }
    assert_eq!(scene.counted("proxy-mark"), 4);
}

#[test]
fn what_stays_in_the_pod_is_nobodys_else() {
    let scene = Scene::new();
    for (index, (own, _)) in scene.families().into_iter().enumerate() {
        for to in [(own, APP).into(), localhost(index == 1, APP)] {
            let (arrival, socket, accepted) = dial(scene.pod.app(), to, &scene.listeners).unwrap();
            assert_eq!((arrival.at, arrival.peer.ip()), ("app", to.ip()));
            exchange(&socket, &accepted);
            // ztunnel without a client: where it is its app's client itself.
            let socket = scene.ztunnel.tcp(to).unwrap();
            connect(&socket, to).unwrap();
            let (arrival, accepted) = scene.listeners.accept().unwrap();
            assert_eq!((arrival.at, arrival.peer.ip()), ("app", to.ip()));
            exchange(&socket, &accepted);
        }
    }
}

#[test]
fn what_arrives_is_ztunnels_as_it_was_dialled_but_for_hbone() {
    let scene = Scene::new();
    for (own, client) in scene.families() {
        // Also where a sidecar would let it through, and ztunnel's own other ports.
        for port in [APP, 22, 15020, 15021, 15090, OUTBOUND, INBOUND, 15053] {
            let to = SocketAddr::new(own, port);
            let (arrival, socket, accepted) = dial(scene.client.app(), to, &scene.listeners).unwrap();
            let seen = (arrival.at, arrival.original, arrival.local, arrival.peer.ip());
            assert_eq!(seen, ("inbound", Some(to), to, client));
            exchange(&socket, &accepted);
        }
        let to = SocketAddr::new(own, HBONE);
        let (arrival, socket, accepted) = dial(scene.client.app(), to, &scene.listeners).unwrap();
        assert_eq!((arrival.at, arrival.local, arrival.peer.ip()), ("hbone", to, client));
        exchange(&socket, &accepted);
    }
    assert_eq!((scene.counted("all-inbound"), scene.counted("tunnel-port")), (16, 2));
}

#[test]
fn a_pod_may_take_what_arrives_by_itself() {
    let bypass = |pod: Manifest| pod.with_annotation("ambient.istio.io/bypass-inbound-capture", "true");
    let scene = Scene::with(bypass, &[]);
    for (own, client) in scene.families() {
        let (arrival, socket, accepted) = dial(scene.client.app(), (own, APP), &scene.listeners).unwrap();
        assert_eq!((arrival.at, arrival.peer.ip()), ("app", client));
        exchange(&socket, &accepted);
    }
    for to in REMOTES.map(SocketAddr::from) {
        assert_eq!(dial(scene.pod.app(), to, &scene.listeners).unwrap().0.at, "outbound");
    }
}

#[test]
fn a_sidecars_annotations_mean_nothing() {
    let named = |pod: Manifest| {
        pod.with_traffic("excludeOutboundPorts", "80").with_traffic("excludeInboundPorts", "8080")
    };
    let scene = Scene::with(named, &[]);
    for ((own, _), to) in scene.families().into_iter().zip(REMOTES.map(SocketAddr::from)) {
        assert_eq!(dial(scene.pod.app(), to, &scene.listeners).unwrap().0.at, "outbound");
        assert_eq!(dial(scene.client.app(), (own, APP), &scene.listeners).unwrap().0.at, "inbound");
    }
}
