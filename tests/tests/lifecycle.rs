//! The life of an enrolment: ADD, again and again; CHECK; DEL; GC; and what each of them leaves.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests panic as tests do"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;

use serde_json::Value;
use socket2::Socket;
use veer_common::cni::{Attachment, PodReference, Reply, ValidAttachment, Verb, code};
use veer_common::maps::{NetnsCookie, name};
use veer_tests::agent::Agent;
use veer_tests::backend::{Backend, Kept};
use veer_tests::jam::{self, Jam};
use veer_tests::launch::Launch;
use veer_tests::mesh::{APP, Listeners, Mesh, PATIENCE, dial, dial_from_world, dual_stack, proxy_listeners};
use veer_tests::on_each_backend;
use veer_tests::pinned::{NETNS_LINKS, Pinned};
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, TestPod};
use veer_tests::{attachment, veth, wait};

on_each_backend! {
    del_after_the_netns_went_leaves_nothing_either,
    del_of_a_pod_that_is_not_known_is_fine_any_number_of_times,
    a_pod_that_is_enrolled_again_finds_the_listeners_that_it_had,
    a_second_add_of_a_container_brings_its_lists_up_to_date_and_keeps_its_counters,
    a_further_interface_neither_replaces_nor_unenrols_a_pod,
    another_container_in_a_live_netns_is_refused_and_the_first_stays_whole,
    a_container_in_a_new_netns_replaces_its_old_enrolment,
    gc_keeps_what_is_valid_and_removes_the_rest_of_its_network,
    an_add_that_fails_leaves_the_pod_as_it_was,
}

const REMOTE: SocketAddr = SocketAddr::new(IpAddr::V4(REMOTE_V4), 80);
const REMOTE_SIX: SocketAddr = SocketAddr::new(IpAddr::V6(REMOTE_V6), 80);

/// A pod as `veer pods` has it.
fn view(agent: &Agent, pod: &TestPod) -> Value {
    agent.json(&["pods", &format!("test/{}", pod.name())]).unwrap()
}

fn cookie(agent: &Agent, pod: &TestPod) -> NetnsCookie {
    view(agent, pod)["netnsCookie"].as_u64().unwrap()
}

/// Names of all enrolled pods.
fn enrolled(agent: &Agent) -> Vec<String> {
    let pods = agent.json(&["pods"]).unwrap();
    pods.as_array().unwrap().iter().map(|pod| pod["name"].as_str().unwrap().to_owned()).collect()
}

/// The proxy's listeners, an app, and a server outside.
fn listeners(mesh: &Mesh, pod: &TestPod) -> Listeners {
    let mut listeners = proxy_listeners(pod).unwrap();
    add_app_and_outside(mesh, pod, &mut listeners);
    listeners
}

fn add_app_and_outside(mesh: &Mesh, pod: &TestPod, listeners: &mut Listeners) {
    listeners.add("app", pod.app(), (Ipv4Addr::UNSPECIFIED, APP)).unwrap();
    listeners.add_in_world("outside", &mesh.world, REMOTE).unwrap();
}

/// Where connections of the pod and to the pod end.
fn ends(mesh: &Mesh, pod: &TestPod, listeners: &Listeners) -> (&'static str, &'static str) {
    let (outbound, ..) = dial(pod.app(), REMOTE, listeners).unwrap();
    let (inbound, ..) = dial_from_world(&mesh.world, (pod.v4(), APP), listeners).unwrap();
    (outbound.at, inbound.at)
}

const CAPTURED: (&str, &str) = ("outbound", "inbound");
const DIRECT: (&str, &str) = ("outside", "app");

#[track_caller]
fn assert_failed(reply: &Reply, expected: u32, text: &str) {
    let Reply::Failed { code, msg, .. } = reply else { panic!("{reply:?}") };
    assert_eq!(*code, expected, "{msg}");
    assert!(msg.contains(text), "{msg}");
}

