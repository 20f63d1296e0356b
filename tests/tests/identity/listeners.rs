//! Who may listen on the proxy's ports: whoever is in another container must not take the proxy's place, nor
//! stand beside it.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use veer_tests::mesh::{APP, Listeners, Mesh, OUTBOUND, PATIENCE, dial};
use veer_tests::pod::REMOTE_V4;
use veer_tests::socket_maker::Maker;
use veer_tests::wait;

use super::{
    AS_APP, AS_PROXY, REMOTES, STATUS, container, ends, faults, listen, mesh, not_enrolled, others, shared,
};

const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), OUTBOUND);

/// How many listeners of the outbound port are registered.
fn registered(mesh: &Mesh) -> u64 {
    let pod = mesh.agent.json(&["pods", "test/pod"]).unwrap();
    pod.pointer("/policy/outbound/listeners").unwrap().as_u64().unwrap()
}

fn may_bind(maker: &Maker, at: SocketAddr) -> bool {
    match shared(maker, at) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => false,
        Err(error) => panic!("bind to {at}: {error}"),
    }
}

/// The proxy's outbound listener, which lets others of its uid share its port.
fn outbound(maker: &Maker) -> Listeners {
    let mut listeners = Listeners::default();
    listeners.take("outbound", shared(maker, ANY).unwrap()).unwrap();
    listeners
}

#[test]
fn another_container_cannot_bind_to_the_proxys_ports_while_the_proxy_listens() {
    let mesh = mesh("container");
    let (proxy, intruder) = (container(&mesh, "istio-proxy"), container(&mesh, "intruder"));
    let mut listeners = outbound(&proxy.maker);
    let ports = [15000, 15001, 15006, 15020, 15021, 15090];
    for port in ports {
        let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        assert!(!may_bind(&intruder.maker, at), "{port}");
        assert!(may_bind(&proxy.maker, at), "{port}");
    }
    assert_eq!(faults(&mesh), ports.len() as u64);
    // Any other port is free to it, and so are these to an app with other ids, as with istio-init.
    assert!(may_bind(&intruder.maker, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 15053))));
    assert!(may_bind(mesh.pod.app(), SocketAddr::from((Ipv4Addr::UNSPECIFIED, STATUS))));
    assert_eq!(registered(&mesh), 1);
    listeners.extend(others(&mesh));
    let (arrival, ..) = dial(&intruder.maker, REMOTES[0], &listeners).unwrap();
    assert_eq!(arrival.at, "outbound");
}

#[test]
fn by_uid_another_container_may_share_the_proxys_ports_as_with_istio_init() {
    let mesh = mesh("uid");
    let (proxy, intruder) = (container(&mesh, "istio-proxy"), container(&mesh, "intruder"));
    let _listeners = outbound(&proxy.maker);
    let _second = listen(&intruder.maker, Protocol::TCP, ANY);
    assert_eq!((registered(&mesh), faults(&mesh)), (2, 0));
}

#[test]
fn who_was_bound_before_the_proxy_listened_is_not_taken_for_it() {
    let mesh = mesh("container");
    let (proxy, intruder) = (container(&mesh, "istio-proxy"), container(&mesh, "intruder"));
    // The one way into its SO_REUSEPORT group: to bind while nobody is the proxy.
    let early = shared(&intruder.maker, ANY).unwrap();
    let mut listeners = outbound(&proxy.maker);
    early.listen(16).unwrap();
    assert_eq!((registered(&mesh), faults(&mesh)), (1, 1));
    drop(early);
    listeners.extend(others(&mesh));
    assert_eq!(dial(&intruder.maker, REMOTES[0], &listeners).unwrap().0.at, "outbound");
    assert_eq!(dial(&proxy.maker, REMOTES[0], &listeners).unwrap().0.at, "remote");
}

#[test]
fn the_place_is_free_as_soon_as_the_last_of_the_proxys_sockets_does_not_listen_any_more() {
    assert_free_after_the_last(Protocol::TCP);
}

#[test]
fn the_place_is_free_as_soon_as_the_last_mptcp_socket_does_not_listen_any_more() {
    assert_free_after_the_last(Protocol::MPTCP);
}

#[track_caller]
fn assert_free_after_the_last(protocol: Protocol) {
    let mesh = mesh("container");
    let (first, second) = (container(&mesh, "first"), container(&mesh, "second"));
    let status = SocketAddr::from((Ipv4Addr::UNSPECIFIED, STATUS));
    let one = listen(&first.maker, protocol, status);
    let other = listen(&first.maker, protocol, ANY);
    // What it accepts does not listen, and ends without freeing anything.
    for _ in 0..3 {
        let client = tcp(&mesh);
        client.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, STATUS)).into()).unwrap();
        drop((one.accept().unwrap(), client));
    }
    assert!(!may_bind(&second.maker, ANY));
    drop(one);
    assert!(!may_bind(&second.maker, ANY));
    // As closing does: the socket lives, and does not listen any more.
    other.shutdown(std::net::Shutdown::Both).unwrap();
    // A process that is being started may hold a copy of what was closed for a moment.
    wait::until("the place to be free", PATIENCE, || may_bind(&second.maker, ANY)).unwrap();
    drop(other);
}

fn tcp(mesh: &Mesh) -> Socket {
    mesh.pod.app().socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap()
}

