//! What is lost under the real Envoy of a node: pods whose network namespaces go before anybody says so, and Envoy itself.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests panic as tests do")]

use std::fs;
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;

use nix::net::if_::if_nametoindex;
use serde_json::json;
use socket2::{Domain, Type};
use tempfile::TempDir;
use veer_common::cni::{Attachment, Reply, Verb};
use veer_tests::envoy::{Envoy, Sidecar};
use veer_tests::launch::Identity;
use veer_tests::node_proxy::NodeProxy;
use veer_tests::pod::TestPod;
use veer_tests::proxied_node::ProxiedNode;
use veer_tests::streams::{self, BYTES, Stream};
use veer_tests::{scratch, wait};

/// A port whose connections go past the proxy.
const EXCLUDED: u16 = 9001;

/// What keeps a namespace alive is whoever is in it, and sockets. Its end of a pair of interfaces goes with it, and the
/// world's with that one.
fn wait_for_the_end_of_the_netns(node: &ProxiedNode, interface: &str) {
    let is_there = || node.world.netns().run(|| if_nametoindex(interface).is_ok()).unwrap();
    wait::until(&format!("the netns behind {interface} to go"), wait::LIMIT, || !is_there()).unwrap();
}

/// Envoy's descriptors: sockets, files of namespaces, anything.
fn descriptors(proxy: &NodeProxy) -> usize {
    fs::read_dir(format!("/proc/{}/fd", proxy.process().pid())).unwrap().count()
}

/// Three pods, one of which is lost with a stream open; the others' streams go on. `tell` is who says that it has gone.
fn a_netns_goes_first(node: &ProxiedNode, tell: impl Fn(&ProxiedNode, &Attachment)) {
    let (a, b) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    let to = SocketAddr::from((b.v4(), BYTES));
    let listener = streams::listen(&b, BYTES).unwrap();
    let mut stream = Stream::open(&a, &listener, to).unwrap();
    stream.exchange().unwrap();
    let before = descriptors(&node.proxy);

    for number in 4..7 {
        let lost = node.pod("lost").unwrap();
        let attachment = lost.attachment();
        // What a pod has open through Envoy, in each direction, when it is ended.
        let out = Stream::open(&lost, &listener, to).unwrap();
        let of_lost = streams::listen(&lost, BYTES).unwrap();
        let into = Stream::open(&a, &of_lost, (lost.v4(), BYTES).into()).unwrap();
        let world = Stream::from_world(&node.world, &of_lost, (lost.v4(), BYTES).into()).unwrap();
        assert!(descriptors(&node.proxy) > before);
        node.agent.remove_manifest(&lost.manifest()).unwrap();
        drop((out, into.server, world.server, of_lost, lost));
        assert!(!fs::exists(&attachment.netns).unwrap());

        tell(node, &attachment);
        let lists = || node.proxy.admin("/listeners").unwrap().contains("test/lost");
        wait::until("Envoy to have no listener of the pod", wait::LIMIT, || !lists()).unwrap();
        wait_for_the_end_of_the_netns(node, &format!("pod{number}"));
        stream.exchange().unwrap();
        Stream::open(&a, &listener, to).unwrap().exchange().unwrap();
        assert_eq!(node.agent.json(&["status"]).unwrap()["agent"]["nodeProxy"]["served"], json!(2));
    }
    // Connections that the test has ended are in there as well, for as long as Envoy takes to notice.
    wait::until("Envoy to have let go of everything", wait::LIMIT, || descriptors(&node.proxy) <= before)
        .unwrap_or_else(|error| panic!("{error}: {} of {before} before", descriptors(&node.proxy)));
    let new = node.pod("new").unwrap();
    Stream::open(&new, &listener, to).unwrap().exchange().unwrap();
}

#[test]
fn a_netns_that_is_gone_before_its_del_is_let_go_by_envoy_and_harms_no_other_pod() {
    let node = ProxiedNode::start().unwrap();
    a_netns_goes_first(&node, |node, attachment| {
        assert_eq!(node.agent.ask(Verb::Del(attachment.clone())).unwrap(), Reply::Done);
    });
}

#[test]
fn a_netns_that_is_gone_without_a_del_is_let_go_by_envoy_after_the_next_look_at_everything() {
    let node = ProxiedNode::start_with(&["--reconcile-interval=1"]).unwrap();
    a_netns_goes_first(&node, |_node, _attachment| {});
}

