//! The verdict does what istio-init's rules do, and its trace says how: random pods, random connections.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, TestRunner};

use super::iptables::{Iptables, Packet};
use super::{APP, ETH0, LO, NET1, PROXY, ROOT, Range, Scene, Trail, addresses, ip, ranges};
use crate::address::{Address, Port};
use crate::reason::Action;
use crate::verdict::{self, Inbound, Outbound, Sender};

const PODS: u32 = 1024;
pub(super) const CONNECTIONS: usize = 160;

const PORTS: [u16; 14] = [1, 53, 80, 443, 3306, 8080, 15001, 15006, 15008, 15020, 15021, 15053, 15090, 65535];

/// Bytes that pick uid, gid, source, destination, port and interface out of what the pod makes interesting.
pub(super) type Picks = [u8; 6];

#[derive(Clone, Copy, Debug)]
pub(super) struct Dial {
    uid: u32,
    gid: u32,
    source: Option<IpAddr>,
    destination: IpAddr,
    port: u16,
    /// `SO_BINDTODEVICE`.
    interface: u32,
}

#[test]
fn outbound_goes_where_istio_inits_rules_send_it() {
    let compared = Cell::new(0);
    run(&(scene(), vec(any::<Picks>(), CONNECTIONS)), |(scene, picks)| {
        let iptables = Iptables::of(&scene);
        let policy = scene.policy();
        let destinations = destinations(&scene);
        for picks in picks {
            let dial = dial(&scene, &destinations, picks);
            let Some(expected) = expected(&scene, &iptables, &dial) else { continue };
            let facts = Outbound { is_before_proxy: scene.before_proxy, ..facts(&dial) };
            let reason = verdict::outbound(&policy, &scene, &facts);
            let mut trace = Trail::default();
            prop_assert_eq!(verdict::trace_outbound(&policy, &scene, &facts, &mut trace), reason);
            prop_assert!(trace.leads_to(reason), "{:?} to {:?}: {:?}", dial, reason, trace);
            prop_assert_eq!(reason.action(), expected, "{:?} gave {:?} in {:?}", dial, reason, &scene);
            compared.set(compared.get() + 1);
        }
        Ok(())
    });
    assert!(compared.get() >= 100_000, "only {} connections were compared", compared.get());
}

#[test]
fn udp_goes_where_istio_inits_rules_send_it() {
    let captured = Cell::new(0);
    run(&(scene(), vec(any::<Picks>(), CONNECTIONS)), |(scene, picks)| {
        let iptables = Iptables::of(&scene);
        let policy = scene.policy();
        let destinations = destinations(&scene);
        for picks in picks {
            // Nothing but DNS is redirected, so let a good part of it be that.
            let port = if picks[4] < 128 { 53 } else { pick(&PORTS, picks[4]) };
            let dial = Dial { port, ..dial(&scene, &destinations, picks) };
            let expected = match packet(&scene, &dial) {
                // As for TCP: nobody dials ::6 so.
                Some(packet) if dial.source.is_none() && packet.destination == ip("::6") => continue,
                Some(packet) => iptables.output(Packet { udp: true, ..packet }),
                None => Action::Direct,
            };
            let facts = Outbound { is_before_proxy: scene.before_proxy, ..facts(&dial) };
            let reason = verdict::datagram(&policy, &scene, &facts);
            let mut trace = Trail::default();
            prop_assert_eq!(verdict::trace_datagram(&policy, &scene, &facts, &mut trace), reason);
            prop_assert!(trace.leads_to(reason), "{:?} to {:?}: {:?}", dial, reason, trace);
            prop_assert_eq!(reason.action(), expected, "{:?} gave {:?} in {:?}", dial, reason, &scene);
            captured.set(captured.get() + u32::from(reason.action() == Action::ToDns));
        }
        Ok(())
    });
    assert!(captured.get() >= 4_000, "only {} datagrams were captured", captured.get());
}

