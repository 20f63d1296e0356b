//! What the node's settings and TPROXY mode change of the decision table, on sockets.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Socket, Type};
use veer_tests::backend::Backend;
use veer_tests::launch::{Identity, Launch};
use veer_tests::mesh::{APP, Arrival, Listeners, Mesh, PATIENCE, dial, dial_from_world, dual_stack};
use veer_tests::on_each_backend;
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, ROUTER_V4, ROUTER_V6};
use veer_tests::socket_maker::Maker;

on_each_backend! {
    with_tproxy_the_tunnel_port_is_captured_too_and_the_proxy_sees_both_ends,
    with_tproxy_the_proxy_is_root_and_known_by_its_group,
    with_tproxy_what_the_proxy_hands_on_with_its_mark_reaches_the_app_and_comes_back,
    excluded_owner_groups_are_not_captured,
    of_included_owner_groups_alone_connections_are_captured,
    a_wider_loopback_range_leaves_the_proxy_alone_in_all_of_it,
}

const TUNNEL: u16 = 15008;
/// Of what such a proxy hands on.
const MARK: u32 = 1337;

fn tproxy(backend: Backend) -> Mesh {
    Mesh::on_with(backend, |manifest| manifest.with_annotation("sidecar.istio.io/interceptionMode", "TPROXY"))
        .unwrap()
}

/// A pod of a node whose agent has a further argument.
fn node_with(backend: Backend, argument: &str) -> Mesh {
    let mesh = Mesh::on_node(Launch::new(), &[&backend.flag(), argument]).unwrap();
    mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
    mesh
}

/// The proxy's listeners, an app on two ports, and servers outside.
fn listeners(mesh: &Mesh) -> Listeners {
    let mut listeners = mesh.proxy_listeners().unwrap();
    for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
        listeners.add("app", mesh.pod.app(), (any, APP)).unwrap();
        listeners.add("tunnel", mesh.pod.app(), (any, TUNNEL)).unwrap();
    }
    for remote in [IpAddr::from(REMOTE_V4), REMOTE_V6.into()] {
        listeners.add_in_world("outside", &mesh.world, (remote, 80)).unwrap();
    }
    listeners
}

fn own(mesh: &Mesh) -> [IpAddr; 2] {
    [mesh.pod.v4().into(), mesh.pod.v6().into()]
}

#[track_caller]
fn dials(maker: &Maker, to: impl Into<SocketAddr>, listeners: &Listeners) -> Arrival {
    dial(maker, to.into(), listeners).unwrap().0
}

fn with_tproxy_the_tunnel_port_is_captured_too_and_the_proxy_sees_both_ends(backend: Backend) {
    let mesh = tproxy(backend);
    let listeners = listeners(&mesh);
    if backend == Backend::Nftables {
        // The rule asks for it, as iptables' does, and Istio gives such a proxy the capability.
        listeners.be_transparent().unwrap();
    }
    for (own, router) in own(&mesh).into_iter().zip([IpAddr::from(ROUTER_V4), ROUTER_V6.into()]) {
        for port in [TUNNEL, APP] {
            let to = SocketAddr::new(own, port);
            let (arrival, client, _accepted) = dial_from_world(&mesh.world, to, &listeners).unwrap();
            assert_eq!((arrival.at, arrival.local, arrival.original), ("inbound", to, Some(to)));
            assert_eq!(arrival.peer, client.local_addr().unwrap().as_socket().unwrap());
            assert_eq!(arrival.peer.ip(), router);
        }
    }
}

fn with_tproxy_the_proxy_is_root_and_known_by_its_group(backend: Backend) {
    let mesh = tproxy(backend);
    let listeners = listeners(&mesh);
    let proxy = mesh.pod.maker(Identity::new(0, 1337)).unwrap();
    for (own, remote) in own(&mesh).into_iter().zip([IpAddr::from(REMOTE_V4), REMOTE_V6.into()]) {
        let to = SocketAddr::new(own, APP);
        let arrival = dials(&proxy, to, &listeners);
        assert_eq!((arrival.at, arrival.original), ("inbound", Some(to)), "O6");
        assert_eq!(dials(&proxy, (own, TUNNEL), &listeners).at, "tunnel", "O11");
        assert_eq!(dials(&proxy, (remote, 80), &listeners).at, "outside", "O10");
        assert_eq!(dials(mesh.pod.root(), (own, APP), &listeners).at, "app", "O2");
        assert_eq!(dials(mesh.pod.root(), (remote, 80), &listeners).at, "outbound", "O1");
    }
    let to = SocketAddr::from(([127, 0, 0, 2], APP));
    let arrival = dials(&proxy, to, &listeners);
    assert_eq!((arrival.at, arrival.original), ("inbound", Some(to)), "O7");
    assert_eq!(dials(&proxy, ([127, 0, 0, 1], APP), &listeners).at, "app", "O9");
}