fn sidecar(pod: &TestPod, directory: &TempDir) -> Envoy {
    let launch = pod.launch(Identity::proxy());
    let directory = directory.path();
    Sidecar { netns: pod.netns(), launch, directory, http_ports: &[], workers: 1 }.start().unwrap()
}

#[test]
fn an_envoy_that_is_killed_takes_no_stream_with_it_that_does_not_go_through_it() {
    let mut node = ProxiedNode::start().unwrap();
    let (a, b) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    // One with a sidecar of its own, one that is in no mesh, and one of the node's Envoy with a port that goes past it.
    let meshed = TestPod::new(&node.world, &node.cgroup, "meshed").unwrap();
    node.agent.enrol_as(&meshed, &meshed.manifest()).unwrap();
    let directory = scratch::directory().unwrap();
    let _sidecar = sidecar(&meshed, &directory);
    let plain = TestPod::new(&node.world, &node.cgroup, "plain").unwrap();
    let excludes = TestPod::new(&node.world, &node.cgroup, "excludes").unwrap();
    let ports = EXCLUDED.to_string();
    let manifest = excludes.manifest().with_node_proxy().with_traffic("excludeOutboundPorts", &ports);
    node.agent.enrol_as(&excludes, &manifest.with_traffic("excludeInboundPorts", &ports)).unwrap();

    let of_plain = [BYTES, EXCLUDED].map(|port| streams::listen(&plain, port).unwrap());
    let of_meshed = streams::listen(&meshed, BYTES).unwrap();
    let of_excludes = streams::listen(&excludes, EXCLUDED).unwrap();
    let (to_plain, to_meshed) = ((plain.v4(), BYTES).into(), (meshed.v4(), BYTES).into());
    let mut untouched = [
        ("out of a sidecar", Stream::open(&meshed, &of_plain[0], to_plain)),
        ("into a sidecar", Stream::open(&plain, &of_meshed, to_meshed)),
        ("into a sidecar, from the world", Stream::from_world(&node.world, &of_meshed, to_meshed)),
        ("past Envoy", Stream::open(&excludes, &of_plain[1], (plain.v4(), EXCLUDED).into())),
        ("past Envoy, inbound", Stream::open(&plain, &of_excludes, (excludes.v4(), EXCLUDED).into())),
        ("of no mesh", Stream::from_world(&node.world, &of_plain[0], to_plain)),
    ]
    .map(|(what, stream)| (what, stream.unwrap_or_else(|error| panic!("{what}: {error:#}"))));
    let of_b = streams::listen(&b, BYTES).unwrap();
    let through = Stream::open(&a, &of_b, (b.v4(), BYTES).into()).unwrap();

    node.proxy.process_mut().kill().unwrap();
    // What goes through it ends with it, at both ends, and does not hang.
    for mut end in [through.client, through.server] {
        assert!(
            end.read(&mut [0]).map_or_else(|error| error.kind() == ErrorKind::ConnectionReset, |n| n == 0)
        );
    }
    let refused = |pod: &TestPod, to: SocketAddr| {
        let error =
            pod.app().socket(Domain::IPV4, Type::STREAM, None).unwrap().connect(&to.into()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{} to {to}", pod.name());
    };
    refused(&a, to_plain);
    refused(&plain, (b.v4(), BYTES).into());
    for (what, stream) in &mut untouched {
        stream.exchange().unwrap_or_else(|error| panic!("{what}: {error:#}"));
    }
    // New ones of theirs come to be as well.
    Stream::open(&meshed, &of_plain[0], to_plain).unwrap().exchange().unwrap();
    Stream::open(&plain, &of_meshed, to_meshed).unwrap().exchange().unwrap();
    Stream::open(&excludes, &of_plain[1], (plain.v4(), EXCLUDED).into()).unwrap().exchange().unwrap();

    node.start_proxy().unwrap();
    wait::until("the pods to be served again", wait::LIMIT, || {
        node.agent.json(&["status"]).unwrap()["agent"]["nodeProxy"]["served"] == json!(3)
    })
    .unwrap();
    Stream::open(&a, &of_b, (b.v4(), BYTES).into()).unwrap().exchange().unwrap();
    for (what, stream) in &mut untouched {
        stream.exchange().unwrap_or_else(|error| panic!("{what}: {error:#}"));
    }
}
