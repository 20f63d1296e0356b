//! Each map full, and what else has a limit: an ADD is refused and names it, a connection or a listener is counted,
//! `veer status` tells of what waits for room; and what did not fit finds its place by itself as soon as there is one.
//!
//! The maps that every ADD writes are filled in the fault suite, too, under load.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use nix::sys::signal::Signal;
use socket2::{Domain, Protocol, Type};
use veer_common::cni::{Reply, code};
use veer_common::event::Event;
use veer_common::interface::{MAX_INTERFACES, MAX_ROUTES};
use veer_common::maps::{EVENTS_BYTES, MAX_LISTENERS, MAX_OWN_ADDRESSES, MAX_PODS, MAX_RANGES, name};
use veer_tests::filling::{self, Listening};
use veer_tests::launch::Launch;
use veer_tests::manifest::Manifest;
use veer_tests::mesh::{APP, Listeners, Mesh, connect, dial, dual_stack, proxy_listeners};
use veer_tests::monitor::Monitor;
use veer_tests::pinned::Pinned;
use veer_tests::pod::{REMOTE_V4, TestPod};
use veer_tests::{veth, wait};

const REMOTE: SocketAddr = SocketAddr::new(IpAddr::V4(REMOTE_V4), 80);
/// A pass comes each second here.
const PASS: Duration = Duration::from_mins(1);

/// A node that looks at everything each second, with further arguments.
fn node(arguments: &[&str]) -> Mesh {
    let arguments = [&["--backend=ebpf", "--reconcile-interval=1"], arguments].concat();
    Mesh::on_node(Launch::new(), &arguments).unwrap()
}

/// The same, whose map has room for so few entries.
fn node_with_small(map: &str, entries: u32) -> Mesh {
    let mut mesh = node(&[]);
    let pinned = Pinned::of(&mesh.agent);
    mesh.agent.stop().unwrap();
    for directory in ["links", "programs"] {
        fs::remove_dir_all(pinned.root().join(directory)).unwrap();
    }
    filling::make_smaller(&pinned, map, entries).unwrap();
    mesh.agent.start_again().unwrap();
    mesh
}

fn add(mesh: &Mesh, pod: &TestPod, manifest: &Manifest) -> Reply {
    mesh.agent.write_manifest(manifest).unwrap();
    mesh.agent.add(pod).unwrap()
}

/// An ADD says which map is full, and leaves nothing.
#[track_caller]
fn assert_refused(mesh: &Mesh, pod: &TestPod, manifest: &Manifest, map: &str, capacity: u32) {
    let before = Pinned::of(&mesh.agent).counts().unwrap();
    let reply = add(mesh, pod, manifest);
    let text = format!("map {map} is full ({capacity} entries): this node holds no more");
    let says_so = |reply: &Reply| matches!(reply, Reply::Failed { code: code::ENROLMENT_FAILED, msg, .. } if msg.ends_with(&text));
    assert!(says_so(&reply), "{reply:?} is not {text:?}");
    assert_eq!(Pinned::of(&mesh.agent).counts().unwrap(), before);
}

/// What `veer status` says of a pod that is not as it ought to be, as soon as it does.
fn problem(mesh: &Mesh) -> String {
    let problem = || {
        let status = mesh.agent.json(&["status"]).unwrap();
        status.pointer("/agent/unrepaired/0/problem")?.as_str().map(str::to_owned)
    };
    wait::until_some("a problem to be told", PASS, problem).unwrap()
}

fn wait_well(mesh: &Mesh) {
    let is_well = || {
        let status = mesh.agent.json(&["status"]).unwrap();
        status.pointer("/agent/unrepaired") == Some(&serde_json::json!([]))
    };
    wait::until("the pod to be well", PASS, is_well).unwrap();
}

/// Where an outbound connection of the pod ends.
fn outbound(pod: &TestPod, listeners: &Listeners) -> &'static str {
    dial(pod.app(), REMOTE, listeners).unwrap().0.at
}

/// Where one to the pod ends; `None` if it is refused.
fn inbound(mesh: &Mesh, pod: &TestPod, listeners: &Listeners) -> Option<&'static str> {
    let socket = mesh.world.tcp4().unwrap();
    match connect(&socket, (pod.v4(), APP)) {
        Ok(()) => Some(listeners.accept().unwrap().0.at),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            None
        }
    }
}