/// ADD of an attachment that is not quite the pod's own.
fn add(agent: &Agent, attachment: Attachment, pod: &TestPod) -> Reply {
    attachment::ask(&agent.run_dir(), Verb::Add(attachment), Some(pod.netns().as_fd())).unwrap()
}

/// A byte goes there and another comes back.
fn exchange(mut one: &Socket, mut other: &Socket) -> [u8; 2] {
    let mut bytes = [0; 2];
    one.write_all(b"a").unwrap();
    other.read_exact(&mut bytes[..1]).unwrap();
    other.write_all(b"b").unwrap();
    one.read_exact(&mut bytes[1..]).unwrap();
    bytes
}

/// NAT of nftables ends with its rules: open connections do, too.
#[test]
fn del_leaves_open_connections_alone_and_makes_new_ones_direct() {
    let mesh = Mesh::new().unwrap();
    let pod = &mesh.pod;
    let listeners = listeners(&mesh, pod);
    let (_, dialled, accepted) = dial(pod.app(), REMOTE, &listeners).unwrap();
    let (_, client, served) = dial_from_world(&mesh.world, (pod.v4(), APP), &listeners).unwrap();
    assert_eq!(ends(&mesh, pod, &listeners), CAPTURED);

    mesh.agent.unenrol(pod).unwrap();

    assert_eq!((exchange(&dialled, &accepted), exchange(&client, &served)), (*b"ab", *b"ab"));
    assert_eq!(dialled.peer_addr().unwrap().as_socket(), Some(REMOTE), "the app sees what it dialled");
    assert_eq!(accepted.original_dst_v4().unwrap().as_socket(), Some(REMOTE));
    assert_eq!(served.original_dst_v4().unwrap().as_socket(), Some((pod.v4(), APP).into()));
    assert_eq!(ends(&mesh, pod, &listeners), DIRECT);
}

#[test]
fn del_leaves_nothing_of_the_pod_in_any_map() {
    let mesh = Mesh::with(|manifest| {
        manifest
            .with_traffic("excludeOutboundPorts", "9000")
            .with_traffic("excludeOutboundIPRanges", "198.51.100.0/24,2001:db8:1::/48")
    })
    .unwrap();
    let other = mesh.another_pod("other").unwrap();
    let others_listeners = listeners(&mesh, &other);
    let pinned = Pinned::of(&mesh.agent);
    let (own, others) = (cookie(&mesh.agent, &mesh.pod), cookie(&mesh.agent, &other));
    let jam = Jam::start(&mesh.pod, REMOTE_SIX).unwrap();
    let under_way = jam::begin(mesh.pod.app(), REMOTE_SIX).unwrap();

    let whole = pinned.of_pod(own).unwrap();
    let rows = [
        (name::PODS, 1),
        (name::ENROLMENTS, 1),
        (name::COUNTERS, 1),
        (name::PORTS, 2),
        (name::RANGES, 2),
        (name::LISTENERS, 1),
        (name::HAND_OFFS, 1),
        (NETNS_LINKS, 1),
    ];
    for (name, count) in rows {
        assert_eq!(whole.get(name), Some(&count), "{name}: {whole:?}");
    }
    assert!(whole[name::OWN_ADDRESSES] >= 2 && whole.len() == rows.len() + 1, "{whole:?}");
    let others_before = pinned.of_pod(others).unwrap();

    mesh.agent.unenrol(&mesh.pod).unwrap();

    let left = pinned.of_pod(own).unwrap();
    assert_eq!(left.into_iter().collect::<Vec<_>>(), [(name::HAND_OFFS, 1)], "what is under way stays so");
    drop((under_way, jam));
    wait::until("the last connection to go", PATIENCE, || pinned.of_pod(own).unwrap().is_empty()).unwrap();
    assert!(!pinned.netns_link(own).exists());
    assert_eq!(pinned.of_pod(others).unwrap(), others_before);
    assert_eq!(ends(&mesh, &other, &others_listeners), CAPTURED);
    assert_eq!(enrolled(&mesh.agent), ["other"]);
}

