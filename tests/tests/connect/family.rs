//! Pods without IPv6, and pods whose proxy does not serve it.

use std::net::SocketAddr;

use veer_tests::mesh::{APP, Listeners, Mesh, dial, dial_from_world, dual_stack};
use veer_tests::pod::ROUTER_V6;
use veer_tests::veth::ip;

use crate::{PORT, TO_V4, TO_V6, assert_direct, assert_redirected, connect, mapped, outside, tcp};

#[test]
fn a_pod_without_an_ipv6_address_fails_to_dial_ipv6_as_it_would_without_the_mesh() {
    let mesh = Mesh::not_enrolled().unwrap();
    let commands =
        [format!("route del default via {ROUTER_V6}"), format!("address del {}/64 dev eth0", mesh.pod.v6())];
    ip(mesh.pod.netns(), commands).unwrap();
    let to = TO_V6.into();
    let fails = || connect(&tcp(mesh.pod.app(), to), to).unwrap_err().raw_os_error().unwrap();
    let without_the_mesh = fails();
    mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
    let mut listeners = mesh.proxy_listeners().unwrap();
    listeners.extend(outside(&mesh.world, &[PORT]));
    assert_eq!(fails(), without_the_mesh);
    assert!(listeners.is_idle().unwrap());
    assert_eq!(mesh.counter("reasons", "no-address-of-family").unwrap(), 1);
    let (arrival, dialled, _accepted) = dial(mesh.pod.app(), TO_V4, &listeners).unwrap();
    assert_redirected(&arrival, &mesh.pod, &dialled, TO_V4.into());
}

#[test]
fn without_dual_stack_ipv6_is_left_alone_both_ways() {
    let mesh = Mesh::not_enrolled().unwrap();
    mesh.agent.enrol(&mesh.pod).unwrap();
    let mut listeners = mesh.proxy_listeners().unwrap();
    listeners.extend(outside(&mesh.world, &[PORT]));
    let mut app = Listeners::default();
    app.add("app", mesh.pod.app(), (std::net::Ipv4Addr::UNSPECIFIED, APP)).unwrap();
    app.add("app", mesh.pod.app(), (std::net::Ipv6Addr::UNSPECIFIED, APP)).unwrap();
    listeners.extend(app);

    for maker in [mesh.pod.app(), mesh.pod.proxy()] {
        let (arrival, dialled, _accepted) = dial(maker, TO_V6, &listeners).unwrap();
        assert_direct(&arrival, &mesh.pod, &dialled, TO_V6.into());
        // O6 is a rule for IPv6, too, which such a pod does not have.
        let own = SocketAddr::from((mesh.pod.v6(), APP));
        let (arrival, ..) = dial(maker, own, &listeners).unwrap();
        assert_eq!((arrival.at, arrival.local), ("app", own));
    }
    let (arrival, ..) = dial_from_world(&mesh.world, (mesh.pod.v6(), APP), &listeners).unwrap();
    assert_eq!(arrival.at, "app");

    for to in [TO_V4.into(), mapped(TO_V4.0, TO_V4.1)] {
        let socket = tcp(mesh.pod.app(), to);
        connect(&socket, to).unwrap();
        let (arrival, _accepted) = listeners.accept().unwrap();
        assert_redirected(&arrival, &mesh.pod, &socket, to);
    }
    let (arrival, ..) = dial_from_world(&mesh.world, (mesh.pod.v4(), APP), &listeners).unwrap();
    assert_eq!(arrival.at, "inbound");
}
