//! What DNS capture has nothing to do with, and a proxy that is not there.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Type};
use veer_tests::dns::{PROXY_DNS, question};
use veer_tests::mesh::{Mesh, PATIENCE};
use veer_tests::pod::{REMOTE_V4, REMOTE_V6};

use super::{CLUSTER_DNS, EBPF, NFTABLES, Scene, all, at, by_proxy, hear, mapped, udp};

/// Sends from the pod to a server of the world and back; what each end sees.
fn exchange(server: &UdpSocket, client: &UdpSocket, connected: bool) -> (SocketAddr, SocketAddr) {
    let to = server.local_addr().unwrap();
    if connected {
        client.connect(to).unwrap();
        assert_eq!(client.peer_addr().unwrap(), to);
        client.send(b"ping").unwrap();
    } else {
        client.send_to(b"ping", to).unwrap();
    }
    let mut buffer = [0; 16];
    let (_, seen) = server.recv_from(&mut buffer).unwrap();
    server.send_to(b"pong", seen).unwrap();
    let (length, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!(buffer.get(..length), Some(&b"pong"[..]));
    (seen, from)
}

#[test]
fn other_udp_of_a_pod_that_captures_dns_is_untouched() {
    for scene in all() {
        for remote in [IpAddr::from(REMOTE_V4), REMOTE_V6.into()] {
            // 443 is QUIC; the proxy's DNS port is nothing special elsewhere.
            for port in [443, PROXY_DNS, 5353] {
                let to = SocketAddr::new(remote, port);
                let server = scene.mesh.world.socket(Domain::for_address(to), Type::DGRAM, None).unwrap();
                server.bind(&to.into()).unwrap();
                server.set_read_timeout(Some(PATIENCE)).unwrap();
                let server = UdpSocket::from(server);
                for connected in [false, true] {
                    let client = udp(scene.pod().app(), remote);
                    let (seen, from) = exchange(&server, &client, connected);
                    assert_eq!((seen.ip(), from), (scene.client(remote), to), "{:?}", scene.by);
                }
                // After a question on the same socket, too.
                let client = udp(scene.pod().app(), remote);
                client.send_to(&question(1), at(remote)).unwrap();
                assert_eq!(hear(&client), (1, by_proxy(scene.client(remote), &client), at(remote)));
                assert_eq!(exchange(&server, &client, false).1, to, "{:?}", scene.by);
            }
        }
    }
}

#[test]
fn who_asks_the_proxys_dns_itself_sees_that() {
    for scene in all() {
        let proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, PROXY_DNS));
        let socket = udp(scene.pod().app(), proxy.ip());
        socket.send_to(&question(1), proxy).unwrap();
        assert_eq!(
            hear(&socket),
            (1, by_proxy(Ipv4Addr::LOCALHOST.into(), &socket), proxy),
            "{:?}",
            scene.by
        );
        let socket = udp(scene.pod().app(), proxy.ip());
        socket.connect(at(CLUSTER_DNS)).unwrap();
        socket.connect(proxy).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), proxy);
        socket.send(&question(2)).unwrap();
        assert_eq!(hear(&socket).2, proxy, "{:?}", scene.by);
    }
}

/// Under iptables, and by nftables, it waits in vain: the refusal is of another conntrack zone than the question.
#[test]
fn without_the_proxys_dns_a_connected_socket_is_refused() {
    let mesh = Mesh::with(|pod| pod.with_proxy_env("ISTIO_META_DNS_CAPTURE", "true")).unwrap();
    for resolver in [IpAddr::from(CLUSTER_DNS), mapped(CLUSTER_DNS), REMOTE_V6.into()] {
        let socket = udp(mesh.pod.app(), resolver);
        socket.connect(at(resolver)).unwrap();
        socket.send(&question(1)).unwrap();
        let error = socket.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{resolver}");
    }
}

#[test]
fn two_pods_that_ask_at_once_hear_their_own_proxy() {
    [EBPF, NFTABLES].map(Scene::new).iter().for_each(two_pods);
}

fn two_pods(scene: &Scene) {
    let other = veer_tests::pod::TestPod::new(&scene.mesh.world, &scene.mesh.cgroup, "other").unwrap();
    let capturing = veer_tests::mesh::dual_stack(&other).with_proxy_env("ISTIO_META_DNS_CAPTURE", "true");
    scene.mesh.agent.enrol_as(&other, &capturing).unwrap();
    let _proxy = veer_tests::dns::Responder::of_proxy(&other).unwrap();
    let sockets = [scene.pod(), &other].map(|pod| (pod, udp(pod.app(), CLUSTER_DNS.into())));
    for (_, socket) in &sockets {
        socket.send_to(&question(1), at(CLUSTER_DNS)).unwrap();
    }
    for (pod, socket) in &sockets {
        assert_eq!(hear(socket), (1, by_proxy(pod.v4().into(), socket), at(CLUSTER_DNS)));
    }
}
