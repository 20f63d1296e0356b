//! What the listeners are bound to: one family or both, all addresses or loopback, the proxy's ports or others.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Type};
use veer_tests::istio_init;
use veer_tests::mesh::{APP, INBOUND, Listeners, Mesh, OUTBOUND, connect, dial, dial_from_world, tcp};
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, TestPod, World};

use crate::{PORT, PROXY_PORTS, assert_inbound, assert_meshed, assert_outbound, refused, registered, v4, v6};

const ANY_V4: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const ANY_V6: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

#[test]
fn listeners_of_the_two_families_may_come_in_any_order() {
    for v6_first in [false, true] {
        let mesh = Mesh::new().unwrap();
        let mut listeners = Listeners::default();
        for (label, port) in PROXY_PORTS {
            let mut both = [v4(ANY_V4, port), v6(ANY_V6, port)];
            if v6_first {
                both.reverse();
            }
            for at in both {
                listeners.add(label, mesh.pod.proxy(), at).unwrap();
            }
        }
        assert_meshed(&mesh.world, &mesh.pod, &listeners);
    }
}

#[test]
fn a_family_that_nobody_listens_for_is_refused() {
    let mesh = Mesh::new().unwrap();
    let (in_v4, in_v6) = (v4(mesh.pod.v4(), APP), v6(mesh.pod.v6(), APP));
    let mut listeners = Listeners::default();
    listeners.add("inbound", mesh.pod.proxy(), v6(ANY_V6, INBOUND)).unwrap();
    assert_inbound(&mesh.world, in_v6, &listeners);
    assert!(refused(&mesh.world, in_v4));
    listeners.add("inbound", mesh.pod.proxy(), v4(ANY_V4, INBOUND)).unwrap();
    assert_inbound(&mesh.world, in_v4, &listeners);
    drop(listeners.remove(0));
    crate::wait_registered(&mesh, &mesh.pod, [0, 1]);
    assert!(refused(&mesh.world, in_v6));
    assert_inbound(&mesh.world, in_v4, &listeners);
}

#[test]
fn one_listener_for_both_families_serves_both() {
    let mesh = Mesh::new().unwrap();
    let mut listeners = Listeners::default();
    for (label, port) in PROXY_PORTS {
        let socket = mesh.pod.proxy().tcp6().unwrap();
        socket.set_only_v6(false).unwrap();
        socket.bind(&v6(ANY_V6, port).into()).unwrap();
        listeners.take(label, socket).unwrap();
    }
    assert_meshed(&mesh.world, &mesh.pod, &listeners);
    let (arrival, _client, accepted) =
        dial_from_world(&mesh.world, v4(mesh.pod.v4(), APP), &listeners).unwrap();
    let local = accepted.local_addr().unwrap().as_socket().unwrap();
    assert_eq!(local, v6(mesh.pod.v4().to_ipv6_mapped(), APP));
    assert_eq!(arrival.original, Some(v4(mesh.pod.v4(), APP)), "at the level of IPv4");
}

#[test]
fn a_proxy_on_loopback_alone_gets_everything() {
    let mesh = Mesh::new().unwrap();
    let mut listeners = Listeners::default();
    for (label, port) in PROXY_PORTS {
        listeners.add(label, mesh.pod.proxy(), v4(Ipv4Addr::LOCALHOST, port)).unwrap();
        listeners.add(label, mesh.pod.proxy(), v6(Ipv6Addr::LOCALHOST, port)).unwrap();
    }
    assert_meshed(&mesh.world, &mesh.pod, &listeners);
}

#[test]
fn a_proxy_on_the_pods_address_alone_gets_what_comes_from_the_network() {
    let mesh = Mesh::new().unwrap();
    let mut listeners = Listeners::default();
    listeners.add("inbound", mesh.pod.proxy(), v4(mesh.pod.v4(), INBOUND)).unwrap();
    listeners.add("inbound", mesh.pod.proxy(), v6(mesh.pod.v6(), INBOUND)).unwrap();
    assert_inbound(&mesh.world, v4(mesh.pod.v4(), APP), &listeners);
    assert_inbound(&mesh.world, v6(mesh.pod.v6(), APP), &listeners);
}

