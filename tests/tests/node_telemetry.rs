//! What one real Envoy, which serves all pods of a node, counts of each of them.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};

use socket2::{Domain, Socket, Type};
use veer_tests::launch::Identity;
use veer_tests::mesh::APP;
use veer_tests::pod::TestPod;
use veer_tests::prometheus::{self, Sample};
use veer_tests::proxied_node::ProxiedNode;
use veer_tests::{dial, wait};

/// Names of pods have dots as often as those of anything in Kubernetes.
const DOTTED: &str = "cart.v1.2-x";
/// A port of an app that speaks no HTTP.
const BYTES: u16 = 9000;

fn scrape(node: &ProxiedNode) -> Vec<Sample> {
    prometheus::parse(&node.proxy.admin("/stats/prometheus").unwrap()).unwrap()
}

/// What is counted of a pod, with these further labels.
fn count(samples: &[Sample], name: &str, of: (&str, &str), further: &[(&str, &str)]) -> Option<f64> {
    let own = [("veer_direction", of.0), ("veer_namespace", "test"), ("veer_pod", of.1)];
    prometheus::value(samples, name, &[&own, further].concat()).unwrap()
}

#[track_caller]
fn request(from: &TestPod, to: SocketAddr) {
    assert_eq!(dial::run(&from.launch(Identity::app()), to, ("x-mark", "1")).unwrap().status, 200);
}

#[test]
fn requests_are_counted_by_pod_and_direction() {
    let node = ProxiedNode::start().unwrap();
    let (a, b, dotted) = (node.pod("a").unwrap(), node.pod("b").unwrap(), node.pod(DOTTED).unwrap());
    let _app = node.app(&dotted).unwrap();
    let to = SocketAddr::from((dotted.v4(), APP));
    (0..5).for_each(|_| request(&a, to));
    (0..2).for_each(|_| request(&b, to));

    let expected = [(("outbound", "a"), 5.0), (("outbound", "b"), 2.0), (("inbound", DOTTED), 7.0)];
    let names = ["envoy_http_downstream_rq_total", "envoy_cluster_upstream_rq_total"];
    let by_class = ["envoy_http_downstream_rq_xx", "envoy_cluster_upstream_rq_xx"];
    let missing = |samples: &[Sample]| {
        let mut counts = Vec::new();
        for (of, requests) in expected {
            counts.extend(names.map(|name| (name, of, count(samples, name, of, &[]), requests)));
            let class = [("envoy_response_code_class", "2")];
            counts.extend(by_class.map(|name| (name, of, count(samples, name, of, &class), requests)));
            let of_200 = count(samples, "envoy_cluster_upstream_rq", of, &[("envoy_response_code", "200")]);
            counts.push(("envoy_cluster_upstream_rq", of, of_200, requests));
        }
        counts.retain(|(.., counted, requests)| *counted != Some(*requests));
        counts
    };
    wait::until_ok("the requests to be counted", wait::LIMIT, || {
        let missing = missing(&scrape(&node));
        if missing.is_empty() { Ok(()) } else { Err(missing) }
    })
    .unwrap();
    // Nobody has been asked by the app, and nobody has asked the others.
    let samples = scrape(&node);
    for of in [("outbound", DOTTED), ("inbound", "a"), ("inbound", "b")] {
        let requests = count(&samples, "envoy_http_downstream_rq_total", of, &[]);
        assert!(requests.is_none_or(|requests| requests == 0.0), "{of:?}: {requests:?}");
    }
    named_by_labels_alone(&samples);
}

