//! One real Envoy for all pods of a node: no pod has a sidecar.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::{Domain, Type};
use veer_common::cni::{Reply, Verb};
use veer_tests::agent::Agent;
use veer_tests::attachment;
use veer_tests::bare_pod::BarePod;
use veer_tests::cgroup::Cgroup;
use veer_tests::dial;
use veer_tests::launch::{Identity, Launch};
use veer_tests::mesh::APP;
use veer_tests::netfilter::Netfilter;
use veer_tests::node_proxy::NodeProxy;
use veer_tests::pod::{TestPod, World};
use veer_tests::proxied_node::{ProxiedNode, place};
use veer_tests::streams::{self, BYTES, Stream};
use veer_tests::wait;

#[test]
fn requests_of_pods_without_sidecars_go_through_the_nodes_envoy_twice() {
    let node = ProxiedNode::start().unwrap();
    let (a, b) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    let _app = node.app(&b).unwrap();
    let families: [[IpAddr; 3]; 2] = [
        [a.v4().into(), b.v4().into(), Ipv4Addr::new(127, 0, 0, 6).into()],
        [a.v6().into(), b.v6().into(), "::6".parse().unwrap()],
    ];
    for [of_a, of_b, passthrough] in families {
        let to = SocketAddr::new(of_b, APP);
        let seen = dial::run(&a.launch(Identity::app()), to, ("X-Mark", "kept")).unwrap();
        let echo = seen.echo.unwrap();
        assert_eq!((seen.status, echo.app.as_str(), echo.peer.ip()), (200, "b", passthrough));
        assert_eq!((seen.peername, echo.local), (to, to));
        for (pod, direction) in [("a", "outbound"), ("b", "inbound")] {
            let entry = node.logged(pod, direction, to).unwrap();
            let source: SocketAddr = entry["source"].as_str().unwrap().parse().unwrap();
            assert_eq!((&entry["namespace"], &entry["status"]), (&json!("test"), &json!(200)), "{entry}");
            assert_eq!((source.ip(), &entry["upstream"]), (of_a, &json!(to.to_string())), "{entry}");
        }
    }
    let (of_a, of_b) = (node.view("a").unwrap(), node.view("b").unwrap());
    assert_eq!(of_a["reasons"], json!({"all-outbound": 2, "proxy": 2}));
    assert_eq!((&of_b["totals"]["toInbound"], &of_b["faults"]), (&json!(2), &json!({})), "{of_b}");
    assert!(Netfilter::of(a.netns()).unwrap().none());
}

#[test]
fn pods_of_a_labelled_namespace_go_through_the_nodes_envoy_but_for_those_that_say_none() {
    let node = ProxiedNode::start().unwrap();
    node.agent.write_namespace("test", ("veer.dev/proxy", "node")).unwrap();
    let pod = |name| TestPod::new(&node.world, &node.cgroup, name).unwrap();
    let (asks, refuses) = (pod("asks"), pod("refuses"));
    node.agent.enrol_as(&asks, &asks.manifest().without_sidecar()).unwrap();
    let out = refuses.manifest().without_sidecar().with_label("veer.dev/proxy", "none");
    node.agent.write_manifest(&out).unwrap();
    assert_eq!(node.agent.add(&refuses).unwrap(), Reply::Passed { reason: "not-injected".to_owned() });
    let _apps = [node.app(&asks).unwrap(), node.app(&refuses).unwrap()];
    for (from, to, direction) in [(&refuses, &asks, "inbound"), (&asks, &refuses, "outbound")] {
        let to = SocketAddr::from((to.v4(), APP));
        let seen = dial::run(&from.launch(Identity::app()), to, ("X-Mark", "kept")).unwrap();
        assert_eq!(seen.status, 200);
        node.logged("asks", direction, to).unwrap();
    }
    let pod = node.view("asks").unwrap();
    assert_eq!(pod["driver"], json!("node"), "{pod}");
    let explained =
        node.agent.json(&["explain", "test/asks", "--to", "192.0.2.1:80", "--as", "1000:1000"]).unwrap();
    let told = "the pod's proxy is the node's, by label veer.dev/proxy=\"node\" of namespace test";
    assert_eq!(explained["notes"], json!([told]));
}