fn del_of_a_pod_that_is_not_known_is_fine_any_number_of_times(backend: Backend) {
    let mesh = Mesh::on_node(Launch::new(), &[&backend.flag()]).unwrap();
    mesh.agent.unenrol(&mesh.pod).unwrap();
    mesh.agent.enrol(&mesh.pod).unwrap();
    mesh.agent.unenrol(&mesh.pod).unwrap();
    mesh.agent.unenrol(&mesh.pod).unwrap();
    assert_failed(&mesh.agent.check(&mesh.pod).unwrap(), code::NOT_ENROLLED, "is not enrolled");
}

fn del_after_the_netns_went_leaves_nothing_either(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let gone = mesh.another_pod("gone").unwrap();
    let its_cookie = cookie(&mesh.agent, &gone);
    let attachment = Attachment { netns: String::new(), pod: None, ..gone.attachment() };
    drop(gone);
    assert_eq!(mesh.agent.ask(Verb::Del(attachment)).unwrap(), Reply::Done);
    let left = Kept::by(&mesh.agent, backend).of_pod(its_cookie).unwrap();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(enrolled(&mesh.agent), ["pod"]);
}

fn a_pod_that_is_enrolled_again_finds_the_listeners_that_it_had(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let listeners = listeners(&mesh, &mesh.pod);
    for _ in 0..2 {
        assert_eq!(ends(&mesh, &mesh.pod, &listeners), CAPTURED);
        mesh.agent.unenrol(&mesh.pod).unwrap();
        assert_eq!(ends(&mesh, &mesh.pod, &listeners), DIRECT);
        mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
    }
    let pod = view(&mesh.agent, &mesh.pod);
    assert_eq!(
        (&pod["policy"]["outbound"]["listeners"], &pod["policy"]["inbound"]["listeners"]),
        (&2.into(), &2.into())
    );
}

fn a_second_add_of_a_container_brings_its_lists_up_to_date_and_keeps_its_counters(backend: Backend) {
    let mesh = Mesh::on_with(backend, |manifest| manifest.with_traffic("excludeOutboundPorts", "9000,9001"))
        .unwrap();
    let pod = &mesh.pod;
    let mut listeners = listeners(&mesh, pod);
    listeners.add_in_world("outside", &mesh.world, (REMOTE_V4, 9000)).unwrap();
    listeners.add_in_world("outside", &mesh.world, (REMOTE_V4, 9002)).unwrap();
    let end = |port| dial(pod.app(), (REMOTE_V4, port), &listeners).unwrap().0.at;
    assert_eq!((end(9000), end(9002)), ("outside", "outbound"));
    let second = Ipv4Addr::new(10, 77, 0, 200);
    veth::ip(pod.netns(), [format!("address add {second}/24 dev eth0")]).unwrap();
    let end_of_second = || dial(pod.app(), (second, APP), &listeners).unwrap().0.at;

    let manifest = dual_stack(pod).with_traffic("excludeOutboundPorts", "9001,9002");
    mesh.agent.enrol_as(pod, &manifest).unwrap();

    assert_eq!((end(9000), end(9002), end_of_second()), ("outbound", "outside", "app"));
    let reasons = &view(&mesh.agent, pod)["reasons"];
    assert_eq!((&reasons["all-outbound"], &reasons["excluded-port"]), (&2.into(), &2.into()), "{reasons}");
    let counts = Kept::by(&mesh.agent, backend).of_pod(cookie(&mesh.agent, pod)).unwrap();
    match backend {
        Backend::Ebpf => assert_eq!((counts[name::PORTS], counts[name::ENROLMENTS]), (2, 1)),
        Backend::Nftables => assert_eq!(counts["records"], 1),
    }
}

