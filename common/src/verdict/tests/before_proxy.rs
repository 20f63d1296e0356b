//! Before the proxy has listened, where the node lets connections go direct until then.

use std::cell::Cell;

use proptest::collection::vec;
use proptest::prelude::*;

use super::agreement::{CONNECTIONS, Picks, destinations, dial, facts, run, scene};
use super::{APP, PROXY, Scene};
use crate::address::{Address, Port};
use crate::maps::PodPolicy;
use crate::reason::{Action, Reason};
use crate::verdict::{self, Outbound};

fn of(id: u32, destination: [u8; 4], port: u16) -> Outbound {
    Outbound {
        uid: id,
        gid: id,
        is_impostor: false,
        is_before_proxy: true,
        is_marked: false,
        source: Address::UNSPECIFIED,
        destination: Address::v4(destination),
        port: Port::new(port),
        interface: 0,
    }
}

#[test]
fn an_init_container_goes_direct_and_the_proxy_where_it_always_goes() {
    let scene = Scene { captures_dns: true, ..Scene::default_pod() };
    let policy = scene.policy();
    for (id, destination, port, reason) in [
        (APP, [192, 0, 2, 9], 80, Reason::BeforeProxy),
        (APP, [192, 0, 2, 9], 53, Reason::BeforeProxy),
        (APP, [127, 0, 0, 53], 53, Reason::BeforeProxy),
        (APP, [192, 0, 2, 9], 15020, Reason::ExcludedPort),
        (APP, [10, 0, 0, 5], 80, Reason::AppToOwnAddress),
        (PROXY, [192, 0, 2, 9], 80, Reason::Proxy),
        // What istio-validation dials, which runs before any proxy.
        (PROXY, [127, 0, 0, 6], 15002, Reason::ProxyToOwnAddress),
    ] {
        let connection = of(id, destination, port);
        assert_eq!(verdict::outbound(&policy, &scene, &connection), reason, "{id} {destination:?}:{port}");
    }
    assert_eq!(verdict::datagram(&policy, &scene, &of(APP, [10, 96, 0, 10], 53)), Reason::BeforeProxy);
    assert_eq!(verdict::datagram(&policy, &scene, &of(PROXY, [10, 96, 0, 10], 53)), Reason::Proxy);
    assert_eq!(verdict::datagram(&policy, &scene, &of(APP, [10, 96, 0, 10], 123)), Reason::NotDns);
}

#[test]
fn nothing_goes_to_a_port_where_nobody_listens_yet_but_what_the_proxy_dials_itself() {
    let direct = Cell::new(0);
    run(&(scene(), vec(any::<Picks>(), CONNECTIONS)), |(scene, picks)| {
        let policy = scene.policy();
        let destinations = destinations(&scene);
        for picks in picks {
            let later = facts(&dial(&scene, &destinations, picks));
            let before = Outbound { is_before_proxy: true, ..later };
            let is_proxys = later.is_proxy_by_uid(&policy) || later.is_proxy_by_gid(&policy);
            for verdict in [verdict::outbound, verdict::datagram] {
                let (before, later) = (verdict(&policy, &scene, &before), verdict(&policy, &scene, &later));
                if before == Reason::BeforeProxy {
                    prop_assert_eq!(before.action(), Action::Direct);
                    direct.set(direct.get() + u32::from(later.action() != Action::Direct));
                } else {
                    prop_assert_eq!(before, later);
                    prop_assert!(before.action() == Action::Direct || is_proxys, "{:?}", before);
                }
            }
        }
        Ok(())
    });
    assert!(direct.get() >= 5_000, "only {} connections made the difference", direct.get());
}

#[test]
fn a_listener_on_localhost_or_on_another_port_does_not_tell_of_the_proxy() {
    let policy: PodPolicy = Scene::default_pod().policy();
    for (port, bound, tells) in [
        (15001, Address::UNSPECIFIED, true),
        (15006, Address::UNSPECIFIED, true),
        (15001, Address::v4([0; 4]), true),
        (15001, Address::v4([10, 0, 0, 5]), true),
        // istio-validation, which ends before the proxy comes.
        (15001, Address::LOOPBACK_V4, false),
        (15006, Address::LOOPBACK_V6, false),
        (15020, Address::UNSPECIFIED, false),
        (15053, Address::UNSPECIFIED, false),
    ] {
        assert_eq!(policy.tells_of_the_proxy(Port::new(port), &bound), tells, "{bound:?}:{port}");
    }
}