#[test]
fn what_is_no_http_is_passed_as_bytes_whoever_speaks_first() {
    let node = ProxiedNode::start().unwrap();
    let (a, b) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    let to = SocketAddr::from((b.v4(), BYTES));
    let listener = streams::listen(&b, to.port()).unwrap();
    let mut stream = Stream::open(&a, &listener, to).unwrap();
    stream.answer().unwrap();
    stream.ask().unwrap();
    // The end of one direction is not the end of the other.
    stream.client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.server.read(&mut [0]).unwrap(), 0);
    stream.answer().unwrap();
}

#[test]
fn without_the_nodes_proxy_a_pod_is_not_enrolled_and_with_it_at_the_next_attempt() {
    let cgroup = Cgroup::new().unwrap();
    let (place, flag) = place().unwrap();
    let agent = Agent::start_with(&cgroup, Launch::new(), &[&flag]).unwrap();
    let world = World::new().unwrap();
    let pod = TestPod::new(&world, &cgroup, "pod").unwrap();
    agent.write_manifest(&pod.manifest().with_node_proxy()).unwrap();
    let Reply::Failed { code, msg, .. } = agent.add(&pod).unwrap() else { panic!("it was enrolled") };
    assert_eq!(code, 11);
    assert!(msg.starts_with("enrol pod test/pod: the node's proxy is not connected"), "{msg}");
    assert_eq!(agent.json(&["pods"]).unwrap(), json!([]));
    // Who has been away for so long is not waited for by each pod anew.
    let asked = Instant::now();
    let Reply::Failed { msg: again, .. } = agent.add(&pod).unwrap() else { panic!("it was enrolled") };
    assert_eq!(again, msg);
    assert!(asked.elapsed() < wait::scaled(Duration::from_secs(5)), "{:?}", asked.elapsed());

    let proxys = cgroup.child("proxy").unwrap();
    let _proxy = NodeProxy::start(&place.path().join("proxy"), world.netns(), &proxys).unwrap();
    agent.enrol_as(&pod, &pod.manifest().with_node_proxy()).unwrap();
}

#[test]
fn an_agent_that_is_killed_and_started_again_leaves_the_nodes_envoy_as_it_is() {
    let mut node = ProxiedNode::start().unwrap();
    let (a, b) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    let to = SocketAddr::from((b.v4(), BYTES));
    let listener = streams::listen(&b, to.port()).unwrap();
    let mut stream = Stream::open(&a, &listener, to).unwrap();
    stream.exchange().unwrap();
    node.agent.kill().unwrap();
    // Without an agent, everything goes on.
    stream.exchange().unwrap();
    Stream::open(&a, &listener, to).unwrap();
    node.agent.start_again().unwrap();
    let c = node.pod("c").unwrap();
    Stream::open(&c, &listener, to).unwrap();
    stream.exchange().unwrap();
    let stats =
        node.proxy.admin("/stats?filter=^listener_manager.listener_(added|modified|removed)$").unwrap();
    let expected = "listener_manager.listener_added: 6\nlistener_manager.listener_modified: 0\n\
                    listener_manager.listener_removed: 0\n";
    assert_eq!(stats, expected);
}

