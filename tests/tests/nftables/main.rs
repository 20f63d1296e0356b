//! nftables in the place of eBPF: when it is taken, what it leaves, and what becomes of its pods when agents come and
//! go. Where connections end is in the tests that run under both backends, and in the matrix.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests panic as tests do")]

mod choice;
mod restart;
mod trace;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use serde_json::Value;
use veer_tests::agent::Agent;
use veer_tests::manifest::Manifest;
use veer_tests::mesh::{APP, Listeners, Mesh, dial, dial_from_world, proxy_listeners};
use veer_tests::netns::NetNs;
use veer_tests::pod::{REMOTE_V4, TestPod};

const REMOTE: SocketAddr = SocketAddr::new(IpAddr::V4(REMOTE_V4), 80);
const CAPTURED: (&str, &str) = ("outbound", "inbound");
const DIRECT: (&str, &str) = ("outside", "app");

/// The proxy's listeners, an app, and a server outside.
fn listeners(mesh: &Mesh, pod: &TestPod) -> Listeners {
    let mut listeners = proxy_listeners(pod).unwrap();
    listeners.add("app", pod.app(), (Ipv4Addr::UNSPECIFIED, APP)).unwrap();
    listeners.add_in_world("outside", &mesh.world, REMOTE).unwrap();
    listeners
}

/// The same, and those of another pod.
fn listeners_of_two(mesh: &Mesh, other: &TestPod) -> Listeners {
    let mut listeners = listeners(mesh, &mesh.pod);
    listeners.extend(proxy_listeners(other).unwrap());
    listeners.add("app", other.app(), (Ipv4Addr::UNSPECIFIED, APP)).unwrap();
    listeners
}

/// Where connections of the pod and to the pod end.
fn ends(mesh: &Mesh, pod: &TestPod, listeners: &Listeners) -> (&'static str, &'static str) {
    let (outbound, ..) = dial(pod.app(), REMOTE, listeners).unwrap();
    let (inbound, ..) = dial_from_world(&mesh.world, (pod.v4(), APP), listeners).unwrap();
    (outbound.at, inbound.at)
}

/// A pod as `veer pods` has it.
fn view(agent: &Agent, pod: &TestPod) -> Value {
    agent.json(&["pods", &format!("test/{}", pod.name())]).unwrap()
}

/// Everything that rules are made from, at once.
fn with_everything(manifest: Manifest) -> Manifest {
    manifest
        .with_proxy_env("ISTIO_META_DNS_CAPTURE", "true")
        .with_proxy_env("INVALID_DROP", "true")
        .with_traffic("includeOutboundIPRanges", "192.0.2.0/24,2001:db8::/32")
        .with_traffic("excludeOutboundIPRanges", "198.51.100.0/24")
        .with_traffic("excludeOutboundPorts", "9000,9001")
        .with_traffic("includeOutboundPorts", "5432")
        .with_traffic("excludeInterfaces", "net1")
        .with_annotation("istio.io/reroute-virtual-interfaces", "vm0")
}

/// What a program prints in a netns.
fn said(netns: &NetNs, program: &[&str]) -> String {
    let (name, arguments) = program.split_first().unwrap();
    let output = netns.run(|| Command::new(name).args(arguments).output()).unwrap().unwrap();
    assert!(output.status.success(), "{program:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Rules of nftables, without what they have counted.
fn rules(netns: &NetNs) -> String {
    said(netns, &["nft", "--stateless", "list", "ruleset"])
}

/// Everything in a netns that redirection could leave something in.
fn dump(netns: &NetNs) -> Vec<String> {
    let rest = [
        &["ip", "-4", "rule"][..],
        &["ip", "-6", "rule"],
        &["ip", "-4", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "address", "show", "lo"],
    ];
    [rules(netns)].into_iter().chain(rest.map(|program| said(netns, program))).collect()
}
