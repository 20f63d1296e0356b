//! The decision table, row by row, on sockets: who dials what, and where it ends, whatever redirects.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests panic as tests do")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use veer_tests::backend::Backend;
use veer_tests::launch::Identity;
use veer_tests::mesh::{
    APP, Arrival, INBOUND, Listeners, Mesh, OUTBOUND, connect, dial, dial_from_world, of_family, tcp,
};
use veer_tests::on_each_backend;
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, ROUTER_V4, ROUTER_V6};
use veer_tests::socket_maker::Maker;

on_each_backend! {
    i1_any_tcp_port_from_the_network_goes_to_the_inbound_port,
    i2_the_proxys_own_and_excluded_ports_are_direct,
    i2_included_ports_alone_are_captured_and_make_the_exclude_list_irrelevant,
    i3_udp_is_direct,
    o1_an_apps_connection_to_a_remote_goes_to_the_outbound_port,
    o2_o3_an_app_reaches_its_own_pod_directly,
    o4_a_service_that_the_pod_is_part_of_goes_out_and_comes_in_again,
    o5_excluded_ports_and_ranges_are_direct,
    o5_included_ranges_and_ports_are_captured_alone_and_exclusion_beats_both,
    o5_an_empty_include_list_captures_nothing,
    o6_the_proxy_reaches_its_own_pod_through_the_inbound_port,
    o7_the_proxy_reaches_other_loopback_addresses_through_the_inbound_port,
    o8_what_is_bound_to_the_passthrough_source_is_direct,
    o9_the_proxy_reaches_localhost_directly,
    o10_the_proxys_own_connections_to_a_remote_are_direct,
    o11_the_tunnel_port_and_excluded_ports_are_direct_for_the_proxy,
    o12_by_its_primary_group_alone_a_process_is_the_proxy_only_towards_remotes,
    o13_by_its_uid_alone_a_process_is_the_proxy,
    o14_a_supplementary_group_does_not_make_a_process_the_proxy,
    o15_an_included_loopback_range_is_captured_but_for_localhost,
    long_lists_are_never_truncated,
    identity_is_the_creators_and_not_that_of_whoever_connects,
}

/// What a row needs of one family.
struct Family {
    own: IpAddr,
    remote: IpAddr,
    router: IpAddr,
    localhost: IpAddr,
    unspecified: IpAddr,
    passthrough: IpAddr,
}

