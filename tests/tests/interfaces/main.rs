//! Interfaces and addresses of a pod that are not there when it is enrolled: what Multus adds, what comes late,
//! what goes again.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod addresses;
mod excluded;
mod explained;
mod rerouted;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use veer_tests::mesh::{APP, Listeners, Mesh, PATIENCE, dial, proxy_listeners};
use veer_tests::netns::NetNs;
use veer_tests::pod::{TestPod, World};
use veer_tests::socket_maker::Maker;
use veer_tests::veth::{self, End, ip};
use veer_tests::wait;

/// The pod's address on its second interface.
const SECOND_V4: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
/// The same for IPv6.
const SECOND_V6: Ipv6Addr = Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 2);

/// Both with the app's port.
const SECOND: [SocketAddr; 2] = [
    SocketAddr::new(std::net::IpAddr::V4(SECOND_V4), APP),
    SocketAddr::new(std::net::IpAddr::V6(SECOND_V6), APP),
];

/// Gives a pod a second interface as Multus does, `net1`, and the world its other end.
fn add_second_interface(world: &World, pod: &TestPod) {
    let addresses = SECOND.map(|own| format!("{}/{}", own.ip(), if own.is_ipv4() { 24 } else { 64 }));
    let addresses = addresses.each_ref().map(String::as_str);
    veth::pair(
        End { netns: pod.netns(), name: "net1", addresses: &addresses },
        End { netns: world.netns(), name: "second", addresses: &["10.88.0.1/24", "fd88::1/64"] },
    )
    .unwrap();
}

/// The proxy, and the app on all addresses.
fn listeners(pod: &TestPod) -> Listeners {
    let mut listeners = proxy_listeners(pod).unwrap();
    listeners.add("app", pod.app(), (Ipv4Addr::UNSPECIFIED, APP)).unwrap();
    listeners.add("app", pod.app(), (Ipv6Addr::UNSPECIFIED, APP)).unwrap();
    listeners
}

/// Waits until what is dialled ends at a listener: the agent hears of a change in its own time.
#[track_caller]
fn wait_ends_at(maker: &Maker, to: SocketAddr, listeners: &Listeners, wanted: &str) {
    let mut last = None;
    let outcome = wait::until(&format!("{to} to end at {wanted}"), wait::LIMIT, || {
        // An IPv6 address is the kernel's own once the link is ready, and the agent may know it before.
        let dialled = dial(maker, to, listeners).map(|(arrival, ..)| arrival);
        let arrived = dialled.as_ref().is_ok_and(|arrival| arrival.at == wanted);
        last = Some(dialled);
        arrived
    });
    outcome.unwrap_or_else(|late| panic!("{late}; the last ended as {last:?}"));
}

/// O2 and O6: the app reaches it directly, the proxy by the inbound port.
#[track_caller]
fn wait_is_own(pod: &TestPod, own: SocketAddr, listeners: &Listeners) {
    wait_ends_at(pod.app(), own, listeners, "app");
    let (arrival, ..) = dial(pod.proxy(), own, listeners).unwrap();
    assert_eq!((arrival.at, arrival.original), ("inbound", Some(own)));
}

/// Whether a netns has a link.
fn has_link(netns: &NetNs, name: &str) -> bool {
    ip(netns, [format!("link show {name}")]).is_ok()
}

/// A pod of its own that is enrolled, and where its connections end.
fn enrolled() -> (Mesh, Listeners) {
    let mesh = Mesh::new().unwrap();
    let listeners = listeners(&mesh.pod);
    (mesh, listeners)
}

/// Waits until a link is gone from a netns.
#[track_caller]
fn wait_link_gone(netns: &NetNs, name: &str) {
    wait::until(&format!("{name} to go"), PATIENCE, || !has_link(netns, name)).unwrap();
}