fn a_further_interface_neither_replaces_nor_unenrols_a_pod(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let listeners = listeners(&mesh, &mesh.pod);
    let further = Attachment { interface: "net1".to_owned(), ..mesh.pod.attachment() };
    assert_eq!(add(&mesh.agent, further.clone(), &mesh.pod), Reply::Done);
    assert_eq!(mesh.agent.ask(Verb::Del(further)).unwrap(), Reply::Done);
    assert_eq!(mesh.agent.check(&mesh.pod).unwrap(), Reply::Done);
    assert_eq!(ends(&mesh, &mesh.pod, &listeners), CAPTURED);
    mesh.agent.unenrol(&mesh.pod).unwrap();
    assert_eq!(ends(&mesh, &mesh.pod, &listeners), DIRECT);
}

fn another_container_in_a_live_netns_is_refused_and_the_first_stays_whole(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let listeners = listeners(&mesh, &mesh.pod);
    let before = (view(&mesh.agent, &mesh.pod), Kept::by(&mesh.agent, backend).counts().unwrap());
    let intruder = Attachment { container_id: "intruder".to_owned(), ..mesh.pod.attachment() };
    let reply = add(&mesh.agent, intruder.clone(), &mesh.pod);
    assert_failed(&reply, code::ENROLMENT_FAILED, "its netns is that of pod test/pod");
    // The runtime sends a DEL after an ADD that failed.
    assert_eq!(mesh.agent.ask(Verb::Del(intruder)).unwrap(), Reply::Done);
    assert_eq!((view(&mesh.agent, &mesh.pod), Kept::by(&mesh.agent, backend).counts().unwrap()), before);
    assert_eq!(mesh.agent.check(&mesh.pod).unwrap(), Reply::Done);
    assert_eq!(ends(&mesh, &mesh.pod, &listeners), CAPTURED);
}

fn a_container_in_a_new_netns_replaces_its_old_enrolment(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let old = cookie(&mesh.agent, &mesh.pod);
    let again = TestPod::new(&mesh.world, &mesh.cgroup, "again").unwrap();
    let attachment = Attachment { netns: again.attachment().netns, ..mesh.pod.attachment() };
    assert_eq!(add(&mesh.agent, attachment, &again), Reply::Done);
    let new = cookie(&mesh.agent, &mesh.pod);
    let kept = Kept::by(&mesh.agent, backend);
    assert_ne!(old, new);
    assert!(kept.of_pod(old).unwrap().is_empty(), "{:?}", kept.of_pod(old));
    assert_eq!(enrolled(&mesh.agent), ["pod"]);
    assert_eq!(mesh.agent.check(&mesh.pod).unwrap(), Reply::Done);
    let mut listeners = listeners(&mesh, &again);
    listeners.extend(proxy_listeners(&mesh.pod).unwrap());
    listeners.add("app", mesh.pod.app(), (Ipv4Addr::UNSPECIFIED, APP)).unwrap();
    assert_eq!(ends(&mesh, &again, &listeners), CAPTURED);
    assert_eq!(ends(&mesh, &mesh.pod, &listeners), DIRECT);
}

fn gc_keeps_what_is_valid_and_removes_the_rest_of_its_network(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let (kept, other_interface) = (mesh.another_pod("kept").unwrap(), mesh.another_pod("other").unwrap());
    let elsewhere = TestPod::new(&mesh.world, &mesh.cgroup, "elsewhere").unwrap();
    mesh.agent.write_manifest(&dual_stack(&elsewhere)).unwrap();
    let attachment = Attachment { network: "elsewhere".to_owned(), ..elsewhere.attachment() };
    assert_eq!(add(&mesh.agent, attachment, &elsewhere), Reply::Done);
    let gone = [&mesh.pod, &other_interface].map(|pod| cookie(&mesh.agent, pod));
    let valid = |pod: &TestPod, interface: &str| ValidAttachment {
        container_id: pod.attachment().container_id,
        interface: interface.to_owned(),
    };
    let valid = vec![valid(&kept, "eth0"), valid(&other_interface, "net1")];
    let network = kept.attachment().network;
    assert_eq!(mesh.agent.ask(Verb::Gc { network, valid }).unwrap(), Reply::Done);
    assert_eq!(enrolled(&mesh.agent), ["elsewhere", "kept"]);
    let left = Kept::by(&mesh.agent, backend);
    for cookie in gone {
        assert!(left.of_pod(cookie).unwrap().is_empty(), "{:?}", left.of_pod(cookie));
    }
    assert_eq!(mesh.agent.check(&kept).unwrap(), Reply::Done);
    let of_kept = listeners(&mesh, &kept);
    assert_eq!(ends(&mesh, &kept, &of_kept), CAPTURED);
}