#[test]
fn listeners_of_other_ports_are_not_the_proxys() {
    let mesh = Mesh::new().unwrap();
    let mut listeners = Listeners::default();
    for port in [APP, 15000, 15002, 15008, 15053, 15090] {
        listeners.add("other", mesh.pod.proxy(), v4(ANY_V4, port)).unwrap();
        listeners.add("other", mesh.pod.proxy(), v6(ANY_V6, port)).unwrap();
    }
    assert_eq!(registered(&mesh, &mesh.pod), [0, 0]);
    assert!(refused(&mesh.world, v4(mesh.pod.v4(), APP)));
    assert!(listeners.is_idle().unwrap());
    listeners.add("outbound", mesh.pod.proxy(), v4(ANY_V4, OUTBOUND)).unwrap();
    assert_eq!(registered(&mesh, &mesh.pod), [1, 0]);
    assert!(refused(&mesh.world, v4(mesh.pod.v4(), APP)), "the outbound port is not the inbound port");
    assert!(listeners.is_idle().unwrap());
}

#[test]
fn an_apps_ipv6_listener_on_the_inbound_port_does_not_stand_in_the_proxys_way() {
    for app_first in [false, true] {
        let mesh = Mesh::not_enrolled().unwrap();
        // Without dual stack: IPv6 is the app's alone.
        mesh.agent.enrol(&mesh.pod).unwrap();
        let mut listeners = Listeners::default();
        let add_app = |listeners: &mut Listeners| {
            listeners.add("app", mesh.pod.app(), v6(ANY_V6, INBOUND)).unwrap();
        };
        if app_first {
            add_app(&mut listeners);
        }
        listeners.add("inbound", mesh.pod.proxy(), v4(ANY_V4, INBOUND)).unwrap();
        if !app_first {
            add_app(&mut listeners);
        }
        assert_inbound(&mesh.world, v4(mesh.pod.v4(), APP), &listeners);
        let to_app = v6(mesh.pod.v6(), INBOUND);
        let (arrival, ..) = dial_from_world(&mesh.world, to_app, &listeners).unwrap();
        assert_eq!((arrival.at, arrival.local), ("app", to_app));
    }
}

#[test]
fn an_app_with_any_number_of_listeners_on_the_inbound_port_leaves_the_proxy_its_room() {
    let mesh = Mesh::not_enrolled().unwrap();
    mesh.agent.enrol(&mesh.pod).unwrap();
    let mut listeners = Listeners::default();
    for _ in 0..200 {
        let socket = mesh.pod.app().tcp6().unwrap();
        socket.set_only_v6(true).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&v6(ANY_V6, INBOUND).into()).unwrap();
        listeners.take("app", socket).unwrap();
    }
    assert!(refused(&mesh.world, v4(mesh.pod.v4(), APP)));
    listeners.add("inbound", mesh.pod.proxy(), v4(ANY_V4, INBOUND)).unwrap();
    assert_inbound(&mesh.world, v4(mesh.pod.v4(), APP), &listeners);
}

#[test]
fn a_listener_where_nothing_is_redirected_to_is_not_the_proxys() {
    let mesh = Mesh::new().unwrap();
    let elsewhere = v4(Ipv4Addr::new(127, 0, 0, 9), INBOUND);
    let mut listeners = Listeners::default();
    listeners.add("app", mesh.pod.app(), elsewhere).unwrap();
    assert_eq!(registered(&mesh, &mesh.pod), [0, 0]);
    assert!(refused(&mesh.world, v4(mesh.pod.v4(), APP)));
    listeners.add("inbound", mesh.pod.proxy(), v4(Ipv4Addr::LOCALHOST, INBOUND)).unwrap();
    assert_inbound(&mesh.world, v4(mesh.pod.v4(), APP), &listeners);
    let (arrival, ..) = dial(mesh.pod.app(), elsewhere, &listeners).unwrap();
    assert_eq!((arrival.at, arrival.local), ("app", elsewhere));
}

/// Dials as Envoy does for a request that it hands to the app: bound to 127.0.0.6.
fn pass_through(pod: &TestPod, to: SocketAddr, app: &Listeners) -> Option<&'static str> {
    let passthrough = if to.is_ipv4() {
        v4(Ipv4Addr::new(127, 0, 0, 6), 0)
    } else {
        v6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6), 0)
    };
    let socket = tcp(pod.proxy(), to).unwrap();
    socket.bind(&passthrough.into()).unwrap();
    connect(&socket, to).ok()?;
    let (arrival, _accepted) = app.accept().unwrap();
    assert_eq!((arrival.local, arrival.peer.ip()), (to, passthrough.ip()));
    Some(arrival.at)
}