#[test]
fn a_pod_whose_ranges_do_not_fit_is_refused_until_another_one_goes() {
    let mesh = node_with_small(name::RANGES, 4);
    let mut listeners = Listeners::default();
    listeners.add_in_world("outside", &mesh.world, REMOTE).unwrap();
    let with = |pod: &TestPod| {
        dual_stack(pod).with_traffic("includeOutboundIPRanges", "192.0.2.0/24,10.9.0.0/16,10.8.0.0/16")
    };
    let late = TestPod::new(&mesh.world, &mesh.cgroup, "late").unwrap();
    assert_eq!(add(&mesh, &mesh.pod, &with(&mesh.pod)), Reply::Done);
    listeners.extend(proxy_listeners(&mesh.pod).unwrap());

    assert_refused(&mesh, &late, &with(&late), name::RANGES, MAX_RANGES);
    assert_eq!((outbound(&mesh.pod, &listeners), outbound(&late, &listeners)), ("outbound", "outside"));

    mesh.agent.unenrol(&mesh.pod).unwrap();
    listeners.extend(proxy_listeners(&late).unwrap());
    assert_eq!(mesh.agent.add(&late).unwrap(), Reply::Done);
    assert_eq!((outbound(&mesh.pod, &listeners), outbound(&late, &listeners)), ("outside", "outbound"));
}

#[test]
fn a_pod_whose_routes_or_interfaces_do_not_fit_is_refused() {
    let with = |pod: &TestPod| pod.manifest().with_traffic("excludeInterfaces", "eth0");
    let mesh = node_with_small(name::ROUTES, 1);
    assert_refused(&mesh, &mesh.pod, &with(&mesh.pod), name::ROUTES, MAX_ROUTES);

    for map in [name::INTERFACE_NAMES, name::INTERFACES] {
        let mesh = node_with_small(map, 1);
        let late = TestPod::new(&mesh.world, &mesh.cgroup, "late").unwrap();
        assert_eq!(add(&mesh, &mesh.pod, &with(&mesh.pod)), Reply::Done);
        assert_refused(&mesh, &late, &with(&late), map, MAX_INTERFACES);
        mesh.agent.unenrol(&mesh.pod).unwrap();
        assert_eq!(mesh.agent.add(&late).unwrap(), Reply::Done);
    }
}

#[test]
fn a_listener_without_room_is_counted_and_told_of_and_registered_once_there_is() {
    let mesh = node(&[]);
    assert_eq!(add(&mesh, &mesh.pod, &dual_stack(&mesh.pod)), Reply::Done);
    let full = Listening::fill(&Pinned::of(&mesh.agent)).unwrap();
    let mut listeners = proxy_listeners(&mesh.pod).unwrap();
    listeners.add("app", mesh.pod.app(), (Ipv4Addr::UNSPECIFIED, APP)).unwrap();

    assert_eq!(mesh.counter("faults", "listener-not-registered").unwrap(), 4);
    assert_eq!(outbound(&mesh.pod, &listeners), "outbound");
    assert_eq!(inbound(&mesh, &mesh.pod, &listeners), None, "not past the proxy");
    assert_eq!(mesh.counter("reasons", "no-listener").unwrap(), 1);
    let text = format!("map LISTENERS is full ({MAX_LISTENERS} entries): this node holds no more");
    assert_eq!(problem(&mesh), text);

    drop(full);
    wait_well(&mesh);
    assert_eq!(inbound(&mesh, &mesh.pod, &listeners), Some("inbound"));
}

#[test]
fn a_running_pod_whose_listeners_do_not_fit_is_refused() {
    let mesh = node(&[]);
    let listeners = proxy_listeners(&mesh.pod).unwrap();
    let full = Listening::fill(&Pinned::of(&mesh.agent)).unwrap();
    assert_refused(&mesh, &mesh.pod, &dual_stack(&mesh.pod), name::LISTENERS, MAX_LISTENERS);
    drop(full);
    assert_eq!(mesh.agent.add(&mesh.pod).unwrap(), Reply::Done);
    assert_eq!(inbound(&mesh, &mesh.pod, &listeners), Some("inbound"));
}

