//! Who the proxy is: by its ids, as with istio-init, or besides that by its container.
//!
//! A container is a cgroup below the pod's, with a maker of sockets in it. Whoever runs as 1337:1337 in another
//! one than the proxy's must not get out of the mesh.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod listeners;
mod told;

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::launch::{Identity, Launch};
use veer_tests::mesh::{APP, INBOUND, Listeners, Mesh, OUTBOUND, connect, dial, dual_stack, tcp};
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, TestPod, World};
use veer_tests::socket_maker::Maker;

/// pilot-agent's status: the proxy's first listener.
const STATUS: u16 = 15020;
const REMOTES: [SocketAddr; 2] =
    [SocketAddr::new(IpAddr::V4(REMOTE_V4), 80), SocketAddr::new(IpAddr::V6(REMOTE_V6), 80)];

/// A container: its processes make sockets, and end with the guard, and so does its cgroup.
struct Container {
    maker: Maker,
    cgroup: Cgroup,
}

/// A container of the pod whose processes run as this identity.
fn container_as(mesh: &Mesh, name: &str, identity: Identity) -> Container {
    let cgroup = mesh.pod.cgroup().child(name).unwrap();
    let maker = Maker::start(mesh.pod.netns(), &cgroup, identity).unwrap();
    Container { maker, cgroup }
}

/// A container of the pod whose processes run as 1337:1337.
fn container(mesh: &Mesh, name: &str) -> Container {
    container_as(mesh, name, Identity::proxy())
}

/// An agent with this `--proxy-identity`, and an enrolled pod.
fn mesh(identity: &str) -> Mesh {
    let mesh = not_enrolled(identity);
    mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
    mesh
}

fn not_enrolled(identity: &str) -> Mesh {
    with_agent(&[&format!("--proxy-identity={identity}"), "--backend=ebpf"])
}

/// An agent with these arguments, and a pod.
fn with_agent(arguments: &[&str]) -> Mesh {
    let cgroup = Cgroup::new().unwrap();
    let agent = Agent::start_with(&cgroup, Launch::new(), arguments).unwrap();
    let world = World::new().unwrap();
    let pod = TestPod::new(&world, &cgroup, "pod").unwrap();
    Mesh { agent, pod, world, cgroup }
}

/// Envoy's listeners, made by whom.
fn envoy(maker: &Maker) -> Listeners {
    let mut listeners = Listeners::default();
    for (label, port) in [("outbound", OUTBOUND), ("inbound", INBOUND)] {
        listeners.add(label, maker, (Ipv4Addr::UNSPECIFIED, port)).unwrap();
        listeners.add(label, maker, (Ipv6Addr::UNSPECIFIED, port)).unwrap();
    }
    listeners
}

/// Whoever listens in this world and is no proxy.
fn others(mesh: &Mesh) -> Listeners {
    let mut listeners = Listeners::default();
    for remote in REMOTES {
        listeners.add_in_world("remote", &mesh.world, remote).unwrap();
    }
    listeners.add("app", mesh.pod.app(), (mesh.pod.v4(), APP)).unwrap();
    listeners.add("app", mesh.pod.app(), (mesh.pod.v6(), APP)).unwrap();
    listeners
}

/// Where what somebody dials ends: out of the pod, and at the pod's own address.
#[track_caller]
fn ends(mesh: &Mesh, maker: &Maker, listeners: &Listeners) -> [&'static str; 4] {
    let own: [SocketAddr; 2] = [(mesh.pod.v4(), APP).into(), (mesh.pod.v6(), APP).into()];
    let [out4, out6] = REMOTES;
    let [own4, own6] = own;
    [out4, out6, own4, own6].map(|to| dial(maker, to, listeners).unwrap().0.at)
}

const AS_PROXY: [&str; 4] = ["remote", "remote", "inbound", "inbound"];
const AS_APP: [&str; 4] = ["outbound", "outbound", "app", "app"];

/// Whether a connection out of the pod is refused, as one to a proxy that does not listen is.
#[track_caller]
fn is_refused(maker: &Maker) -> bool {
    REMOTES.into_iter().all(|to| {
        let outcome = connect(&tcp(maker, to).unwrap(), to);
        outcome.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    })
}

fn faults(mesh: &Mesh) -> u64 {
    mesh.counter("faults", "foreign-listener").unwrap()
}

#[test]
fn an_app_with_the_proxys_ids_escapes_by_uid_and_is_captured_by_container() {
    for (identity, expected) in [("uid", AS_PROXY), ("container", AS_APP)] {
        let mesh = mesh(identity);
        let (proxy, app) = (container(&mesh, "istio-proxy"), container(&mesh, "app"));
        let mut listeners = envoy(&proxy.maker);
        listeners.extend(others(&mesh));
        assert_eq!(ends(&mesh, &app.maker, &listeners), expected, "{identity}");
        assert_eq!(ends(&mesh, &proxy.maker, &listeners), AS_PROXY, "{identity}");
        assert_eq!(ends(&mesh, mesh.pod.app(), &listeners), AS_APP, "{identity}");
    }
}

#[test]
fn one_of_the_ids_alone_does_not_get_another_container_out_either() {
    let mesh = mesh("container");
    let proxy = container(&mesh, "istio-proxy");
    let mut listeners = envoy(&proxy.maker);
    listeners.extend(others(&mesh));
    for (name, uid, gid) in [("by-gid", 1000, 1337), ("by-uid", 1337, 1000)] {
        let app = container_as(&mesh, name, Identity::new(uid, gid));
        assert_eq!(ends(&mesh, &app.maker, &listeners), AS_APP, "{name}");
    }
    // Nor does the proxy's container without its ids: as with istio-init, that is an app. With them, it is what
    // `kubectl exec` starts there.
    for (identity, expected) in [(Identity::root(), AS_APP), (Identity::proxy(), AS_PROXY)] {
        let executed = Maker::start(mesh.pod.netns(), &proxy.cgroup, identity).unwrap();
        assert_eq!(ends(&mesh, &executed, &listeners), expected);
    }
}