#[test]
fn check_finds_a_link_whose_pin_was_removed_and_the_next_add_repairs_it() {
    let mesh = Mesh::new().unwrap();
    let listeners = listeners(&mesh, &mesh.pod);
    Pinned::of(&mesh.agent).remove_netns_link(cookie(&mesh.agent, &mesh.pod)).unwrap();
    let reply = mesh.agent.check(&mesh.pod).unwrap();
    assert_failed(&reply, code::NOT_ENROLLED, "test/pod is not attached to its netns any more");
    // The agent holds the link, so nothing was lost yet.
    assert_eq!(ends(&mesh, &mesh.pod, &listeners), CAPTURED);
    assert_eq!(mesh.agent.add(&mesh.pod).unwrap(), Reply::Done);
    assert_eq!(mesh.agent.check(&mesh.pod).unwrap(), Reply::Done);
    assert_eq!(ends(&mesh, &mesh.pod, &listeners), CAPTURED);
}

#[test]
fn check_finds_a_policy_that_was_removed_and_the_next_add_repairs_it() {
    let mesh = Mesh::new().unwrap();
    let listeners = listeners(&mesh, &mesh.pod);
    Pinned::of(&mesh.agent).remove_policy(cookie(&mesh.agent, &mesh.pod)).unwrap();
    let reply = mesh.agent.check(&mesh.pod).unwrap();
    assert_failed(&reply, code::NOT_ENROLLED, "test/pod has no policy any more");
    assert_eq!(ends(&mesh, &mesh.pod, &listeners), DIRECT);
    assert_eq!(mesh.agent.add(&mesh.pod).unwrap(), Reply::Done);
    assert_eq!(mesh.agent.check(&mesh.pod).unwrap(), Reply::Done);
    assert_eq!(ends(&mesh, &mesh.pod, &listeners), CAPTURED);
}

fn an_add_that_fails_leaves_the_pod_as_it_was(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let kept = Kept::by(&mesh.agent, backend);
    let before = kept.counts().unwrap();
    let pod = TestPod::new(&mesh.world, &mesh.cgroup, "unlucky").unwrap();
    mesh.agent.write_manifest(&dual_stack(&pod)).unwrap();
    if backend == Backend::Ebpf {
        // A record has room for any.
        let attachment = Attachment { container_id: "c".repeat(129), ..pod.attachment() };
        let reply = add(&mesh.agent, attachment, &pod);
        assert_failed(&reply, code::ENROLMENT_FAILED, "container id has 129 bytes, 128 is the most");
    }
    let unknown = PodReference { namespace: "test".to_owned(), name: "unknown".to_owned(), uid: None };
    let reply = add(&mesh.agent, Attachment { pod: Some(unknown), ..pod.attachment() }, &pod);
    assert_failed(&reply, code::TRY_AGAIN, "pod test/unknown is not known");
    mesh.agent.write_manifest(&dual_stack(&pod).with_traffic("excludeInboundPorts", "http")).unwrap();
    let reply = mesh.agent.add(&pod).unwrap();
    assert_failed(&reply, code::INVALID_ANNOTATIONS, "excludeInboundPorts");
    assert_eq!(kept.counts().unwrap(), before);
    let listeners = listeners(&mesh, &pod);
    assert_eq!(ends(&mesh, &pod, &listeners), DIRECT);
    mesh.agent.enrol_as(&pod, &dual_stack(&pod)).unwrap();
    assert_eq!(ends(&mesh, &pod, &listeners), CAPTURED);
}
