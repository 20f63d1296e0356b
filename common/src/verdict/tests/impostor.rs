//! Where the container says who the proxy is: somebody else with the proxy's ids is an app like any other.

use std::cell::Cell;

use proptest::collection::vec;
use proptest::prelude::*;

use super::agreement::{CONNECTIONS, Picks, destinations, dial, expected, facts, run, scene};
use super::iptables::Iptables;
use super::{APP, PROXY, Scene, Trail};
use crate::address::{Address, Port};
use crate::maps::{PodPolicy, flag};
use crate::reason::Reason;
use crate::rule::Rule;
use crate::verdict::{self, Outbound};

/// An id that nobody in a pod has.
const NOBODY: u32 = u32::MAX - 1;

/// The rules of a proxy, all of which an impostor must pass by.
const PROXYS: [Rule; 6] = [
    Rule::ProxyToOwnAddress,
    Rule::ProxyWithinPod,
    Rule::ProxyGroupToOwnAddress,
    Rule::ProxyGroupWithinPod,
    Rule::Proxy,
    Rule::ProxyGroup,
];

fn impostor(destination: [u8; 4], port: u16) -> Outbound {
    Outbound {
        uid: PROXY,
        gid: PROXY,
        is_impostor: true,
        is_before_proxy: false,
        is_marked: false,
        source: Address::UNSPECIFIED,
        destination: Address::v4(destination),
        port: Port::new(port),
        interface: 0,
    }
}

#[test]
fn an_impostor_is_captured_and_the_proxy_is_not() {
    let scene = Scene { captures_dns: true, ..Scene::default_pod() };
    let policy = scene.policy();
    for (destination, port, reason, proxys) in [
        ([192, 0, 2, 9], 80, Reason::AllOutbound, Reason::Proxy),
        ([192, 0, 2, 9], 53, Reason::Dns, Reason::Proxy),
        ([10, 0, 0, 5], 80, Reason::AppToOwnAddress, Reason::ProxyToOwnAddress),
        ([127, 0, 0, 2], 80, Reason::AppToOwnAddress, Reason::ProxyToOwnAddress),
    ] {
        let impostor = impostor(destination, port);
        assert_eq!(verdict::outbound(&policy, &scene, &impostor), reason, "{destination:?}:{port}");
        let proxy = Outbound { is_impostor: false, ..impostor };
        assert_eq!(verdict::outbound(&policy, &scene, &proxy), proxys, "{destination:?}:{port}");
    }
    let resolver = impostor([192, 0, 2, 9], 53);
    assert_eq!(verdict::datagram(&policy, &scene, &resolver), Reason::Dns);
    let of_proxy = Outbound { is_impostor: false, ..resolver };
    assert_eq!(verdict::datagram(&policy, &scene, &of_proxy), Reason::Proxy);
}

#[test]
fn an_impostor_goes_where_istio_inits_rules_send_an_app() {
    let compared = Cell::new(0);
    run(&(scene(), vec(any::<Picks>(), CONNECTIONS)), |(scene, picks)| {
        let policy = scene.policy();
        let destinations = destinations(&scene);
        // To istio-init's rules an impostor has ids that are not the proxy's: so let the proxy's be others.
        let others = Scene { proxy_uid: NOBODY, proxy_gid: NOBODY, ..scene.clone() };
        let iptables = Iptables::of(&others);
        for picks in picks {
            let dial = dial(&scene, &destinations, picks);
            let before = scene.before_proxy;
            let impostor = Outbound { is_impostor: true, is_before_proxy: before, ..facts(&dial) };
            let mut trace = Trail::default();
            let reason = verdict::trace_outbound(&policy, &scene, &impostor, &mut trace);
            prop_assert!(trace.leads_to(reason), "{:?} to {:?}: {:?}", dial, reason, trace);
            prop_assert!(!trace.0.iter().any(|(rule, matched)| *matched && PROXYS.contains(rule)));
            let Some(expected) = expected(&others, &iptables, &dial) else { continue };
            prop_assert_eq!(reason.action(), expected, "{:?} gave {:?} in {:?}", dial, reason, &scene);
            compared.set(compared.get() + 1);
        }
        Ok(())
    });
    assert!(compared.get() >= 100_000, "only {} connections were compared", compared.get());
}

#[test]
fn the_proxys_ports_are_those_that_it_listens_on() {
    let of = |dns| Scene { captures_dns: dns, ..Scene::default_pod() }.policy();
    let listed = |policy: &PodPolicy| {
        (0..=u16::MAX).filter(|port| policy.names_the_proxy(Port::new(*port))).collect::<Vec<_>>()
    };
    assert_eq!(listed(&of(false)), [15000, 15001, 15006, 15020, 15021, 15090]);
    assert_eq!(listed(&of(true)), [15000, 15001, 15006, 15020, 15021, 15053, 15090]);
    assert_eq!(of(true).flags & flag::BY_CONTAINER, 0, "the verdict goes by the fact, not by the flag");
    let app = Outbound { uid: APP, gid: APP, ..impostor([192, 0, 2, 9], 80) };
    assert!(!app.is_proxy_by_uid(&of(true)) && !app.is_proxy_by_gid(&of(true)));
}