/// What is a pod's has its three labels and none of Envoy's own that are made of them, and its metric's name is Envoy's.
#[track_caller]
fn named_by_labels_alone(samples: &[Sample]) {
    let allowed = ["veer_direction", "veer_namespace", "veer_pod", "envoy_response_code", "le"];
    let allowed = |name: &String| allowed.contains(&name.as_str()) || name == "envoy_response_code_class";
    let mut of_pods = 0;
    for sample in samples {
        let Sample { name, labels, .. } = sample;
        assert!(!name.contains("bound_test") && !name.contains("cart"), "{sample:?}");
        if !labels.keys().any(|name| name.starts_with("veer_")) {
            assert!(
                !labels.values().any(|value| value.contains(';') || value.contains("cart")),
                "{sample:?}"
            );
            continue;
        }
        of_pods += 1;
        assert!(labels.keys().all(allowed), "{sample:?}");
        let own = |label| labels.get(label).map(String::as_str);
        assert!(["inbound", "outbound"].map(Some).contains(&own("veer_direction")), "{sample:?}");
        assert_eq!(own("veer_namespace"), Some("test"), "{sample:?}");
        assert!(["a", "b", DOTTED].map(Some).contains(&own("veer_pod")), "{sample:?}");
    }
    assert!(of_pods > 100, "{of_pods} samples are of pods");
}

#[test]
fn bytes_of_what_is_no_http_are_counted_by_pod_and_direction() {
    let node = ProxiedNode::start().unwrap();
    let (a, dotted) = (node.pod("a").unwrap(), node.pod(DOTTED).unwrap());
    let to = SocketAddr::from((dotted.v4(), BYTES));
    let listener = tcp(&dotted);
    listener.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, BYTES)).into()).unwrap();
    listener.listen(16).unwrap();
    let mut client = tcp(&a);
    client.connect_timeout(&to.into(), wait::LIMIT).unwrap();
    let mut server = listener.accept().unwrap().0;
    // No letter: nothing that HTTP begins with.
    send(&mut client, &mut server, 70_000);
    send(&mut server, &mut client, 300);
    // The end goes through as well, so everything before it was counted.
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);

    let expected = [
        ("envoy_tcp_downstream_cx_rx_bytes_total", 70_000.0),
        ("envoy_tcp_downstream_cx_tx_bytes_total", 300.0),
        ("envoy_tcp_downstream_cx_total", 1.0),
        ("envoy_cluster_upstream_cx_tx_bytes_total", 70_000.0),
        ("envoy_cluster_upstream_cx_rx_bytes_total", 300.0),
        ("envoy_cluster_upstream_cx_total", 1.0),
    ];
    wait::until_ok("the bytes to be counted", wait::LIMIT, || {
        let samples = scrape(&node);
        let of = |of| expected.map(|(name, _)| (name, count(&samples, name, of, &[])));
        let counts = [of(("outbound", "a")), of(("inbound", DOTTED))];
        let all = expected.map(|(name, count)| (name, Some(count)));
        if counts == [all, all] { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .unwrap();
    let connections = count(&scrape(&node), "envoy_tcp_downstream_cx_total", ("inbound", "a"), &[]);
    assert!(connections.is_none_or(|connections| connections == 0.0), "{connections:?}");
}

#[test]
fn what_was_counted_of_a_pod_goes_with_it() {
    let node = ProxiedNode::start().unwrap();
    let (a, dotted) = (node.pod("a").unwrap(), node.pod(DOTTED).unwrap());
    let _app = node.app(&dotted).unwrap();
    let to = SocketAddr::from((dotted.v4(), APP));
    request(&a, to);
    let of = |samples: &[Sample], pod: &str| {
        samples.iter().filter(|sample| sample.labels.get("veer_pod").is_some_and(|of| of == pod)).count()
    };
    assert_ne!(of(&scrape(&node), DOTTED), 0);
    node.agent.unenrol(&dotted).unwrap();
    // Once its listeners have drained.
    wait::until("Envoy to forget what it counted", wait::LIMIT, || of(&scrape(&node), DOTTED) == 0).unwrap();
    assert_ne!(of(&scrape(&node), "a"), 0);
}

fn tcp(pod: &TestPod) -> Socket {
    let socket = pod.app().socket(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_read_timeout(Some(wait::LIMIT)).unwrap();
    socket
}

#[track_caller]
fn send(from: &mut Socket, to: &mut Socket, length: usize) {
    to.set_read_timeout(Some(wait::LIMIT)).unwrap();
    from.write_all(&vec![7; length]).unwrap();
    to.read_exact(&mut vec![0; length]).unwrap();
}