#[test]
fn an_envoy_that_is_killed_is_followed_by_one_that_serves_all_pods() {
    let mut node = ProxiedNode::start().unwrap();
    let (a, b) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    let to = SocketAddr::from((b.v4(), BYTES));
    let listener = streams::listen(&b, to.port()).unwrap();
    Stream::open(&a, &listener, to).unwrap();
    node.proxy.process_mut().kill().unwrap();
    // As with a sidecar that is away, nothing goes past it.
    let refused = a.app().socket(Domain::IPV4, Type::STREAM, None).unwrap().connect(&to.into()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

    node.start_proxy().unwrap();
    wait::until_ok("the pods to be served again", wait::LIMIT, || {
        a.app().socket(Domain::IPV4, Type::STREAM, None)?.connect(&to.into()).map_err(anyhow::Error::from)
    })
    .unwrap();
}

#[test]
fn a_pod_that_envoy_cannot_serve_is_told_in_its_words_and_harms_no_other() {
    let node = ProxiedNode::start().unwrap();
    let (a, b) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    // Somebody has the port already, in a way that lets nobody share it.
    let taken = TestPod::new(&node.world, &node.cgroup, "taken").unwrap();
    let _first = streams::listen(&taken, 15006).unwrap();
    node.agent.write_manifest(&taken.manifest().with_node_proxy()).unwrap();
    let Reply::Failed { msg, .. } = node.agent.add(&taken).unwrap() else { panic!("it was enrolled") };
    assert!(msg.contains("the node's proxy refuses it") && msg.contains("15006"), "{msg}");

    let to = SocketAddr::from((b.v4(), BYTES));
    let listener = streams::listen(&b, to.port()).unwrap();
    Stream::open(&a, &listener, to).unwrap();
    let c = node.pod("c").unwrap();
    Stream::open(&c, &listener, to).unwrap();
}

#[test]
fn a_pod_that_goes_takes_its_listeners_with_it_and_nobody_elses() {
    let node = ProxiedNode::start().unwrap();
    let (a, b, c) = (node.pod("a").unwrap(), node.pod("b").unwrap(), node.pod("c").unwrap());
    let to = SocketAddr::from((b.v4(), BYTES));
    let listener = streams::listen(&b, to.port()).unwrap();
    node.agent.unenrol(&c).unwrap();
    let listeners = || node.proxy.admin("/listeners").unwrap();
    wait::until("Envoy to have no listener of the pod", wait::LIMIT, || !listeners().contains("test/c"))
        .unwrap();
    assert!(listeners().contains("test/a") && listeners().contains("test/b"));
    Stream::open(&a, &listener, to).unwrap();
}

#[test]
fn an_agent_that_drives_no_proxy_refuses_who_asks_for_it_and_says_how_it_would() {
    let cgroup = Cgroup::new().unwrap();
    let agent = Agent::start(&cgroup).unwrap();
    let pod = TestPod::new(&World::new().unwrap(), &cgroup, "pod").unwrap();
    agent.write_manifest(&pod.manifest().with_node_proxy()).unwrap();
    let Reply::Failed { msg, .. } = agent.add(&pod).unwrap() else { panic!("it was enrolled") };
    let expected = "enrol pod test/pod: the agent drives no proxy: it was started without --proxy-dir";
    assert_eq!(msg, expected);
    assert_eq!(agent.json(&["pods"]).unwrap(), json!([]));
}

#[test]
fn two_hundred_and_fifty_pods_of_a_node_are_served_by_one_envoy_and_all_go() {
    const OTHERS: u16 = 248;
    let node = ProxiedNode::start().unwrap();
    let (a, b) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    let others: Vec<_> =
        (0..OTHERS).map(|number| BarePod::new(&format!("other-{number}"), number).unwrap()).collect();
    for pod in &others {
        node.agent.write_manifest(&pod.manifest().with_node_proxy()).unwrap();
        let add = Verb::Add(pod.attachment());
        let reply = attachment::ask(&node.agent.run_dir(), add, Some(pod.netns().as_fd())).unwrap();
        assert_eq!(reply, Reply::Done, "{}", pod.name());
    }
    let status = node.agent.json(&["status"]).unwrap();
    let served = json!({"connected": 1, "pods": 250, "served": 250, "refused": {}});
    assert_eq!((&status["agent"]["nodeProxy"], &status["enrolled"]), (&served, &json!(250)));
    // Each of both families and both workers, in a netns of its own.
    let of = |pod: &BarePod| (pod.netns().listening(15001).unwrap(), pod.netns().listening(15006).unwrap());
    assert!(others.iter().all(|pod| of(pod) == (4, 4)), "{:?}", of(others.last().unwrap()));
    let to = SocketAddr::from((b.v4(), BYTES));
    let listener = streams::listen(&b, to.port()).unwrap();
    let mut stream = Stream::open(&a, &listener, to).unwrap();

    for pod in &others {
        let del = Verb::Del(pod.attachment());
        assert_eq!(attachment::ask(&node.agent.run_dir(), del, None).unwrap(), Reply::Done);
    }
    let gone = || others.iter().all(|pod| of(pod) == (0, 0));
    wait::until("Envoy to leave the pods that are gone", wait::LIMIT, gone).unwrap();
    stream.exchange().unwrap();
    Stream::open(&a, &listener, to).unwrap();
}