#[test]
fn inbound_goes_where_istio_inits_rules_send_it() {
    run(&(scene(), vec(any::<Picks>(), 32)), |(scene, picks)| {
        let iptables = Iptables::of(&scene);
        let policy = scene.policy();
        for [_, _, remote, local, port, interface] in picks {
            let local = pick(&scene.own, local);
            let remote = match local {
                IpAddr::V4(_) => pick(&addresses(&["192.0.2.9", "10.0.0.6", "169.254.1.1"]), remote),
                IpAddr::V6(_) => pick(&addresses(&["2001:db8:9::9", "fd00::6", "fe80::9"]), remote),
            };
            let port = pick(&PORTS, port);
            let interface = pick(&[ETH0, NET1], interface);
            // TPROXY's rules know of no virtual machines: what they do to them depends on the order of tables
            // alone, and the contract has I5 hold in both modes alike.
            if scene.tproxy && scene.rerouted_interfaces.contains(&interface) {
                continue;
            }
            let packet = Packet {
                udp: false,
                source: remote,
                destination: local,
                port,
                owner: None,
                loopback: false,
                interface,
                mark: 0,
            };
            let (remote, local, port) = (remote.into(), local.into(), Port::new(port));
            let facts = Inbound { remote, local, port, interface, sender: Sender::Client };
            let reason = verdict::inbound(&policy, &scene, &facts);
            let mut trace = Trail::default();
            prop_assert_eq!(verdict::trace_inbound(&policy, &scene, &facts, &mut trace), reason);
            prop_assert!(trace.leads_to(reason), "{:?} to {:?}: {:?}", facts, reason, trace);
            prop_assert_eq!(reason.action(), iptables.prerouting(packet), "{:?} in {:?}", facts, &scene);
        }
        Ok(())
    });
}

/// What the rules do with a connection; `None` where the contract departs from them on purpose.
pub(super) fn expected(scene: &Scene, iptables: &Iptables, dial: &Dial) -> Option<Action> {
    // The kernel refuses such a connect() without us.
    let Some(packet) = packet(scene, dial) else { return Some(Action::Direct) };

    // An unbound socket that dials ::6 has ::6 as its source, too, and istio-init takes it for the
    // proxy's passthrough. Nobody dials so: istio-validation binds to ::1.
    if dial.source.is_none() && packet.destination == ip("::6") {
        return None;
    }
    let stays = packet.loopback;
    let by_uid = dial.uid == scene.proxy_uid;
    // istio-init excepts the proxy's DNS from "to its own pod, so for its app" by its uid alone. By its gid it
    // does not, and the contract has all DNS of the proxy's go direct.
    let dns = scene.captures_dns && dial.port == 53;
    if dns && stays && !by_uid && dial.gid == scene.proxy_gid {
        return None;
    }
    // TPROXY marks the proxy's connections to its own pod in the mangle table, which knows neither the
    // excluded outbound ports nor the tunnel port nor DNS. The contract has O11 hold in both modes alike.
    if scene.tproxy && stays && (by_uid || dial.gid == scene.proxy_gid) {
        let excluded_outbound = dial.port == 15008 || dns || scene.excluded_outbound.contains(&dial.port);
        if excluded_outbound {
            return None;
        }
    }
    Some(iptables.output(packet))
}

/// The SYN that the kernel makes of a `connect()`, if it makes one.
pub(super) fn packet(scene: &Scene, dial: &Dial) -> Option<Packet> {
    let bound = dial.source.filter(|source| !source.to_canonical().is_unspecified());
    let destination = match dial.destination {
        IpAddr::V4(v4) if v4.is_unspecified() => bound.unwrap_or(ip("127.0.0.1")),
        IpAddr::V6(v6) if v6.is_unspecified() => match dial.source {
            Some(IpAddr::V4(_)) => ip("127.0.0.1"),
            Some(IpAddr::V6(_)) | None => ip("::1"),
        },
        IpAddr::V4(_) | IpAddr::V6(_) => dial.destination,
    };
    let own = scene.own.contains(&destination);
    let loopback = own || destination.is_loopback();
    let routable = |address: &&IpAddr| match address {
        IpAddr::V4(_) => destination.is_ipv4(),
        IpAddr::V6(v6) => destination.is_ipv6() && !v6.is_unicast_link_local() && **address != ip("::6"),
    };
    let chosen = if own {
        Some(destination)
    } else if destination.is_loopback() {
        Some(if destination.is_ipv4() { ip("127.0.0.1") } else { ip("::1") })
    } else {
        scene.own.iter().find(routable).copied()
    };
    let source = bound.or(chosen).filter(|_| chosen.is_some())?;
    let owner = Some((dial.uid, dial.gid));
    let interface = match dial.interface {
        _ if loopback => LO,
        0 => scene.route_to(destination),
        tied => tied,
    };
    Some(Packet { udp: false, source, destination, port: dial.port, owner, loopback, interface, mark: 0 })
}

