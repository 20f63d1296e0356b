//! In and out of the node's Envoy.

use std::net::SocketAddr;

use serde_json::{Value, json};
use veer_tests::launch::Identity;
use veer_tests::mesh::APP;
use veer_tests::streams::{self, BYTES, Stream};
use veer_tests::{load, wait};

use super::{Dialler, Node, PASS, ask};

#[test]
fn a_pod_that_comes_under_the_nodes_proxy_and_leaves_it_twice_loses_no_request() {
    let node = Node::start();
    let (moving, other) = (&node.moving, &node.other);
    let _apps = [node.app(moving, "moving"), node.app(other, "other")];
    node.agent.write_manifest(&node.label("none")).unwrap();
    let app = || moving.maker(Identity::app()).unwrap();
    let diallers = [
        Dialler::Out(app(), (other.v4(), APP).into()),
        Dialler::Out(app(), (other.v6(), APP).into()),
        Dialler::In(&node.world, (moving.v4(), APP).into()),
        Dialler::In(&node.world, (moving.v6(), APP).into()),
    ];
    load::during(
        &diallers,
        |dialler, _turn| ask(dialler),
        |progress| {
            progress.wait_for(100).unwrap();
            for turn in 1..=2 {
                node.moves_in();
                progress.wait_for(100).unwrap();
                // It goes through Envoy, in both directions.
                for direction in ["outbound", "inbound"] {
                    let is_it = |entry: &Value| entry["direction"] == direction && entry["status"] == 200;
                    node.proxy.entry(&format!("{direction} of turn {turn}"), is_it).unwrap();
                }
                let counted = node.pod().unwrap()["totals"].clone();
                assert!(counted["toOutbound"].as_u64() > Some(0) && counted["toInbound"].as_u64() > Some(0));
                node.moves_out();
                progress.wait_for(100).unwrap();
            }
        },
    )
    .unwrap();
}

#[test]
fn a_pod_moves_with_the_label_of_its_namespace_and_loses_no_request() {
    let node = Node::start();
    let (moving, other) = (&node.moving, &node.other);
    let _apps = [node.app(moving, "moving"), node.app(other, "other")];
    node.agent.write_manifest(&moving.manifest().with_uid(&node.uid).without_sidecar()).unwrap();
    let diallers = [
        Dialler::Out(moving.maker(Identity::app()).unwrap(), (other.v4(), APP).into()),
        Dialler::In(&node.world, (moving.v6(), APP).into()),
    ];
    load::during(
        &diallers,
        |dialler, _turn| ask(dialler),
        |progress| {
            progress.wait_for(50).unwrap();
            node.label_namespace("node");
            node.wait_in();
            progress.wait_for(50).unwrap();
            for direction in ["outbound", "inbound"] {
                let is_it = |entry: &Value| entry["direction"] == direction && entry["status"] == 200;
                node.proxy.entry(direction, is_it).unwrap();
            }
            node.label_namespace("none");
            node.wait_out();
            progress.wait_for(50).unwrap();
        },
    )
    .unwrap();
}

#[test]
fn connections_that_are_open_stay_what_they_are_when_their_pod_moves() {
    let node = Node::start();
    let listener = streams::listen(&node.moving, BYTES).unwrap();
    let connect =
        || Stream::from_world(&node.world, &listener, SocketAddr::from((node.moving.v4(), BYTES))).unwrap();
    node.agent.write_manifest(&node.label("none")).unwrap();
    let mut direct = connect();
    node.moves_in();
    direct.exchange().unwrap();
    let mut proxied = connect();
    let passthrough =
        |stream: &Stream| stream.server.peer_addr().unwrap().as_socket().unwrap().ip().is_loopback();
    assert!(!passthrough(&direct) && passthrough(&proxied));
    proxied.exchange().unwrap();
    node.moves_out();
    direct.exchange().unwrap();
    let mut again = connect();
    assert!(!passthrough(&again));
    again.exchange().unwrap();
}

#[test]
fn an_agent_that_was_not_there_when_a_label_changed_moves_the_pod_when_it_starts() {
    let mut node = Node::start();
    node.agent.write_manifest(&node.label("node")).unwrap();
    node.wait_in();
    node.agent.kill().unwrap();
    node.agent.write_manifest(&node.label("none")).unwrap();
    node.agent.start_again().unwrap();
    wait::until("the pod to be out of the mesh", PASS, || node.pod().is_none()).unwrap();
    assert_eq!(node.agent.json(&["status"]).unwrap()["agent"]["unrepaired"], json!([]));
}
