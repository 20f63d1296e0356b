//! Captures and addresses for tests.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::{InterfaceAddress, Link, Links, OwnAddresses, Route};
use crate::model::{
    BeforeProxy, Capture, Driver, IdSpace, InboundPorts, InterceptionMode, InterfaceName, OutboundRanges,
    OwnerGroups, Port, ProxyIdentity,
};

/// What a pod without any annotation gets.
pub(crate) fn default_capture() -> Capture {
    Capture {
        proxy_uid: 1337,
        proxy_gid: 1337,
        ids: IdSpace::Node,
        mode: InterceptionMode::Redirect,
        inbound: InboundPorts::All { excluded: [15020, 15021, 15090].map(Port::new).into() },
        outbound: OutboundRanges::All,
        excluded_ranges: BTreeSet::new(),
        included_outbound_ports: BTreeSet::new(),
        excluded_outbound_ports: [Port::new(15020)].into(),
        excluded_interfaces: BTreeSet::new(),
        rerouted_interfaces: BTreeSet::new(),
        dns_capture: false,
        dual_stack: false,
        drop_invalid: false,
        owner_groups: OwnerGroups::AllExcept(BTreeSet::new()),
        loopback: "127.0.0.1/32".parse().unwrap(),
        proxy_identity: ProxyIdentity::Uid,
        before_proxy: BeforeProxy::Refuse,
        driver: Driver::Sidecar,
        presence: crate::model::Presence::Full,
        warnings: vec![],
    }
}

/// These addresses on `eth0`.
pub(crate) fn own_addresses(texts: &[&str]) -> OwnAddresses {
    let on_eth0 = |text: &&str| InterfaceAddress {
        interface: "eth0".into(),
        address: text.parse().unwrap(),
        scope: 0,
        flags: 0,
    };
    OwnAddresses::choose(&texts.iter().map(on_eth0).collect::<Vec<_>>(), "eth0")
}

pub(crate) fn any_own_addresses() -> impl Strategy<Value = OwnAddresses> {
    let known = vec![
        "127.0.0.1",
        "10.0.0.5",
        "192.168.7.5",
        "169.254.172.3",
        "::1",
        "2001:db8::5",
        "fd00::5",
        "::6",
        "fe80::5",
    ];
    let count = known.len();
    subsequence(known, 0..=count).prop_map(|texts| own_addresses(&texts))
}

pub(crate) fn any_capture() -> impl Strategy<Value = Capture> {
    let inbound = prop_oneof![
        ports().prop_map(|excluded| InboundPorts::All { excluded }),
        ports().prop_map(InboundPorts::Only),
    ];
    let outbound = prop_oneof![Just(OutboundRanges::All), ranges().prop_map(OutboundRanges::Only)];
    let ids = (select(vec![1337_u32, 2102]), select(vec![1337_u32, 2102]));
    let mode = select(vec![InterceptionMode::Redirect, InterceptionMode::Tproxy]);
    let interfaces = (names(), names());
    let node = (mode, owner_groups(), any::<bool>(), interfaces);
    let identity = (
        select(vec![ProxyIdentity::Uid, ProxyIdentity::Container]),
        select(vec![BeforeProxy::Refuse, BeforeProxy::Direct]),
        select(vec![Driver::Sidecar, Driver::Node, Driver::Ztunnel]),
    );
    ((ids, identity), node, any::<bool>(), inbound, outbound, ranges(), ports(), ports()).prop_map(
        |(
            ((proxy_uid, proxy_gid), (proxy_identity, before_proxy, driver)),
            (mode, owner_groups, dns_capture, (excluded_interfaces, rerouted_interfaces)),
            dual_stack,
            inbound,
            outbound,
            excluded_ranges,
            included,
            excluded,
        )| {
            Capture {
                proxy_uid,
                proxy_gid,
                mode,
                dns_capture,
                dual_stack,
                inbound,
                outbound,
                excluded_ranges,
                included_outbound_ports: included,
                excluded_outbound_ports: excluded,
                owner_groups,
                proxy_identity,
                before_proxy,
                driver,
                excluded_interfaces,
                rerouted_interfaces,
                ..default_capture()
            }
        },
    )
}

/// Names of which [`any_links`] has some.
fn names() -> impl Strategy<Value = BTreeSet<InterfaceName>> {
    let some = subsequence(vec!["lo", "eth0", "net1", "net2", "gone"], 0..3);
    let parse = |names: Vec<&str>| names.into_iter().filter_map(InterfaceName::parse).collect();
    prop_oneof![1 => Just(BTreeSet::new()), 2 => some.prop_map(parse)]
}

/// A netns with some of five interfaces, and routes.
pub(crate) fn any_links() -> impl Strategy<Value = Links> {
    let link = |(index, name): (u32, &str)| Link { index, name: name.to_owned(), is_up: true };
    let all = [(1, "lo"), (2, "eth0"), (3, "net1"), (4, "net2")];
    let links = subsequence(all.to_vec(), 1..=4).prop_map(move |links| links.into_iter().map(link).collect());
    let hops = || subsequence(vec![2_u32, 3, 4], 0..=2);
    let route = (ranges(), 0..3_u32, hops()).prop_map(|(ranges, metric, interfaces)| {
        let route = move |destination: IpNet| Route {
            destination: destination.trunc(),
            metric,
            interfaces: interfaces.clone(),
        };
        ranges.into_iter().map(route).collect::<Vec<_>>()
    });
    (links, vec(route, 0..4)).prop_map(|(links, routes)| Links { links, routes: routes.concat() })
}

fn owner_groups() -> impl Strategy<Value = OwnerGroups> {
    let some = || btree_set(select(vec![0_u32, 1000, 1337, 2102]), 0..3);
    prop_oneof![some().prop_map(OwnerGroups::AllExcept), some().prop_map(OwnerGroups::Only)]
}

fn ports() -> impl Strategy<Value = BTreeSet<Port>> {
    let port = prop_oneof![select(vec![0_u16, 53, 80, 443, 15001, 15008, 15020]), any::<u16>()];
    btree_set(port.prop_map(Port::new), 0..20)
}

fn ranges() -> impl Strategy<Value = BTreeSet<IpNet>> {
    let known = select(vec![
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.1.2.3/8",
        "10.0.0.5/32",
        "10.0.0.4/31",
        "127.0.0.0/8",
        "127.0.0.2/32",
        "192.0.2.0/24",
        "::/0",
        "::1/128",
        "::6/128",
        "2001:db8::/32",
        "2001:db8::5/128",
        "fd00::/8",
        "::ffff:10.0.0.0/104",
    ]);
    let known = known.prop_map(|text| text.parse::<IpNet>().unwrap());
    let random = (any::<IpAddr>(), 0..=128_u8)
        .prop_filter_map("too long for IPv4", |(address, length)| IpNet::new(address, length).ok());
    vec(prop_oneof![3 => known, 1 => random], 0..10).prop_map(|ranges| ranges.into_iter().collect())
}