pub(super) fn facts(dial: &Dial) -> Outbound {
    Outbound {
        uid: dial.uid,
        gid: dial.gid,
        is_impostor: false,
        is_before_proxy: false,
        is_marked: false,
        source: dial.source.map_or(Address::UNSPECIFIED, Address::from),
        destination: dial.destination.into(),
        port: Port::new(dial.port),
        interface: dial.interface,
    }
}

pub(super) fn dial(
    scene: &Scene,
    destinations: &[IpAddr],
    [uid, gid, source, destination, port, interface]: Picks,
) -> Dial {
    let ids = [APP, PROXY, ROOT, scene.proxy_uid, scene.proxy_gid];
    let destination = pick(destinations, destination);
    let mut sources = addresses(match destination {
        IpAddr::V4(_) => &["127.0.0.1", "127.0.0.6", "0.0.0.0"],
        IpAddr::V6(v6) if v6.is_unspecified() => &["::1", "::6", "127.0.0.6", "10.0.0.5", "0.0.0.0"],
        IpAddr::V6(_) => &["::1", "::6"],
    });
    sources.extend(scene.own.iter().filter(|own| own.is_ipv4() == destination.is_ipv4()));
    // Most sockets are not bound.
    let source = (source >= 128).then(|| pick(&sources, source - 128));
    // Most are not tied to an interface either.
    let interface = if interface < 64 { pick(&[ETH0, NET1], interface) } else { 0 };
    let (uid, gid) = (pick(&ids, uid), pick(&ids, gid));
    Dial { uid, gid, source, destination, port: pick(&PORTS, port), interface }
}

/// Where rules begin and end, and what they treat apart.
pub(super) fn destinations(scene: &Scene) -> Vec<IpAddr> {
    let mut all = addresses(&[
        "127.0.0.1",
        "127.0.0.2",
        "127.0.0.6",
        "127.255.255.255",
        "128.0.0.0",
        "126.255.255.255",
        "0.0.0.0",
        "::1",
        "::2",
        "::6",
        "::",
        "192.0.2.9",
        "10.0.0.6",
        "2001:db8::6",
        "2001:db8:9::9",
        "fe80::9",
        "169.254.169.254",
    ]);
    all.extend(&scene.own);
    for (address, length) in scene.included_ranges.iter().flatten().chain(&scene.excluded_ranges) {
        match address {
            IpAddr::V4(v4) => {
                let hosts = u32::MAX.checked_shr(u32::from(*length)).unwrap_or(0);
                let (first, last) = (u32::from(*v4) & !hosts, u32::from(*v4) | hosts);
                let edges = [first.wrapping_sub(1), first, last, last.wrapping_add(1)];
                all.extend(edges.map(|edge| IpAddr::from(Ipv4Addr::from(edge))));
            }
            IpAddr::V6(v6) => {
                let hosts = u128::MAX.checked_shr(u32::from(*length)).unwrap_or(0);
                let (first, last) = (u128::from(*v6) & !hosts, u128::from(*v6) | hosts);
                let edges = [first.wrapping_sub(1), first, last, last.wrapping_add(1)];
                all.extend(edges.map(|edge| IpAddr::from(Ipv6Addr::from(edge))));
            }
        }
    }
    // On the wire a mapped address is the IPv4 address, and that is what the hooks say, too.
    all.iter().map(IpAddr::to_canonical).collect()
}

fn pick<T: Copy>(from: &[T], byte: u8) -> T {
    from[usize::from(byte) % from.len()]
}