fn families(mesh: &Mesh) -> [Family; 2] {
    [false, true].map(|v6| Family {
        own: of_family(v6, mesh.pod.v4(), mesh.pod.v6()),
        remote: of_family(v6, REMOTE_V4, REMOTE_V6),
        router: of_family(v6, ROUTER_V4, ROUTER_V6),
        localhost: of_family(v6, Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
        unspecified: of_family(v6, Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
        passthrough: of_family(v6, Ipv4Addr::new(127, 0, 0, 6), Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)),
    })
}

/// The proxy's listeners, an app on all addresses, and a server outside.
fn listeners(mesh: &Mesh, outside_port: u16) -> Listeners {
    let mut listeners = mesh.proxy_listeners().unwrap();
    for family in families(mesh) {
        listeners.add("app", mesh.pod.app(), (family.unspecified, APP)).unwrap();
        listeners.add_in_world("outside", &mesh.world, (family.remote, outside_port)).unwrap();
    }
    listeners
}

#[track_caller]
fn assert_at(arrival: &Arrival, at: &str, original: SocketAddr) {
    assert_eq!((arrival.at, arrival.original), (at, Some(original)), "{arrival:?}");
}

#[track_caller]
fn dials(maker: &Maker, to: (IpAddr, u16), listeners: &Listeners) -> Arrival {
    match dial(maker, to, listeners) {
        Ok((arrival, _dialled, _accepted)) => arrival,
        Err(error) => panic!("{to:?}: {error:#}"),
    }
}

fn i1_any_tcp_port_from_the_network_goes_to_the_inbound_port(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let listeners = mesh.proxy_listeners().unwrap();
    for family in families(&mesh) {
        for port in [22, 80, APP, OUTBOUND, INBOUND, 15053, 65535] {
            let to = SocketAddr::new(family.own, port);
            let (arrival, client, _accepted) = dial_from_world(&mesh.world, to, &listeners).unwrap();
            assert_at(&arrival, "inbound", to);
            let local = match backend {
                Backend::Ebpf => to,
                // As under iptables: NAT has put it in the place of the dialled address.
                Backend::Nftables => SocketAddr::new(family.own, INBOUND),
            };
            assert_eq!(arrival.local, local);
            assert_eq!(arrival.peer, client.local_addr().unwrap().as_socket().unwrap());
            assert_eq!(arrival.peer.ip(), family.router);
        }
    }
}

fn i2_the_proxys_own_and_excluded_ports_are_direct(backend: Backend) {
    let mesh =
        Mesh::on_with(backend, |manifest| manifest.with_traffic("excludeInboundPorts", "9000,9001")).unwrap();
    let mut listeners = mesh.proxy_listeners().unwrap();
    for family in families(&mesh) {
        for port in [15008, 15020, 15021, 15090, 9000, 9001] {
            listeners.add("app", mesh.pod.app(), (family.unspecified, port)).unwrap();
            let to = (family.own, port);
            let (arrival, ..) = dial_from_world(&mesh.world, to, &listeners).unwrap();
            assert_eq!(arrival.at, "app", "{to:?}");
        }
        let (arrival, ..) = dial_from_world(&mesh.world, (family.own, 9002), &listeners).unwrap();
        assert_eq!(arrival.at, "inbound");
    }
}

fn i2_included_ports_alone_are_captured_and_make_the_exclude_list_irrelevant(backend: Backend) {
    let mesh = Mesh::on_with(backend, |manifest| {
        manifest.with_traffic("includeInboundPorts", "9000,15021").with_traffic("excludeInboundPorts", "9000")
    })
    .unwrap();
    let listeners = listeners(&mesh, 80);
    for family in families(&mesh) {
        for (port, at) in [(9000, "inbound"), (15021, "inbound"), (APP, "app")] {
            let (arrival, ..) = dial_from_world(&mesh.world, (family.own, port), &listeners).unwrap();
            assert_eq!(arrival.at, at, "{port}");
        }
    }
}

fn i3_udp_is_direct(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let server = mesh.pod.app().udp4().unwrap();
    server.bind(&SocketAddr::new(mesh.pod.v4().into(), 5000).into()).unwrap();
    server.set_read_timeout(Some(veer_tests::mesh::PATIENCE)).unwrap();
    let client = mesh.world.socket(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    client.send_to(b"ping", &SocketAddr::new(mesh.pod.v4().into(), 5000).into()).unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 16];
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!((length, from.as_socket().unwrap().ip()), (4, ROUTER_V4.into()));
}

fn o1_an_apps_connection_to_a_remote_goes_to_the_outbound_port(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let listeners = listeners(&mesh, 80);
    for family in families(&mesh) {
        for maker in [mesh.pod.app(), mesh.pod.root()] {
            let to = SocketAddr::new(family.remote, 80);
            let (arrival, dialled, _accepted) = dial(maker, to, &listeners).unwrap();
            assert_at(&arrival, "outbound", to);
            assert_eq!(arrival.local, SocketAddr::new(family.localhost, OUTBOUND));
            assert_eq!(arrival.peer.ip(), family.own, "the proxy sees the pod as its client");
            let peer = dialled.peer_addr().unwrap().as_socket().unwrap();
            assert_eq!(peer, to, "the app sees what it dialled");
            assert_eq!(dialled.local_addr().unwrap().as_socket().unwrap(), arrival.peer);
        }
    }
}

fn o2_o3_an_app_reaches_its_own_pod_directly(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let listeners = listeners(&mesh, 80);
    for family in families(&mesh) {
        for to in [(family.own, APP), (family.localhost, APP), (family.unspecified, APP)] {
            assert_eq!(dials(mesh.pod.app(), to, &listeners).at, "app", "{to:?}");
        }
        for (port, at) in [(OUTBOUND, "outbound"), (INBOUND, "inbound")] {
            let arrival = dials(mesh.pod.app(), (family.own, port), &listeners);
            assert_eq!((arrival.at, arrival.local.ip(), arrival.peer.ip()), (at, family.own, family.own));
        }
    }
    for last in [2, 6, 200] {
        let to = (IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), APP);
        assert_eq!(dials(mesh.pod.app(), to, &listeners).at, "app", "{to:?}");
    }
}

