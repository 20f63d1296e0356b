//! Sockets that name the resolver with each question: musl's, and servers that ask others.

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg, sendmsg,
};
use veer_tests::dns::{question, told};
use veer_tests::mesh::dual_stack;

use super::{By, CLUSTER_DNS, CLUSTER_DNS_V6, all, at, bound, by_proxy, hear, in_all_forms, mapped, udp};

#[test]
fn a_reply_comes_from_the_resolver_that_was_asked() {
    for scene in all() {
        for resolver in in_all_forms(scene.resolvers()) {
            for maker in [scene.pod().app(), scene.pod().root()] {
                let socket = udp(maker, resolver);
                for id in 0..3 {
                    socket.send_to(&question(id), at(resolver)).unwrap();
                    let expected = (id, by_proxy(scene.client(resolver), &socket), at(resolver));
                    assert_eq!(hear(&socket), expected, "{:?}", scene.by);
                }
                assert!(socket.peer_addr().is_err(), "nobody has connected it");
            }
        }
        assert_eq!(scene.world.asked(), 0, "{:?}", scene.by);
    }
}

#[test]
fn a_bound_socket_keeps_its_address_and_port() {
    for scene in all() {
        let pod = scene.pod();
        for (source, resolver) in [
            ("0.0.0.0".parse().unwrap(), IpAddr::from(CLUSTER_DNS)),
            ("::".parse().unwrap(), mapped(CLUSTER_DNS)),
            ("::".parse().unwrap(), CLUSTER_DNS_V6.into()),
            (IpAddr::from(pod.v4()), CLUSTER_DNS.into()),
            (mapped(pod.v4()), mapped(CLUSTER_DNS)),
            (pod.v6().into(), CLUSTER_DNS_V6.into()),
        ] {
            let socket = bound(pod.app(), (source, 5353));
            socket.send_to(&question(1), at(resolver)).unwrap();
            let client = SocketAddr::new(scene.client(resolver), 5353);
            assert_eq!(
                hear(&socket),
                (1, format!("proxy udp {client}"), at(resolver)),
                "{:?} {source}",
                scene.by
            );
        }
    }
}

#[test]
fn many_messages_at_once_are_told_apart() {
    for scene in all() {
        for resolver in [IpAddr::from(CLUSTER_DNS), mapped(CLUSTER_DNS), CLUSTER_DNS_V6.into()] {
            let socket = udp(scene.pod().app(), resolver);
            let questions = [question(0), question(1)];
            let slices: Vec<[IoSlice<'_>; 1]> = questions.iter().map(|bytes| [IoSlice::new(bytes)]).collect();
            let to = [Some(storage(at(resolver))); 2];
            let mut headers = MultiHeaders::preallocate(2, None);
            let sent =
                sendmmsg(socket.as_raw_fd(), &mut headers, &slices, to, [], MsgFlags::empty()).unwrap();
            assert_eq!(sent.count(), 2);

            let mut replies = [[0; 512]; 2];
            let mut heard = Vec::new();
            while heard.len() < 2 {
                let mut slices: Vec<[IoSliceMut<'_>; 1]> =
                    replies.iter_mut().map(|bytes| [IoSliceMut::new(bytes)]).collect();
                let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(2, None);
                let flags = MsgFlags::MSG_WAITFORONE;
                let messages =
                    recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None).unwrap();
                for message in messages {
                    let from = message.address.unwrap();
                    let bytes: Vec<u8> = message.iovs().flatten().copied().collect();
                    heard.push((told(&bytes).unwrap(), from.to_string()));
                }
            }
            heard.sort();
            let told = by_proxy(scene.client(resolver), &socket);
            let from = storage(at(resolver)).to_string();
            let expected: Vec<_> = (0..2).map(|id| ((id, told.clone()), from.clone())).collect();
            assert_eq!(heard, expected, "{:?}", scene.by);
        }
    }
}

/// To an address of its own a host sends from that address.
#[test]
fn a_resolver_at_another_address_of_the_pods_is_asked_from_there() {
    for scene in all() {
        // Shown if it fails: a reply was missed once, and nobody knew by whom.
        eprintln!("by {:?}", scene.by);
        let pod = scene.pod();
        veer_tests::veth::ip(pod.netns(), ["address add 192.168.9.5/24 dev eth0"]).unwrap();
        veer_tests::veth::ip(pod.netns(), ["address add fd77::200/64 dev eth0 nodad"]).unwrap();
        if scene.by != By::Istio {
            scene
                .mesh
                .agent
                .enrol_as(pod, &dual_stack(pod).with_proxy_env("ISTIO_META_DNS_CAPTURE", "true"))
                .unwrap();
        }
        for resolver in in_all_forms(vec!["192.168.9.5".parse().unwrap(), "fd77::200".parse().unwrap()]) {
            let client = resolver.to_canonical();
            let socket = udp(pod.app(), resolver);
            socket.send_to(&question(1), at(resolver)).unwrap();
            assert_eq!(hear(&socket), (1, by_proxy(client, &socket), at(resolver)), "{:?}", scene.by);
            let socket = udp(pod.app(), resolver);
            socket.connect(at(resolver)).unwrap();
            socket.send(&question(2)).unwrap();
            assert_eq!(hear(&socket), (2, by_proxy(client, &socket), at(resolver)), "{:?}", scene.by);
        }
    }
}

/// `IP_PKTINFO`: what answers from several addresses asks from one of them.
#[test]
fn a_source_that_the_sender_names_is_kept() {
    for scene in all() {
        let pod = scene.pod();
        veer_tests::veth::ip(pod.netns(), ["address add 10.77.0.200/24 dev eth0"]).unwrap();
        let second = Ipv4Addr::new(10, 77, 0, 200);
        let socket = udp(pod.app(), CLUSTER_DNS.into());
        let info = pktinfo(second);
        let to = storage(at(CLUSTER_DNS));
        let bytes = question(4);
        sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            &[ControlMessage::Ipv4PacketInfo(&info)],
            MsgFlags::empty(),
            Some(&to),
        )
        .unwrap();
        assert_eq!(hear(&socket), (4, by_proxy(second.into(), &socket), at(CLUSTER_DNS)), "{:?}", scene.by);
    }
}

fn storage(address: SocketAddr) -> SockaddrStorage {
    match address {
        SocketAddr::V4(v4) => v4.into(),
        SocketAddr::V6(v6) => v6.into(),
    }
}

fn pktinfo(source: Ipv4Addr) -> nix::libc::in_pktinfo {
    let address = |ip: Ipv4Addr| nix::libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) };
    nix::libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: address(source),
        ipi_addr: address(Ipv4Addr::UNSPECIFIED),
    }
}
