//! One socket that asks several resolvers, as musl's does: which of them a reply is from.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use veer_tests::dns::question;

use super::{CLUSTER_DNS_V6, EBPF, Scene, all, at, bound, hear, in_all_forms, udp};

/// All are asked before any reply is read. Gives back who answered which, in the order of the questions.
fn ask_all(socket: &UdpSocket, resolvers: &[IpAddr]) -> Vec<SocketAddr> {
    for (id, resolver) in resolvers.iter().enumerate() {
        socket.send_to(&question(u16::try_from(id).unwrap()), at(*resolver)).unwrap();
    }
    let mut heard: Vec<_> = resolvers.iter().map(|_| hear(socket)).map(|(id, _, from)| (id, from)).collect();
    heard.sort_unstable();
    heard.into_iter().map(|(_, from)| from).collect()
}

fn resolvers(count: u8) -> Vec<IpAddr> {
    (1..=count).map(|number| Ipv4Addr::new(10, 96, 0, number).into()).collect()
}

#[test]
fn replies_of_up_to_four_resolvers_are_told_apart() {
    for scene in all() {
        for count in 2..=4 {
            let socket = udp(scene.pod().app(), resolvers(1)[0]);
            for turn in 0..3 {
                let asked = resolvers(count);
                let expected: Vec<_> = asked.iter().map(|ip| at(*ip)).collect();
                assert_eq!(ask_all(&socket, &asked), expected, "{:?}, turn {turn}", scene.by);
            }
        }
        // The same as musl has it, which takes one AF_INET6 socket for all.
        let asked = mapped_resolvers(3);
        let expected: Vec<_> = asked.iter().map(|ip| at(*ip)).collect();
        assert_eq!(ask_all(&udp(scene.pod().app(), asked[0]), &asked), expected, "{:?}", scene.by);
    }
}

fn mapped_resolvers(count: u8) -> Vec<IpAddr> {
    in_all_forms(resolvers(count)).into_iter().filter(IpAddr::is_ipv6).collect()
}

#[test]
fn resolvers_of_two_families_on_one_socket_are_told_apart() {
    for scene in all() {
        let mut asked = mapped_resolvers(2);
        asked.push(CLUSTER_DNS_V6.into());
        let expected: Vec<_> = asked.iter().map(|ip| at(*ip)).collect();
        assert_eq!(ask_all(&udp(scene.pod().app(), asked[0]), &asked), expected, "{:?}", scene.by);
    }
}

#[test]
fn a_resolver_on_loopback_and_one_elsewhere_are_told_apart() {
    for scene in all() {
        for asked in [["127.0.0.53", "10.96.0.10"], ["10.96.0.10", "127.0.0.53"], ["127.0.0.1", "127.0.0.53"]]
        {
            let asked = asked.map(|ip| ip.parse().unwrap());
            let socket = udp(scene.pod().app(), asked[0]);
            assert_eq!(ask_all(&socket, &asked), asked.map(at), "{:?}", scene.by);
        }
    }
}

/// The limits of eBPF, which NAT does not have: what is bound to an address has no source to tell by, and IPv6 has no 127/8. The reply is
/// there, and seems to come from whom was asked last.
#[test]
fn where_they_cannot_be_told_apart_the_last_one_asked_is_shown() {
    let scene = Scene::new(EBPF);
    let pod = scene.pod();
    let asked = resolvers(2);
    let socket = bound(pod.app(), (pod.v4(), 5353));
    assert_eq!(ask_all(&socket, &asked), [at(asked[1]); 2]);

    let asked: [IpAddr; 2] = [CLUSTER_DNS_V6.into(), "fd00:96::11".parse().unwrap()];
    assert_eq!(ask_all(&udp(pod.app(), asked[0]), &asked), [at(asked[1]); 2]);

    let asked = resolvers(5);
    let mut expected: Vec<_> = asked.iter().map(|ip| at(*ip)).collect();
    expected[0] = at(asked[4]);
    assert_eq!(ask_all(&udp(pod.app(), asked[0]), &asked), expected, "the fifth has the first one's place");
}