fn o4_a_service_that_the_pod_is_part_of_goes_out_and_comes_in_again(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let listeners = listeners(&mesh, 80);
    for family in families(&mesh) {
        let service = SocketAddr::new(family.remote, APP);
        assert_at(&dials(mesh.pod.app(), (service.ip(), APP), &listeners), "outbound", service);
        let own = SocketAddr::new(family.own, APP);
        assert_at(&dials(mesh.pod.proxy(), (own.ip(), APP), &listeners), "inbound", own);
    }
}

fn o5_excluded_ports_and_ranges_are_direct(backend: Backend) {
    let ranges = format!("{REMOTE_V4}/32,{REMOTE_V6}/128");
    let mesh =
        Mesh::on_with(backend, |manifest| manifest.with_traffic("excludeOutboundIPRanges", &ranges)).unwrap();
    let listeners_of_ranges = listeners(&mesh, 80);
    for family in families(&mesh) {
        assert_eq!(dials(mesh.pod.app(), (family.remote, 80), &listeners_of_ranges).at, "outside");
        assert_eq!(dials(mesh.pod.app(), (family.router, 80), &listeners_of_ranges).at, "outbound");
    }
    let mesh =
        Mesh::on_with(backend, |manifest| manifest.with_traffic("excludeOutboundPorts", "80,443")).unwrap();
    let listeners_of_ports = listeners(&mesh, 80);
    for family in families(&mesh) {
        assert_eq!(dials(mesh.pod.app(), (family.remote, 80), &listeners_of_ports).at, "outside");
        assert_eq!(dials(mesh.pod.app(), (family.remote, 15020), &listeners_of_ports).at, "outbound");
    }
}

fn o5_included_ranges_and_ports_are_captured_alone_and_exclusion_beats_both(backend: Backend) {
    let mesh = Mesh::on_with(backend, |manifest| {
        manifest
            .with_traffic("includeOutboundIPRanges", "192.0.2.0/24,198.51.100.0/24,2001:db8::/32")
            .with_traffic("excludeOutboundIPRanges", "192.0.0.0/8,2001::/16")
            .with_traffic("includeOutboundPorts", "81")
    })
    .unwrap();
    mesh.world.add_address("198.51.100.1/32").unwrap();
    let mut listeners = listeners(&mesh, 81);
    listeners.add_in_world("outside", &mesh.world, (ROUTER_V4, 80)).unwrap();
    let rows = [
        (IpAddr::V4(REMOTE_V4), 81, "outside"),
        (IpAddr::V6(REMOTE_V6), 81, "outside"),
        ([198, 51, 100, 1].into(), 80, "outbound"),
        (ROUTER_V4.into(), 81, "outbound"),
        (ROUTER_V4.into(), 80, "outside"),
    ];
    for (ip, port, at) in rows {
        assert_eq!(dials(mesh.pod.app(), (ip, port), &listeners).at, at, "{ip}:{port}");
    }
}

fn o5_an_empty_include_list_captures_nothing(backend: Backend) {
    let mesh =
        Mesh::on_with(backend, |manifest| manifest.with_traffic("includeOutboundIPRanges", "")).unwrap();
    let listeners = listeners(&mesh, 80);
    for family in families(&mesh) {
        assert_eq!(dials(mesh.pod.app(), (family.remote, 80), &listeners).at, "outside");
    }
}