#[test]
fn apps_on_the_pods_address_and_on_loopback_get_what_they_would_under_istio_init() {
    let mesh = Mesh::new().unwrap();
    let world = World::new().unwrap();
    let reference = TestPod::new(&world, &mesh.cgroup, "reference").unwrap();
    istio_init::apply(reference.netns()).unwrap();
    let reached = [(&mesh.world, &mesh.pod), (&world, &reference)].map(|(world, pod)| {
        let _proxy = veer_tests::mesh::proxy_listeners(pod).unwrap();
        let mut app = Listeners::default();
        app.add("on the pod's address", pod.app(), v4(pod.v4(), APP)).unwrap();
        app.add("on loopback", pod.app(), v4(Ipv4Addr::LOCALHOST, APP)).unwrap();
        app.add("on the pod's IPv6 address", pod.app(), v6(pod.v6(), APP)).unwrap();
        app.add("on the pod's address alone", pod.app(), v4(pod.v4(), APP + 1)).unwrap();
        app.add("on loopback alone", pod.app(), v4(Ipv4Addr::LOCALHOST, APP + 2)).unwrap();
        let to = [
            v4(pod.v4(), APP),
            v4(Ipv4Addr::LOCALHOST, APP),
            v6(pod.v6(), APP),
            v6(Ipv6Addr::LOCALHOST, APP),
            v4(pod.v4(), APP + 1),
            v4(Ipv4Addr::LOCALHOST, APP + 1),
            v4(pod.v4(), APP + 2),
            v4(Ipv4Addr::LOCALHOST, APP + 2),
        ];
        let passed = to.map(|to| pass_through(pod, to, &app));
        // The app's own dials, for comparison.
        let own = [to[0], to[1], to[2]].map(|to| dial(pod.app(), to, &app).unwrap().0.at);
        // From the network it is always the proxy's.
        let client = world.tcp4().unwrap();
        connect(&client, to[0]).unwrap();
        assert!(app.is_idle().unwrap());
        (passed, own)
    });
    let [veer, iptables] = reached;
    assert_eq!(veer, iptables);
    let (pods, loopback) = (Some("on the pod's address"), Some("on loopback"));
    let alone = (Some("on the pod's address alone"), Some("on loopback alone"));
    let pods6 = Some("on the pod's IPv6 address");
    assert_eq!(veer.0, [pods, loopback, pods6, None, alone.0, None, None, alone.1]);
}

/// The proxy as a Go program has it since 1.24, where every net.Listen is one of MPTCP: istio-validation.
fn go_listeners(mesh: &Mesh) -> Listeners {
    let mut listeners = Listeners::default();
    for (label, port) in PROXY_PORTS {
        for at in [v4(Ipv4Addr::LOCALHOST, port), v6(Ipv6Addr::LOCALHOST, port)] {
            let maker = mesh.pod.proxy();
            let socket = maker.socket(Domain::for_address(at), Type::STREAM, Some(Protocol::MPTCP)).unwrap();
            listeners.listen(label, socket, at).unwrap();
        }
    }
    listeners
}

#[test]
fn an_mptcp_listener_learns_the_original_destination() {
    let mesh = Mesh::new().unwrap();
    let listeners = go_listeners(&mesh);
    assert_outbound(&mesh.pod, v4(REMOTE_V4, PORT), &listeners);
    assert_outbound(&mesh.pod, v6(REMOTE_V6, PORT), &listeners);
    // What istio-validation does: as the proxy, from loopback to another loopback address.
    let pairs = [
        (v4(Ipv4Addr::LOCALHOST, 0), v4(Ipv4Addr::new(127, 0, 0, 6), 15002)),
        (v6(Ipv6Addr::LOCALHOST, 0), v6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6), 15002)),
    ];
    for (from, to) in pairs {
        let socket = tcp(mesh.pod.proxy(), to).unwrap();
        socket.bind(&from.into()).unwrap();
        connect(&socket, to).unwrap();
        let (arrival, _accepted) = listeners.accept().unwrap();
        assert_eq!((arrival.at, arrival.original), ("inbound", Some(to)));
    }
}

#[test]
fn an_mptcp_listener_of_the_inbound_port_is_told_apart_from_none() {
    // A limit: the kernel lets no MPTCP socket into a map that an inbound connection could be given from.
    // So it is refused rather than let through, and `veer pods` says why.
    let mesh = Mesh::new().unwrap();
    let listeners = go_listeners(&mesh);
    assert!(refused(&mesh.world, v4(mesh.pod.v4(), APP)));
    assert!(listeners.is_idle().unwrap());
    assert_eq!(mesh.counter("faults", "listener-not-registered").unwrap(), 4);
}