/// As Envoy does with `OriginalSrc`, which istiod gives to the listeners of such a proxy: from the address of its client.
fn with_tproxy_what_the_proxy_hands_on_with_its_mark_reaches_the_app_and_comes_back(backend: Backend) {
    let mesh = tproxy(backend);
    let listeners = listeners(&mesh);
    // What rules of TPROXY ask of a listener; Envoy's are so, and programs ask nothing.
    listeners.be_transparent().unwrap();
    let proxy = mesh.pod.maker(Identity::new(0, 1337)).unwrap();
    for (own, client) in own(&mesh).into_iter().zip([IpAddr::from(ROUTER_V4), ROUTER_V6.into()]) {
        let to = SocketAddr::new(own, APP);
        let (arrival, outer, inner) = dial_from_world(&mesh.world, (own, APP), &listeners).unwrap();
        assert_eq!((arrival.at, arrival.peer.ip()), ("inbound", client));
        let to_app = proxy.socket(Domain::for_address(to), Type::STREAM, None).unwrap();
        match client {
            IpAddr::V4(_) => to_app.set_ip_transparent_v4(true).unwrap(),
            IpAddr::V6(_) => to_app.set_ip_transparent_v6(true).unwrap(),
        }
        to_app.set_mark(MARK).unwrap();
        to_app.bind(&SocketAddr::new(client, 0).into()).unwrap();
        to_app.connect_timeout(&to.into(), PATIENCE).unwrap();
        let (at_app, accepted) = listeners.accept().unwrap();
        assert_eq!((at_app.at, at_app.local, at_app.peer.ip()), ("app", to, client));
        for (one, other) in [(&to_app, &accepted), (&outer, &inner)] {
            exchange(one, other);
            exchange(other, one);
        }
    }
    assert_eq!(mesh.counter("reasons", "proxy-mark").unwrap(), 2);
}

fn exchange(mut from: &Socket, mut to: &Socket) {
    to.set_read_timeout(Some(PATIENCE)).unwrap();
    from.write_all(b"a").unwrap();
    to.read_exact(&mut [0]).unwrap();
}

fn excluded_owner_groups_are_not_captured(backend: Backend) {
    let mesh = node_with(backend, "--outbound-owner-groups-exclude=3000,3001");
    let listeners = listeners(&mesh);
    let excluded = mesh.pod.maker(Identity::new(1000, 3001)).unwrap();
    let supplementary = mesh.pod.maker(Identity::app().with_groups(&[3001])).unwrap();
    for remote in [IpAddr::from(REMOTE_V4), REMOTE_V6.into()] {
        assert_eq!(dials(&excluded, (remote, 80), &listeners).at, "outside");
        assert_eq!(
            dials(&supplementary, (remote, 80), &listeners).at,
            "outbound",
            "the primary group counts"
        );
        assert_eq!(dials(mesh.pod.app(), (remote, 80), &listeners).at, "outbound");
    }
    assert_eq!(mesh.counter("reasons", "owner-group").unwrap(), 2);
}

fn of_included_owner_groups_alone_connections_are_captured(backend: Backend) {
    let mesh = node_with(backend, "--outbound-owner-groups=3000");
    let listeners = listeners(&mesh);
    let included = mesh.pod.maker(Identity::new(1000, 3000)).unwrap();
    for (own, remote) in own(&mesh).into_iter().zip([IpAddr::from(REMOTE_V4), REMOTE_V6.into()]) {
        assert_eq!(dials(&included, (remote, 80), &listeners).at, "outbound");
        assert_eq!(dials(mesh.pod.app(), (remote, 80), &listeners).at, "outside");
        // The proxy's rules come first, and what arrives has no owner.
        assert_eq!(dials(mesh.pod.proxy(), (own, APP), &listeners).at, "inbound");
        assert_eq!(dial_from_world(&mesh.world, (own, APP), &listeners).unwrap().0.at, "inbound");
    }
}

fn a_wider_loopback_range_leaves_the_proxy_alone_in_all_of_it(backend: Backend) {
    let mesh = node_with(backend, "--host-ipv4-loopback-cidr=127.0.0.0/8");
    let listeners = listeners(&mesh);
    assert_eq!(dials(mesh.pod.proxy(), ([127, 0, 0, 2], APP), &listeners).at, "app", "O7 does not hold");
    let own = SocketAddr::new(mesh.pod.v4().into(), APP);
    assert_eq!(dials(mesh.pod.proxy(), own, &listeners).at, "inbound");
}