fn o6_the_proxy_reaches_its_own_pod_through_the_inbound_port(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let listeners = listeners(&mesh, 80);
    for family in families(&mesh) {
        for port in [APP, OUTBOUND, INBOUND, 1] {
            let to = SocketAddr::new(family.own, port);
            let arrival = dials(mesh.pod.proxy(), (to.ip(), port), &listeners);
            assert_at(&arrival, "inbound", to);
            assert_eq!(arrival.local, SocketAddr::new(family.localhost, INBOUND));
            assert_eq!(arrival.peer.ip(), family.own);
        }
    }
}

fn o7_the_proxy_reaches_other_loopback_addresses_through_the_inbound_port(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let listeners = listeners(&mesh, 80);
    for last in [2, 6] {
        let to = SocketAddr::from(([127, 0, 0, last], APP));
        let arrival = dials(mesh.pod.proxy(), (to.ip(), APP), &listeners);
        assert_at(&arrival, "inbound", to);
        assert_eq!(arrival.local, SocketAddr::from(([127, 0, 0, 1], INBOUND)));
        assert_eq!(arrival.peer.ip(), Ipv4Addr::LOCALHOST);
    }
}

fn o8_what_is_bound_to_the_passthrough_source_is_direct(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let listeners = listeners(&mesh, 80);
    // ::6 is on lo, because the agent puts it there, as istio-init does: else nothing could be bound to it.
    for family in families(&mesh) {
        for maker in [mesh.pod.app(), mesh.pod.proxy()] {
            for ip in [family.own, family.localhost] {
                let to = SocketAddr::new(ip, APP);
                let socket = tcp(maker, to).unwrap();
                socket.bind(&SocketAddr::new(family.passthrough, 0).into()).unwrap();
                connect(&socket, to).unwrap();
                let (arrival, _accepted) = listeners.accept().unwrap();
                assert_eq!((arrival.at, arrival.peer.ip()), ("app", family.passthrough), "{to}");
            }
        }
    }
}

fn o9_the_proxy_reaches_localhost_directly(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let listeners = listeners(&mesh, 80);
    for family in families(&mesh) {
        for ip in [family.localhost, family.unspecified] {
            assert_eq!(dials(mesh.pod.proxy(), (ip, APP), &listeners).at, "app");
        }
    }
}

fn o10_the_proxys_own_connections_to_a_remote_are_direct(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let listeners = listeners(&mesh, 80);
    for family in families(&mesh) {
        let arrival = dials(mesh.pod.proxy(), (family.remote, 80), &listeners);
        assert_eq!((arrival.at, arrival.peer.ip()), ("outside", family.own));
    }
}

fn o11_the_tunnel_port_and_excluded_ports_are_direct_for_the_proxy(backend: Backend) {
    let mesh =
        Mesh::on_with(backend, |manifest| manifest.with_traffic("excludeOutboundPorts", "9000")).unwrap();
    let mut listeners = mesh.proxy_listeners().unwrap();
    for family in families(&mesh) {
        for port in [15008, 9000] {
            listeners.add("app", mesh.pod.app(), (family.unspecified, port)).unwrap();
            assert_eq!(dials(mesh.pod.proxy(), (family.own, port), &listeners).at, "app", "{port}");
        }
    }
}

/// A maker with other ids than the pod's three.
fn maker(mesh: &Mesh, uid: u32, gid: u32, groups: Vec<u32>) -> Maker {
    mesh.pod.maker(Identity { uid, gid, groups }).unwrap()
}

fn o12_by_its_primary_group_alone_a_process_is_the_proxy_only_towards_remotes(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let listeners = listeners(&mesh, 80);
    let maker = maker(&mesh, 1000, 1337, vec![]);
    for family in families(&mesh) {
        assert_eq!(dials(&maker, (family.remote, 80), &listeners).at, "outside");
        assert_eq!(dials(&maker, (family.own, APP), &listeners).at, "app");
    }
}