#[test]
fn who_listens_first_is_the_proxy_which_is_why_the_proxy_must_start_first() {
    let mesh = mesh("container");
    let (early, late) = (container(&mesh, "app"), container(&mesh, "istio-proxy"));
    let mut listeners = super::envoy(&early.maker);
    listeners.extend(others(&mesh));
    assert_eq!(ends(&mesh, &early.maker, &listeners), AS_PROXY);
    assert_eq!(ends(&mesh, &late.maker, &listeners), AS_APP);
    // The real one finds that out when it starts, and whoever looks sees who is in its place.
    assert!(!may_bind(&late.maker, ANY));
    assert_eq!(faults(&mesh), 1);
    let pod = mesh.agent.json(&["pods", "test/pod"]).unwrap();
    assert_eq!(
        pod.pointer("/policy/proxyContainer/path").unwrap(),
        early.cgroup.path().to_str().unwrap(),
        "{pod}"
    );
}

#[test]
fn who_has_other_ids_is_not_the_proxy_even_if_it_was_the_first_on_the_proxys_port() {
    let mesh = mesh("container");
    let mut listeners = super::envoy(mesh.pod.app());
    listeners.extend(others(&mesh));
    assert_eq!(ends(&mesh, mesh.pod.app(), &listeners), AS_APP);
    let proxy = container(&mesh, "istio-proxy");
    assert_eq!(ends(&mesh, &proxy.maker, &listeners), AS_APP, "nobody is the proxy yet");
    assert_eq!(shared(&proxy.maker, ANY).unwrap_err().kind(), ErrorKind::AddrInUse);
    assert_eq!(faults(&mesh), 0);
}

#[test]
fn a_listener_that_was_a_dialler_before_frees_the_place_like_any_other() {
    let mesh = mesh("container");
    let (first, second) = (container(&mesh, "first"), container(&mesh, "second"));
    let one = shared(&first.maker, SocketAddr::from((Ipv4Addr::UNSPECIFIED, STATUS))).unwrap();
    let already_the_proxy = listen(&first.maker, Protocol::TCP, ANY);
    // To the app, and so to the inbound listener, which is not there.
    let refused = one.connect(&SocketAddr::from((mesh.pod.v4(), APP)).into()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(mesh.counter("reasons", "proxy-to-own-address").unwrap(), 1);
    one.listen(16).unwrap();
    drop(already_the_proxy);
    assert!(!may_bind(&second.maker, ANY));
    drop(one);
    wait::until("the place to be free", PATIENCE, || may_bind(&second.maker, ANY)).unwrap();
}

/// A pod whose DNS is captured.
fn mesh_with_dns(identity: &str) -> Mesh {
    let mesh = not_enrolled(identity);
    let manifest = mesh.pod.manifest().with_proxy_env("ISTIO_META_DNS_CAPTURE", "true");
    mesh.agent.enrol_as(&mesh.pod, &manifest).unwrap();
    mesh
}

/// The proxy's address for DNS.
const DNS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15053);

#[test]
fn where_dns_is_captured_its_port_is_the_proxys_too() {
    let mesh = mesh_with_dns("container");
    let (proxy, intruder) = (container(&mesh, "istio-proxy"), container(&mesh, "intruder"));
    let _listening = listen(&proxy.maker, Protocol::TCP, DNS);
    assert!(!may_bind(&intruder.maker, DNS) && !may_bind(&intruder.maker, ANY));
    let by_udp = |maker: &Maker| {
        let socket = maker.bound_udp(DNS).map(drop);
        socket.map_err(|error| error.downcast::<std::io::Error>().unwrap().kind())
    };
    assert_eq!(by_udp(&intruder.maker), Err(ErrorKind::PermissionDenied));
    assert_eq!(by_udp(&proxy.maker), Ok(()));
    assert_eq!(dial(&proxy.maker, REMOTES[0], &others(&mesh)).unwrap().0.at, "remote");
}

/// Whose question arrives at the proxy, by UDP and by TCP.
fn asks_the_proxy(mesh: &Mesh, maker: &Maker, proxys: &Socket, listeners: &Listeners) -> [bool; 2] {
    let resolver = SocketAddr::from((REMOTE_V4, 53));
    let real = mesh.world.socket(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    real.set_reuse_address(true).unwrap();
    real.bind(&resolver.into()).unwrap();
    maker.udp4().unwrap().send_to(b"?", &resolver.into()).unwrap();
    let arrived = |socket: &Socket| {
        socket.set_nonblocking(true).unwrap();
        socket.recv(&mut [std::mem::MaybeUninit::uninit(); 8]).is_ok()
    };
    let by_udp =
        wait::until_some("the question to arrive", PATIENCE, || match (arrived(proxys), arrived(&real)) {
            (false, false) => None,
            (at_proxy, _) => Some(at_proxy),
        });
    [by_udp.unwrap(), dial(maker, resolver, listeners).unwrap().0.at == "dns"]
}

#[test]
fn questions_of_an_app_with_the_proxys_ids_escape_by_uid_and_are_captured_by_container() {
    for (identity, is_captured) in [("uid", false), ("container", true)] {
        let mesh = mesh_with_dns(identity);
        let (proxy, app) = (container(&mesh, "istio-proxy"), container(&mesh, "app"));
        let mut listeners = Listeners::default();
        listeners.add("dns", &proxy.maker, DNS).unwrap();
        listeners.add_in_world("resolver", &mesh.world, (REMOTE_V4, 53)).unwrap();
        let questions = proxy.maker.bound_udp(DNS).unwrap();
        let asks = |maker: &Maker| asks_the_proxy(&mesh, maker, &questions, &listeners);
        assert_eq!(asks(&app.maker), [is_captured; 2], "{identity}");
        assert_eq!(asks(&proxy.maker), [false; 2], "{identity}");
        assert_eq!(asks(mesh.pod.app()), [true; 2], "{identity}");
    }
}