pub(super) fn scene() -> impl Strategy<Value = Scene> {
    let identity = (select(vec![PROXY, PROXY, 2102, APP]), select(vec![PROXY, PROXY, 2102, APP]));
    let lists = (ports(), ports(), prop::option::of(some_ranges()), some_ranges());
    let inbound = (prop::option::of(ports()), ports());
    let node = (groups(), localhost());
    // Most pods have their proxy, or are to wait for it.
    let before = select(vec![true, false, false, false]);
    let modes = (any::<bool>(), any::<bool>(), any::<bool>(), before);
    (identity, own(), modes, lists, inbound, node, interfaces()).prop_map(
        |(
            (proxy_uid, proxy_gid),
            own,
            (tproxy, dual_stack, captures_dns, before_proxy),
            lists,
            inbound,
            (groups, localhost),
            (excluded_interfaces, rerouted_interfaces, routes),
        )| {
            let (excluded_outbound, included_outbound, included_ranges, excluded_ranges) = lists;
            let (included_inbound, excluded_inbound) = inbound;
            Scene {
                proxy_uid,
                proxy_gid,
                tproxy,
                ambient: false,
                captures_dns,
                before_proxy,
                dual_stack,
                own,
                excluded_outbound,
                included_outbound,
                included_ranges,
                excluded_ranges,
                included_inbound,
                excluded_inbound,
                groups,
                localhost,
                excluded_interfaces,
                rerouted_interfaces,
                routes,
            }
        },
    )
}

type Interfaces = (Vec<u32>, Vec<u32>, Vec<(Range, u32)>);

/// Most pods name no interface.
fn interfaces() -> impl Strategy<Value = Interfaces> {
    let named = || prop_oneof![2 => Just(vec![]), 1 => subsequence(vec![LO, ETH0, NET1], 1..=2)];
    let route = |ranges: Vec<Range>| ranges.into_iter().zip([NET1, ETH0, NET1]).collect();
    (named(), named(), some_ranges().prop_map(route))
}

/// Most nodes have none of these settings.
fn groups() -> impl Strategy<Value = Result<Vec<u32>, Vec<u32>>> {
    let some = || subsequence(vec![APP, PROXY, ROOT, 2102], 0..3);
    prop_oneof![4 => Just(Err(vec![])), 1 => some().prop_map(Err), 1 => some().prop_map(Ok)]
}

fn localhost() -> impl Strategy<Value = (Ipv4Addr, u8)> {
    let ranges = [([127, 0, 0, 1], 32), ([127, 0, 0, 1], 8), ([127, 0, 0, 0], 30), ([127, 0, 0, 2], 32)];
    let other = select(ranges.map(|(address, length)| (Ipv4Addr::from(address), length)).to_vec());
    prop_oneof![3 => Just((Ipv4Addr::LOCALHOST, 32)), 1 => other]
}

/// The addresses that pods have, in netlink's order; at least one.
fn own() -> impl Strategy<Value = Vec<IpAddr>> {
    let all =
        addresses(&["10.0.0.5", "192.168.7.5", "169.254.172.3", "2001:db8::5", "fd00::5", "fe80::5", "::6"]);
    let count = all.len();
    subsequence(all, 1..=count)
}

fn ports() -> impl Strategy<Value = Vec<u16>> {
    subsequence(PORTS.to_vec(), 0..4)
}

fn some_ranges() -> impl Strategy<Value = Vec<Range>> {
    let known = ranges(&[
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.0.5/32",
        "10.0.0.6/31",
        "10.96.1.2/12",
        "192.0.2.0/24",
        "127.0.0.0/8",
        "127.0.0.1/32",
        "127.0.0.2/32",
        "127.0.0.1/4",
        "169.254.0.0/16",
        "::/0",
        "::1/128",
        "::6/128",
        "2001:db8::/32",
        "2001:db8::5/128",
        "fd00::/8",
        "fe80::/10",
        "::ffff:10.0.0.0/104",
        "::ffff:127.0.0.1/128",
    ]);
    let random_v4 =
        (any::<u32>(), 0..=32_u8).prop_map(|(bits, length)| (Ipv4Addr::from(bits).into(), length));
    let random_v6 =
        (any::<u128>(), 0..=128_u8).prop_map(|(bits, length)| (Ipv6Addr::from(bits).into(), length));
    vec(prop_oneof![6 => select(known), 1 => random_v4, 1 => random_v6], 0..4)
}

pub(super) fn run<S: Strategy>(strategy: &S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = Config { cases: PODS, failure_persistence: None, ..Config::default() };
    TestRunner::new(config).run(strategy, test).unwrap_or_else(|error| panic!("{error}"));
}
