//! Several pods: who is in the mesh and who is not, and those that share an address.

use std::net::SocketAddr;

use socket2::Socket;
use veer_tests::mesh::{APP, Mesh, connect, dual_stack, proxy_listeners};
use veer_tests::pod::{REMOTE_V4, ROUTER_V4, TestPod, World};

use crate::{assert_inbound, assert_meshed, assert_outbound, assert_untouched, bystanders, refused, v4};

#[test]
fn a_pod_that_is_not_enrolled_is_untouched() {
    let mesh = Mesh::new().unwrap();
    let meshed = mesh.proxy_listeners().unwrap();
    let pod = TestPod::new(&mesh.world, &mesh.cgroup, "plain").unwrap();
    let mut all = bystanders(&mesh.world, &pod);
    // Even with somebody on the proxy's ports.
    all.extend(proxy_listeners(&pod).unwrap());
    assert_untouched(&mesh.world, &pod, &all);
    assert_meshed(&mesh.world, &mesh.pod, &meshed);
    assert_untouched(&mesh.world, &pod, &all);
}

/// A TCP socket that is bound to an address and port of its own choice.
fn bound(socket: Socket, to: SocketAddr) -> Socket {
    socket.set_reuse_address(true).unwrap();
    socket.bind(&to.into()).unwrap();
    socket
}

#[test]
fn two_pods_with_one_address_never_meet() {
    let mesh = Mesh::new().unwrap();
    let other_world = World::new().unwrap();
    let other = TestPod::new(&other_world, &mesh.cgroup, "twin").unwrap();
    mesh.agent.enrol_as(&other, &dual_stack(&other)).unwrap();
    assert_eq!((mesh.pod.v4(), mesh.pod.v6()), (other.v4(), other.v6()));
    let listeners = [mesh.proxy_listeners().unwrap(), proxy_listeners(&other).unwrap()];
    let places = [(&mesh.world, &mesh.pod, 81), (&other_world, &other, 82)];

    // Outbound: the same source address and port in both, both open before either is accepted.
    let dialled = places.map(|(_, pod, port)| {
        let socket = bound(pod.app().tcp4().unwrap(), v4(pod.v4(), 20_001));
        let to = v4(REMOTE_V4, port);
        connect(&socket, to).unwrap();
        (socket, to)
    });
    for (listeners, (socket, to)) in listeners.iter().zip(&dialled) {
        let (arrival, _accepted) = listeners.accept().unwrap();
        assert_eq!((arrival.at, arrival.original), ("outbound", Some(*to)));
        assert_eq!(arrival.peer, v4(mesh.pod.v4(), 20_001));
        assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(*to));
        assert!(listeners.is_idle().unwrap());
    }

    // Inbound: the same client address and port in both worlds.
    let clients = places.map(|(world, pod, port)| {
        let client = bound(world.tcp4().unwrap(), v4(ROUTER_V4, 20_002));
        let to = v4(pod.v4(), APP + port);
        connect(&client, to).unwrap();
        (client, to)
    });
    for (listeners, (_client, to)) in listeners.iter().zip(&clients) {
        let (arrival, _accepted) = listeners.accept().unwrap();
        let seen = (arrival.at, arrival.original, arrival.peer);
        assert_eq!(seen, ("inbound", Some(*to), v4(ROUTER_V4, 20_002)));
        assert!(listeners.is_idle().unwrap());
    }

    // Without its own listeners a pod has none: never the other's.
    let [ours, others] = listeners;
    drop(ours);
    crate::wait_registered(&mesh, &mesh.pod, [0, 0]);
    assert!(refused(&mesh.world, v4(mesh.pod.v4(), APP)));
    assert_inbound(&other_world, v4(other.v4(), APP), &others);

    // And the other goes on when the first has left the mesh.
    mesh.agent.unenrol(&mesh.pod).unwrap();
    assert_outbound(&other, v4(REMOTE_V4, 83), &others);
    assert_inbound(&other_world, v4(other.v4(), APP), &others);
    assert_untouched(&mesh.world, &mesh.pod, &bystanders(&mesh.world, &mesh.pod));
}