#[test]
fn a_proxy_whose_container_cannot_be_noted_is_counted_and_told_of_and_known_once_it_can() {
    let mesh = node(&["--proxy-identity=container"]);
    let pinned = Pinned::of(&mesh.agent);
    assert_eq!(add(&mesh, &mesh.pod, &dual_stack(&mesh.pod)), Reply::Done);
    filling::fill(&pinned, name::PROXIES).unwrap();
    let listeners = proxy_listeners(&mesh.pod).unwrap();

    assert_eq!(mesh.counter("faults", "foreign-listener").unwrap(), 4);
    assert_eq!(inbound(&mesh, &mesh.pod, &listeners), None, "not past the proxy");
    let text = format!("map PROXIES is full ({MAX_PODS} entries): this node holds no more");
    assert_eq!(problem(&mesh), text);
    let late = TestPod::new(&mesh.world, &mesh.cgroup, "late").unwrap();
    let _older = proxy_listeners(&late).unwrap();
    assert_refused(&mesh, &late, &dual_stack(&late), name::PROXIES, MAX_PODS);

    filling::empty(&pinned, name::PROXIES).unwrap();
    wait_well(&mesh);
    assert_eq!(inbound(&mesh, &mesh.pod, &listeners), Some("inbound"));
}

#[test]
fn an_address_that_comes_later_and_has_no_room_is_told_of_and_known_once_there_is() {
    let mesh = node(&[]);
    let pinned = Pinned::of(&mesh.agent);
    assert_eq!(add(&mesh, &mesh.pod, &dual_stack(&mesh.pod)), Reply::Done);
    let mut listeners = proxy_listeners(&mesh.pod).unwrap();
    filling::fill(&pinned, name::OWN_ADDRESSES).unwrap();
    let own = SocketAddr::from((Ipv4Addr::new(10, 77, 0, 200), APP));
    veth::ip(mesh.pod.netns(), [format!("address add {}/24 dev eth0", own.ip())]).unwrap();
    listeners.add("app", mesh.pod.app(), own).unwrap();

    let text = format!("map OWN_ADDRESSES is full ({MAX_OWN_ADDRESSES} entries): this node holds no more");
    assert_eq!(problem(&mesh), text);
    assert_eq!(dial(mesh.pod.app(), own, &listeners).unwrap().0.at, "outbound", "as any remote one");

    filling::empty(&pinned, name::OWN_ADDRESSES).unwrap();
    wait_well(&mesh);
    assert_eq!(dial(mesh.pod.app(), own, &listeners).unwrap().0.at, "app");
}

#[test]
fn with_a_full_ring_buffer_events_are_lost_and_counted_and_the_counters_are_right() {
    let mesh = node(&[]);
    let manifest = dual_stack(&mesh.pod).with_proxy_env("ISTIO_META_DNS_CAPTURE", "true");
    assert_eq!(add(&mesh, &mesh.pod, &manifest), Reply::Done);
    let monitor = Monitor::start(&mesh.agent, &["--json"]).unwrap();
    let socket = mesh.pod.app().socket(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    let resolver = SocketAddr::from((REMOTE_V4, 53)).into();
    // Each has a header of 8 bytes, so that the buffer is full before.
    let sent = u64::from(EVENTS_BYTES) / size_of::<Event>() as u64;
    mesh.agent.signal(Signal::SIGSTOP).unwrap();
    for _ in 0..sent {
        // Nobody listens there, which a later send is told of.
        drop(socket.send_to(b"?", &resolver));
    }
    let counted = |group, name| mesh.counter(group, name).unwrap();
    let (lost, decided) = (counted("faults", "event-lost"), counted("reasons", "dns"));
    mesh.agent.signal(Signal::SIGCONT).unwrap();

    assert_eq!(decided, sent, "each is counted");
    assert!(lost > 0 && lost < sent, "{lost} of {sent}");
    let seen = usize::try_from(sent - lost).unwrap();
    let lines = wait::until_some("what was in the buffer", PASS, || {
        let lines = monitor.lines().unwrap();
        (!lines.is_empty()).then_some(lines)
    });
    assert!(lines.unwrap().len() <= seen);
}