fn o13_by_its_uid_alone_a_process_is_the_proxy(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let listeners = listeners(&mesh, 80);
    let maker = maker(&mesh, 1337, 1000, vec![]);
    for family in families(&mesh) {
        assert_eq!(dials(&maker, (family.remote, 80), &listeners).at, "outside");
        let own = SocketAddr::new(family.own, APP);
        assert_at(&dials(&maker, (family.own, APP), &listeners), "inbound", own);
    }
}

fn o14_a_supplementary_group_does_not_make_a_process_the_proxy(backend: Backend) {
    let mesh = Mesh::on(backend).unwrap();
    let listeners = listeners(&mesh, 80);
    let maker = maker(&mesh, 1000, 1000, vec![1337]);
    for family in families(&mesh) {
        let to = SocketAddr::new(family.remote, 80);
        assert_at(&dials(&maker, (family.remote, 80), &listeners), "outbound", to);
    }
}

fn o15_an_included_loopback_range_is_captured_but_for_localhost(backend: Backend) {
    let ranges = format!("127.0.0.0/8,{}/32", Ipv4Addr::new(10, 77, 0, 2));
    let mesh =
        Mesh::on_with(backend, |manifest| manifest.with_traffic("includeOutboundIPRanges", &ranges)).unwrap();
    let listeners = listeners(&mesh, 80);
    let captured = [Ipv4Addr::new(127, 0, 0, 2), mesh.pod.v4()];
    for ip in captured {
        let to = SocketAddr::new(ip.into(), APP);
        assert_at(&dials(mesh.pod.app(), (to.ip(), APP), &listeners), "outbound", to);
    }
    assert_eq!(dials(mesh.pod.app(), (Ipv4Addr::LOCALHOST.into(), APP), &listeners).at, "app");
    assert_eq!(dials(mesh.pod.app(), (REMOTE_V4.into(), 80), &listeners).at, "outside");
}

fn long_lists_are_never_truncated(backend: Backend) {
    let ports: Vec<String> = (20_000..22_000).map(|port| port.to_string()).collect();
    let ranges: Vec<String> = (0..3000).map(|n| format!("100.{}.{}.0/24", 64 + n / 256, n % 256)).collect();
    let mesh = Mesh::on_with(backend, |manifest| {
        manifest
            .with_traffic("excludeOutboundPorts", &ports.join(","))
            .with_traffic("excludeOutboundIPRanges", &ranges.join(","))
    })
    .unwrap();
    let last_range = Ipv4Addr::new(100, 64 + 11, 183, 9);
    mesh.world.add_address(&format!("{last_range}/32")).unwrap();
    let mut listeners = listeners(&mesh, 21_999);
    listeners.add_in_world("outside", &mesh.world, (last_range, 80)).unwrap();
    assert_eq!(dials(mesh.pod.app(), (REMOTE_V4.into(), 21_999), &listeners).at, "outside");
    assert_eq!(dials(mesh.pod.app(), (REMOTE_V4.into(), 22_000), &listeners).at, "outbound");
    assert_eq!(dials(mesh.pod.app(), (last_range.into(), 80), &listeners).at, "outside");
}

fn identity_is_the_creators_and_not_that_of_whoever_connects(backend: Backend) {
    // Every test here dials from its own process, which is root in the node's cgroup, with sockets that
    // others made: what counts is the maker.
    let mesh = Mesh::on(backend).unwrap();
    let listeners = listeners(&mesh, 80);
    let made_by_proxy = dials(mesh.pod.proxy(), (REMOTE_V4.into(), 80), &listeners);
    let made_by_root = dials(mesh.pod.root(), (REMOTE_V4.into(), 80), &listeners);
    assert_eq!((made_by_proxy.at, made_by_root.at), ("outside", "outbound"));
}
