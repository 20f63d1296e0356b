//! What comes from the node itself, as the kubelet's probes do.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use veer_tests::mesh::{APP, connect, dial, dial_from_world};
use veer_tests::pod::{ROUTER_V4, ROUTER_V6};
use veer_tests::veth::ip;
use veer_tests::wait;

use super::{Scene, exchange};

const LATER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

#[test]
fn a_probe_from_the_node_reaches_the_app_from_the_nodes_own_address() {
    let scene = Scene::new();
    let node = [IpAddr::from(ROUTER_V4), ROUTER_V6.into()];
    for ((own, client), node) in scene.families().into_iter().zip(node) {
        let (arrival, socket, accepted) =
            dial_from_world(&scene.world, (own, APP), &scene.listeners).unwrap();
        assert_eq!((arrival.at, arrival.peer.ip()), ("app", node));
        exchange(&socket, &accepted);
        // And nobody else's does.
        let (arrival, ..) = dial(scene.client.app(), (own, APP), &scene.listeners).unwrap();
        assert_eq!((arrival.at, arrival.peer.ip()), ("inbound", client));
    }
    assert_eq!(scene.counted("from-node"), 2);
}

#[test]
fn an_address_that_the_node_gets_or_loses_counts_from_then_on() {
    let scene = Scene::new();
    let says = |reason: &str| {
        let question = ["explain", "test/pod", "--from", "203.0.113.9", "--port", "8080"];
        let report = scene.agent.json(&question).unwrap();
        report.get("reason").is_some_and(|told| told == reason)
    };
    assert!(says("all-inbound"));
    scene.world.add_address(&format!("{LATER}/32")).unwrap();
    wait::until("the address to count", wait::LIMIT, || says("from-node")).unwrap();
    let socket = scene.world.tcp4().unwrap();
    socket.bind(&SocketAddr::from((LATER, 0)).into()).unwrap();
    connect(&socket, (scene.pod.v4(), APP)).unwrap();
    let (arrival, accepted) = scene.listeners.accept().unwrap();
    assert_eq!((arrival.at, arrival.peer.ip()), ("app", LATER.into()));
    exchange(&socket, &accepted);

    ip(scene.world.netns(), [format!("addr del {LATER}/32 dev lo")]).unwrap();
    wait::until("the address to count no more", wait::LIMIT, || says("all-inbound")).unwrap();
}
