//! What the sidecar of a TPROXY pod hands to its app from its client's address: by its mark, where that counts.

use super::{ETH0, ROOT, Scene, ip};
use crate::address::Port;
use crate::reason::Reason;
use crate::verdict::ambient::hands_on;
use crate::verdict::{self, Inbound, Outbound, Sender};

fn pod(tproxy: bool) -> Scene {
    Scene { tproxy, excluded_outbound: vec![15020, 9000], ..Scene::default_pod() }
}

fn handing_on(destination: &str, port: u16) -> Outbound {
    Outbound {
        uid: ROOT,
        gid: 1337,
        is_impostor: false,
        is_before_proxy: false,
        is_marked: true,
        source: ip("192.0.2.9").into(),
        destination: ip(destination).into(),
        port: Port::new(port),
        interface: 0,
    }
}

#[test]
fn within_the_pod_it_goes_to_the_app_whatever_the_lists_of_inbound_ports_say() {
    let outbound = |scene: &Scene, to, port| verdict::outbound(&scene.policy(), scene, &handing_on(to, port));
    assert_eq!(outbound(&pod(true), "10.0.0.5", 8080), Reason::ProxyMark);
    assert_eq!(outbound(&pod(true), "10.0.0.5", 15008), Reason::ProxyMark);
    // As in Istio's rules, this comes first.
    assert_eq!(outbound(&pod(true), "10.0.0.5", 9000), Reason::ExcludedPort);
    assert_eq!(outbound(&pod(true), "192.0.2.10", 8080), Reason::ProxyGroup);
    // With REDIRECT nobody hands on so, and a mark says nothing.
    assert_eq!(outbound(&pod(false), "10.0.0.5", 8080), Reason::AppToOwnAddress);
    for port in [8080, 9000] {
        assert!(hands_on(&pod(true), &handing_on("10.0.0.5", port)));
    }
}

#[test]
fn what_it_has_dialled_is_not_captured_when_it_arrives() {
    let inbound = |scene: &Scene, sender| {
        let (remote, local) = (ip("192.0.2.9").into(), ip("10.0.0.5").into());
        let arriving = Inbound { remote, local, port: Port::new(8080), interface: ETH0, sender };
        verdict::inbound(&scene.policy(), scene, &arriving)
    };
    assert_eq!(inbound(&pod(true), Sender::Proxy), Reason::HandedOn);
    assert_eq!(inbound(&pod(true), Sender::Client), Reason::AllInbound);
    assert_eq!(inbound(&pod(true), Sender::Node), Reason::AllInbound);
}
