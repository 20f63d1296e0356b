//! One real Envoy for all pods of a node: no pod has a sidecar.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::AsFd;

use serde_json::json;
use socket2::{Domain, Socket, Type};
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
use veer_tests::wait;

/// A port of an app that speaks no HTTP.
const BYTES: u16 = 9000;

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
fn what_is_no_http_is_passed_as_bytes_whoever_speaks_first() {
    let node = ProxiedNode::start().unwrap();
    let (a, b) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    let to = SocketAddr::from((b.v4(), BYTES));
    let listener = listen(&b, to.port());
    let (mut client, mut server) = connect(&a, &listener, to);
    exchange(&mut server, &mut client);
    exchange(&mut client, &mut server);
    // The end of one direction is not the end of the other.
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    exchange(&mut server, &mut client);
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

    let proxys = cgroup.child("proxy").unwrap();
    let _proxy = NodeProxy::start(&place.path().join("proxy"), world.netns(), &proxys).unwrap();
    agent.enrol_as(&pod, &pod.manifest().with_node_proxy()).unwrap();
}

#[test]
fn an_agent_that_is_killed_and_started_again_leaves_the_nodes_envoy_as_it_is() {
    let mut node = ProxiedNode::start().unwrap();
    let (a, b) = (node.pod("a").unwrap(), node.pod("b").unwrap());
    let to = SocketAddr::from((b.v4(), BYTES));
    let listener = listen(&b, to.port());
    let (mut client, mut server) = connect(&a, &listener, to);
    exchange(&mut client, &mut server);
    node.agent.kill().unwrap();
    // Without an agent, everything goes on.
    exchange(&mut client, &mut server);
    connect(&a, &listener, to);
    node.agent.start_again().unwrap();
    let c = node.pod("c").unwrap();
    connect(&c, &listener, to);
    exchange(&mut server, &mut client);
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
    let listener = listen(&b, to.port());
    connect(&a, &listener, to);
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
    let _first = listen(&taken, 15006);
    node.agent.write_manifest(&taken.manifest().with_node_proxy()).unwrap();
    let Reply::Failed { msg, .. } = node.agent.add(&taken).unwrap() else { panic!("it was enrolled") };
    assert!(msg.contains("the node's proxy refuses it") && msg.contains("15006"), "{msg}");

    let to = SocketAddr::from((b.v4(), BYTES));
    let listener = listen(&b, to.port());
    connect(&a, &listener, to);
    let c = node.pod("c").unwrap();
    connect(&c, &listener, to);
}

#[test]
fn a_pod_that_goes_takes_its_listeners_with_it_and_nobody_elses() {
    let node = ProxiedNode::start().unwrap();
    let (a, b, c) = (node.pod("a").unwrap(), node.pod("b").unwrap(), node.pod("c").unwrap());
    let to = SocketAddr::from((b.v4(), BYTES));
    let listener = listen(&b, to.port());
    node.agent.unenrol(&c).unwrap();
    let listeners = || node.proxy.admin("/listeners").unwrap();
    wait::until("Envoy to have no listener of the pod", wait::LIMIT, || !listeners().contains("test/c"))
        .unwrap();
    assert!(listeners().contains("test/a") && listeners().contains("test/b"));
    connect(&a, &listener, to);
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
    let listener = listen(&b, to.port());
    let (mut client, mut server) = connect(&a, &listener, to);

    for pod in &others {
        let del = Verb::Del(pod.attachment());
        assert_eq!(attachment::ask(&node.agent.run_dir(), del, None).unwrap(), Reply::Done);
    }
    let gone = || others.iter().all(|pod| of(pod) == (0, 0));
    wait::until("Envoy to leave the pods that are gone", wait::LIMIT, gone).unwrap();
    exchange(&mut client, &mut server);
    connect(&a, &listener, to);
}

/// A listener of a pod's app.
fn listen(pod: &TestPod, port: u16) -> Socket {
    let socket = pod.app().socket(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).unwrap();
    socket.listen(16).unwrap();
    socket
}

/// Both ends of a new connection.
#[track_caller]
fn connect(from: &TestPod, listener: &Socket, to: SocketAddr) -> (Socket, Socket) {
    let client = from.app().socket(Domain::IPV4, Type::STREAM, None).unwrap();
    client.connect_timeout(&to.into(), wait::LIMIT).unwrap();
    listener.set_read_timeout(Some(wait::LIMIT)).unwrap();
    let (server, _peer) = listener.accept().unwrap();
    for end in [&client, &server] {
        end.set_read_timeout(Some(wait::LIMIT)).unwrap();
    }
    (client, server)
}

#[track_caller]
fn exchange(from: &mut Socket, to: &mut Socket) {
    let said = [7, 0, 255, 13, 10];
    from.write_all(&said).unwrap();
    let mut heard = [0; 5];
    to.read_exact(&mut heard).unwrap();
    assert_eq!(heard, said);
}
