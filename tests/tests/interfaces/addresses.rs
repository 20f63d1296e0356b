//! Addresses that a pod gains or loses after its enrolment.

use std::net::SocketAddr;

use nix::sys::signal::Signal;
use veer_tests::mesh::{APP, Mesh, dial, dual_stack, proxy_listeners};
use veer_tests::pod::{REMOTE_V6, ROUTER_V6};
use veer_tests::veth::ip;
use veer_tests::wait;

use crate::{SECOND, add_second_interface, enrolled, listeners, wait_ends_at, wait_is_own, wait_link_gone};

#[test]
fn an_interface_that_is_added_later_brings_addresses_of_the_pods_own() {
    let (mesh, listeners) = enrolled();
    add_second_interface(&mesh.world, &mesh.pod);
    for own in SECOND {
        wait_is_own(&mesh.pod, own, &listeners);
    }
}

#[test]
fn an_address_that_the_pod_loses_is_as_any_other() {
    let (mesh, listeners) = enrolled();
    add_second_interface(&mesh.world, &mesh.pod);
    for own in SECOND {
        wait_is_own(&mesh.pod, own, &listeners);
    }
    ip(mesh.pod.netns(), ["link delete net1"]).unwrap();
    for lost in SECOND {
        wait_ends_at(mesh.pod.app(), lost, &listeners, "outbound");
        let (arrival, ..) = dial(mesh.pod.app(), lost, &listeners).unwrap();
        assert_eq!(arrival.original, Some(lost));
    }
}

#[test]
fn what_changed_while_no_agent_was_there_is_known_when_the_next_one_is() {
    let (mut mesh, listeners) = enrolled();
    mesh.agent.stop().unwrap();
    add_second_interface(&mesh.world, &mesh.pod);
    mesh.agent.start_again().unwrap();
    for own in SECOND {
        // At once: it looked before it was ready.
        let (arrival, ..) = dial(mesh.pod.app(), own, &listeners).unwrap();
        assert_eq!(arrival.at, "app");
    }
    // And it goes on to follow.
    ip(mesh.pod.netns(), ["link delete net1"]).unwrap();
    wait_ends_at(mesh.pod.app(), SECOND[0], &listeners, "outbound");
}

#[test]
fn a_pod_whose_ipv6_comes_late_has_it_captured_from_then_on() {
    let mesh = Mesh::not_enrolled().unwrap();
    let own = mesh.pod.v6();
    ip(mesh.pod.netns(), [format!("address delete {own}/64 dev eth0")]).unwrap();
    mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
    let mut all = proxy_listeners(&mesh.pod).unwrap();
    let remote = SocketAddr::from((REMOTE_V6, 80));
    all.add_in_world("outside", &mesh.world, remote).unwrap();
    ip(
        mesh.pod.netns(),
        [
            format!("address add {own}/64 dev eth0 nodad"),
            format!("route replace default via {ROUTER_V6} dev eth0"),
        ],
    )
    .unwrap();
    wait_ends_at(mesh.pod.app(), remote, &all, "outbound");
    let (arrival, ..) = dial(mesh.pod.app(), remote, &all).unwrap();
    assert_eq!((arrival.original, arrival.peer.ip()), (Some(remote), own.into()));
    let inbound = SocketAddr::from((own, APP));
    let (arrival, ..) = veer_tests::mesh::dial_from_world(&mesh.world, inbound, &all).unwrap();
    assert_eq!((arrival.at, arrival.original), ("inbound", Some(inbound)));
}

#[test]
fn a_pod_that_loses_its_ipv4_keeps_its_ipv6_from_a_proxy_that_does_not_serve_it() {
    let mesh = Mesh::not_enrolled().unwrap();
    // Without dual stack.
    mesh.agent.enrol(&mesh.pod).unwrap();
    let mut all = listeners(&mesh.pod);
    let remote = SocketAddr::from((REMOTE_V6, 80));
    all.add_in_world("outside", &mesh.world, remote).unwrap();
    let mark: SocketAddr = "[fd99::9]:8080".parse().unwrap();
    ip(
        mesh.pod.netns(),
        [
            format!("address delete {}/24 dev eth0", mesh.pod.v4()),
            // Changed last, so that whoever knows it knows of the other, too.
            format!("address add {}/128 dev lo nodad", mark.ip()),
        ],
    )
    .unwrap();
    let counted = || mesh.counter("reasons", "app-to-own-address").unwrap();
    let before = counted();
    wait::until("the address to be known", wait::LIMIT, || {
        // An IPv6 address is there a moment before it can be reached.
        dial(mesh.pod.app(), mark, &all).is_ok() && counted() > before
    })
    .unwrap();
    let (arrival, ..) = dial(mesh.pod.app(), remote, &all).unwrap();
    assert_eq!((arrival.at, arrival.original), ("outside", None));
}

#[test]
fn thousands_of_changes_end_with_what_is_there() {
    const COUNT: u16 = 2000;
    let (mesh, listeners) = enrolled();
    let address = |number: u16| format!("10.91.{}.{}/32 dev lo", number / 250, number % 250 + 1);
    let added = (0..COUNT).map(|number| format!("address add {}", address(number)));
    // All but the last go again.
    let removed = (0..COUNT - 1).map(|number| format!("address delete {}", address(number)));
    ip(mesh.pod.netns(), added.chain(removed)).unwrap();
    wait_is_own(&mesh.pod, SocketAddr::from(([10, 91, 7, 250], APP)), &listeners);
    wait_ends_at(mesh.pod.app(), SocketAddr::from(([10, 91, 0, 1], APP)), &listeners, "outbound");
}

#[test]
fn a_change_that_the_kernel_could_not_report_is_seen_all_the_same() {
    let (mesh, listeners) = enrolled();
    let noisy = mesh.another_pod("noisy").unwrap();
    mesh.agent.signal(Signal::SIGSTOP).unwrap();
    // More than the agent's socket holds, so that the report on the other pod is lost.
    let flood =
        (0..1000).flat_map(|_| ["address add 10.92.0.1/32 dev lo", "address delete 10.92.0.1/32 dev lo"]);
    ip(noisy.netns(), flood).unwrap();
    add_second_interface(&mesh.world, &mesh.pod);
    mesh.agent.signal(Signal::SIGCONT).unwrap();
    for own in SECOND {
        wait_is_own(&mesh.pod, own, &listeners);
    }
    assert!(mesh.agent.log().contains("more changes of addresses than the kernel could report"));
}

#[test]
fn the_agent_keeps_no_netns_alive() {
    let (mesh, _listeners) = enrolled();
    let pod = mesh.another_pod("short").unwrap();
    // The other end of its eth0, which goes with the netns. Nobody tells the agent.
    let port = "pod3";
    assert!(crate::has_link(mesh.world.netns(), port));
    drop(pod);
    wait_link_gone(mesh.world.netns(), port);
}
