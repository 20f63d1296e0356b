use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::select;
use veer_common::address::{Address, Port};
use veer_common::verdict::Sender;

use super::*;
use crate::capture::testing::{any_capture, any_links, any_own_addresses, default_capture, own_addresses};
use crate::capture::{CaptureRules, map_entries};

const COOKIE: NetnsCookie = 7;

const ADDRESSES: [&str; 14] = [
    "10.0.0.5",
    "10.1.2.3",
    "192.0.2.1",
    "127.0.0.1",
    "127.0.0.2",
    "127.0.0.6",
    "0.0.0.0",
    "::",
    "::1",
    "::6",
    "2001:db8::5",
    "2001:db8::9",
    "fd00::5",
    "fe80::9",
];

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

fn any_connection() -> impl Strategy<Value = Connection> {
    let address = || select(ADDRESSES.to_vec()).prop_map(address);
    let port = || select(vec![0_u16, 53, 80, 443, 8080, 15001, 15008, 15020]).prop_map(Port::new);
    let id = || select(vec![0_u32, 1000, 1337, 2102]);
    let interface = || select(vec![0_u32, 1, 2, 3, 4]);
    let outbound = || {
        let who = (id(), id(), any::<bool>(), any::<bool>(), any::<bool>());
        (who, address(), address(), port(), interface()).prop_map(
            |((uid, gid, is_impostor, is_before_proxy, is_marked), source, destination, port, interface)| {
                Outbound {
                    uid,
                    gid,
                    is_impostor,
                    is_before_proxy,
                    is_marked,
                    source,
                    destination,
                    port,
                    interface,
                }
            },
        )
    };
    let sender = || select(vec![Sender::Client, Sender::Proxy, Sender::Node]);
    prop_oneof![
        outbound().prop_map(Connection::Outbound),
        outbound().prop_map(Connection::Datagram),
        (address(), address(), port(), interface(), sender()).prop_map(
            |(remote, local, port, interface, sender)| {
                Connection::Inbound(Inbound { remote, local, port, interface, sender })
            }
        ),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn the_rule_that_is_told_gives_the_verdict_and_those_before_it_give_others(
        capture in any_capture(), own in any_own_addresses(), links in any_links(), connection in any_connection()
    ) {
        let mut entries = map_entries(COOKIE, &capture, &own);
        entries.interfaces = entries.interfaces.in_netns(&links);
        let explanation = explain(COOKIE, &entries, &connection);
        // The verdict itself, asked without a trace and through the lists as they were parsed.
        let rules = CaptureRules::new(&capture, &own, &links);
        let reason = match &connection {
            Connection::Outbound(outbound) => verdict::outbound(&entries.policy, &rules, outbound),
            Connection::Datagram(sent) => verdict::datagram(&entries.policy, &rules, sent),
            Connection::Inbound(inbound) => verdict::inbound(&entries.policy, &rules, inbound),
        };
        prop_assert_eq!(explanation.reason, reason);
        prop_assert_eq!(explanation.matched.rule.reason(), reason);
        prop_assert_eq!(explanation.port, proxy_port(&entries.policy, reason));
        prop_assert!(explanation.before.iter().all(|looked| looked.rule != explanation.matched.rule));
        prop_assert!(!explanation.grounds.is_empty());
        // A rule that did not match says something else than it would if it had.
        for looked in &explanation.before {
            let facts = Facts {
                policy: &entries.policy, lists: Lists::new(COOKIE, &entries), connection: &connection,
            };
            prop_assert!(!looked.compared.is_empty() && !looked.compared.contains("  "), "{:?}", looked);
            prop_assert_eq!(&compared::compared(looked.rule, false, &facts), &looked.compared);
        }
    }
}

fn told(entries: &MapEntries, connection: Connection) -> (Reason, String) {
    let explanation = explain(COOKIE, entries, &connection);
    (explanation.reason, explanation.matched.compared)
}

#[test]
fn what_is_dialled_as_unspecified_is_told_as_where_it_goes() {
    let own = own_addresses(&["127.0.0.1", "10.0.0.5", "::1"]);
    let entries = map_entries(COOKIE, &default_capture(), &own);
    let outbound = |source: &str, destination: &str| {
        Connection::Outbound(Outbound {
            uid: 0,
            gid: 0,
            is_impostor: false,
            is_before_proxy: false,
            is_marked: false,
            source: address(source),
            destination: address(destination),
            port: Port::new(80),
            interface: 0,
        })
    };
    for (source, destination, text) in [
        ("0.0.0.0", "0.0.0.0", "127.0.0.1 is loopback, and no included range begins in loopback"),
        ("10.0.0.5", "0.0.0.0", "10.0.0.5 is the pod's own, and no included range begins in loopback"),
        ("::", "::", "::1 is loopback, and no included range begins in loopback"),
    ] {
        assert_eq!(
            told(&entries, outbound(source, destination)),
            (Reason::AppToOwnAddress, text.to_owned()),
            "{source} {destination}"
        );
    }
}

#[test]
fn long_lists_are_told_as_far_as_a_person_reads() {
    let excluded = (0..40_u16)
        .map(|n| crate::model::Port::new(2 * n + 1))
        .chain([(81), (82)].map(crate::model::Port::new));
    let capture = crate::model::Capture { excluded_outbound_ports: excluded.collect(), ..default_capture() };
    let entries = map_entries(COOKIE, &capture, &own_addresses(&["10.0.0.5"]));
    assert_eq!(
        Lists::new(COOKIE, &entries).ports(veer_common::maps::PortList::ExcludedOutbound).unwrap(),
        "1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23 and 29 more"
    );
}

#[test]
fn with_tproxy_the_proxys_group_is_told_which_inbound_port_is_not_captured() {
    let mode = crate::model::InterceptionMode::Tproxy;
    let capture = crate::model::Capture { mode, ..default_capture() };
    let entries = map_entries(COOKIE, &capture, &own_addresses(&["10.0.0.5"]));
    let connection = Connection::Outbound(Outbound {
        is_before_proxy: false,
        is_marked: false,
        uid: 0,
        gid: 1337,
        is_impostor: false,
        source: address("0.0.0.0"),
        destination: address("10.0.0.5"),
        port: Port::new(15021),
        interface: 0,
    });
    let explanation = explain(COOKIE, &entries, &connection);
    assert_eq!(explanation.reason, Reason::AppToOwnAddress);
    let told = explanation.before.iter().find(|looked| looked.rule == Rule::ProxyToOwnAddress).unwrap();
    assert_eq!(
        told.compared,
        "uid 0 is not the proxy's, 1337; gid 1337 is the proxy's, but inbound port 15021 is not captured"
    );
}