#[test]
fn a_socket_is_its_creators_whoever_holds_it() {
    // Both kinds are made, handed over, and connected by this process, which is in no container at all.
    let mesh = mesh("container");
    let (proxy, app) = (container(&mesh, "istio-proxy"), container(&mesh, "app"));
    let [remote, _] = REMOTES;
    let before = [&proxy, &app].map(|container| tcp(&container.maker, remote).unwrap());
    let mut listeners = envoy(&proxy.maker);
    listeners.extend(others(&mesh));
    let after = [&proxy, &app].map(|container| tcp(&container.maker, remote).unwrap());
    for [of_proxy, of_app] in [before, after] {
        for (socket, end) in [(of_proxy, "remote"), (of_app, "outbound")] {
            connect(&socket, remote).unwrap();
            assert_eq!(listeners.accept().unwrap().0.at, end);
        }
    }
}

#[test]
fn nobody_is_the_proxy_before_somebody_listens() {
    let mesh = mesh("container");
    let (proxy, app) = (container(&mesh, "istio-proxy"), container(&mesh, "app"));
    assert!(is_refused(&proxy.maker) && is_refused(&app.maker));

    // What Istio's pilot-agent does first, before it asks for its configuration. It is written in Go.
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, STATUS));
    let status = listen(&proxy.maker, of_go(), any);
    let listeners = others(&mesh);
    assert_eq!(dial(&proxy.maker, REMOTES[0], &listeners).unwrap().0.at, "remote");
    assert!(is_refused(&app.maker));
    assert_eq!(faults(&mesh), 0);
    drop(status);
}

#[test]
fn the_proxy_is_found_anew_when_it_starts_anew_in_another_container() {
    let mesh = mesh("container");
    // istio-validation: an init container, which listens, dials and goes.
    let validation = container(&mesh, "istio-validation");
    let localhost = SocketAddr::from((Ipv4Addr::LOCALHOST, INBOUND));
    let listening = listen(&validation.maker, of_go(), localhost);
    let to = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 6), 15002));
    connect(&tcp(&validation.maker, to).unwrap(), to).unwrap();
    drop((listening, validation));

    let app = container(&mesh, "app");
    for name in ["istio-proxy-1", "istio-proxy-2"] {
        let proxy = container(&mesh, name);
        let mut listeners = envoy(&proxy.maker);
        listeners.extend(others(&mesh));
        assert_eq!(ends(&mesh, &proxy.maker, &listeners), AS_PROXY, "{name}");
        assert_eq!(ends(&mesh, &app.maker, &listeners), AS_APP, "{name}");
    }
    assert_eq!(faults(&mesh), 0);
}

#[test]
fn the_proxy_stays_who_it_is_through_the_agents_end_and_start() {
    let mut mesh = mesh("container");
    let (proxy, app) = (container(&mesh, "istio-proxy"), container(&mesh, "app"));
    let mut listeners = envoy(&proxy.maker);
    listeners.extend(others(&mesh));
    let check = |mesh: &Mesh, proxy: &Container, listeners: &Listeners| {
        assert_eq!(ends(mesh, &proxy.maker, listeners), AS_PROXY);
        assert_eq!(ends(mesh, &app.maker, listeners), AS_APP);
    };
    mesh.agent.kill().unwrap();
    check(&mesh, &proxy, &listeners);
    // Also one that starts while there is no agent.
    drop((listeners, proxy));
    let proxy = container(&mesh, "istio-proxy-2");
    let mut listeners = envoy(&proxy.maker);
    listeners.extend(others(&mesh));
    check(&mesh, &proxy, &listeners);
    mesh.agent.start_again().unwrap();
    check(&mesh, &proxy, &listeners);
}

#[test]
fn a_proxy_that_listened_before_its_pod_was_enrolled_is_the_proxy() {
    let mesh = not_enrolled("container");
    let (proxy, app) = (container(&mesh, "istio-proxy"), container(&mesh, "app"));
    let mut listeners = Listeners::default();
    for (label, port) in [("outbound", OUTBOUND), ("inbound", INBOUND)] {
        for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            let at = SocketAddr::new(any, port);
            let socket =
                proxy.maker.kept_socket(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP)).unwrap();
            listeners.listen(label, socket, at).unwrap();
        }
    }
    listeners.extend(others(&mesh));
    mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
    assert_eq!(ends(&mesh, &proxy.maker, &listeners), AS_PROXY);
    assert_eq!(ends(&mesh, &app.maker, &listeners), AS_APP);
}

/// What Go listens with since 1.24: MPTCP, and TCP where the kernel has none (`net/mptcpsock_linux.go`).
fn of_go() -> Protocol {
    let tried = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP));
    if tried.is_ok() { Protocol::MPTCP } else { Protocol::TCP }
}

/// A socket of this kind that listens, and may share its port.
fn listen(maker: &Maker, protocol: Protocol, at: SocketAddr) -> Socket {
    let socket = maker.bound(protocol, at).unwrap();
    socket.listen(16).unwrap();
    socket
}

/// A socket that is bound, and may share its port.
fn shared(maker: &Maker, at: SocketAddr) -> std::io::Result<Socket> {
    let socket = maker.socket(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&at.into())?;
    Ok(socket)
}
