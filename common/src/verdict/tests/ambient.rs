//! Ambient mode: the verdict does what Istio's in-pod rules do, which an interpreter of them runs.
//!
//! The rules are those that istio-cni programs (istio/istio, cni/pkg/iptables, August 2026), in their order, without those
//! on zones of conntrack. Of what comes over `lo`, NAT has made up its mind in OUTPUT.

use std::cell::Cell;
use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::*;

use super::agreement::{self, CONNECTIONS, Dial, Picks};
use super::{ETH0, Scene, Trail, addresses, ip};
use crate::address::Port;
use crate::reason::{Action, Reason};
use crate::verdict::ambient::{REPLY, ZTUNNEL, hands_on, is_ztunnels};
use crate::verdict::{self, Inbound, Outbound, Sender};

/// What a rule sees of a packet.
#[derive(Clone, Copy, Debug)]
struct Packet {
    udp: bool,
    source: IpAddr,
    destination: IpAddr,
    port: u16,
    mark: u32,
    over_lo: bool,
}

/// Where istio-cni has the node rewrite the source of its own probes to.
const PROBES: [&str; 2] = ["169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"];

impl Packet {
    fn is_probe(&self) -> bool {
        PROBES.map(ip).contains(&self.source)
    }

    fn is_to_localhost(&self) -> bool {
        [ip("127.0.0.1"), ip("::1")].contains(&self.destination)
    }

    fn has_mark(&self, mark: u32) -> bool {
        self.mark & 0xfff == mark
    }
}

/// `nat OUTPUT`, jumping to `ISTIO_OUTPUT`.
fn output(packet: &Packet, dns: bool) -> Action {
    let marked = packet.has_mark(0x539);
    let rules = [
        (dns && !packet.over_lo && packet.udp && !marked && packet.port == 53, Action::ToDns),
        (dns && !packet.is_to_localhost() && !packet.udp && packet.port == 53 && !marked, Action::ToDns),
        (!packet.udp && packet.has_mark(0x111), Action::Direct),
        (!packet.is_to_localhost() && packet.over_lo, Action::Direct),
        (!packet.is_to_localhost() && !packet.udp && !marked, Action::ToOutbound),
    ];
    rules.into_iter().find(|(matches, _)| *matches).map_or(Action::Direct, |(_, action)| action)
}

/// `nat PREROUTING`, jumping to `ISTIO_PRERT`.
fn prerouting(packet: &Packet, bypass: bool) -> Action {
    if bypass || packet.over_lo || packet.is_probe() {
        return Action::Direct;
    }
    let captured = !packet.is_to_localhost() && packet.port != 15008 && !packet.has_mark(0x539);
    if captured { Action::ToInbound } else { Action::Direct }
}

fn ambient(scene: Scene, bypass: bool) -> Scene {
    let included_inbound = bypass.then(Vec::new);
    Scene { ambient: true, dual_stack: true, included_inbound, included_ranges: None, ..scene }
}

const MARKS: [u32; 6] = [0, 0, 0x539, 0x7_0539, 0x111, 0x538];

#[test]
fn what_is_dialled_goes_where_istios_rules_send_it() {
    let counted = Cell::new([0_u32; 3]);
    let strategy = (agreement::scene(), vec((any::<Picks>(), any::<u8>(), any::<bool>()), CONNECTIONS));
    agreement::run(&strategy, |(scene, picks)| {
        let scene = ambient(scene, false);
        let policy = scene.policy();
        let destinations = agreement::destinations(&scene);
        for (picks, mark, udp) in picks {
            let mark = MARKS[usize::from(mark) % MARKS.len()];
            let dial: Dial = agreement::dial(&scene, &destinations, picks);
            let facts = Outbound { is_marked: is_ztunnels(mark), ..agreement::facts(&dial) };
            // ztunnel's connections with the second mark are its own for DNS, too.
            let is_dns = facts.port.get() == 53 && scene.captures_dns;
            if mark == REPLY && is_dns {
                continue;
            }
            let expected = match agreement::packet(&scene, &dial) {
                Some(packet) => output(
                    &Packet {
                        udp,
                        source: packet.source,
                        destination: packet.destination,
                        port: packet.port,
                        mark,
                        over_lo: packet.loopback,
                    },
                    scene.captures_dns,
                ),
                None => Action::Direct,
            };
            let mut trace = Trail::default();
            let (reason, traced) = if udp {
                let traced = verdict::trace_datagram(&policy, &scene, &facts, &mut trace);
                (verdict::datagram(&policy, &scene, &facts), traced)
            } else {
                let traced = verdict::trace_outbound(&policy, &scene, &facts, &mut trace);
                (verdict::outbound(&policy, &scene, &facts), traced)
            };
            prop_assert_eq!(traced, reason);
            prop_assert!(trace.leads_to(reason), "{:?} to {:?}: {:?}", facts, reason, trace);
            prop_assert_eq!(
                reason.action(),
                expected,
                "{:?} {:#x} gave {:?} in {:?}",
                dial,
                mark,
                reason,
                &scene
            );
            let [direct, outbound, dns] = counted.get();
            counted.set(match reason.action() {
                Action::ToOutbound => [direct, outbound + 1, dns],
                Action::ToDns => [direct, outbound, dns + 1],
                Action::Direct | Action::ToInbound | Action::Drop => [direct + 1, outbound, dns],
            });
        }
        Ok(())
    });
    assert!(counted.get().into_iter().all(|count| count > 1000), "{counted:?}");
}

#[test]
fn what_arrives_goes_where_istios_rules_send_it() {
    agreement::run(
        &(agreement::scene(), any::<bool>(), vec(any::<[u8; 4]>(), 32)),
        |(scene, bypass, picks)| {
            let scene = ambient(scene, bypass);
            let policy = scene.policy();
            for [remote, local, port, sender] in picks {
                let local = scene.own[usize::from(local) % scene.own.len()];
                let remotes = addresses(match local {
                    IpAddr::V4(_) => &["192.0.2.9", "10.0.0.6", "169.254.1.1"],
                    IpAddr::V6(_) => &["2001:db8:9::9", "fd00::6", "fe80::9"],
                });
                let mut remotes = remotes;
                remotes.extend(scene.own.iter().filter(|own| own.is_ipv4() == local.is_ipv4()));
                let remote = remotes[usize::from(remote) % remotes.len()];
                let sender =
                    [Sender::Client, Sender::Client, Sender::Proxy, Sender::Node][usize::from(sender % 4)];
                let port = [80, 53, 15001, 15006, 15008, 15020, 15021, 15053, 15090][usize::from(port) % 9];
                let rewritten = if local.is_ipv4() { ip(PROBES[0]) } else { ip(PROBES[1]) };
                let own = scene.own.contains(&remote);
                let packet = Packet {
                    udp: false,
                    source: if sender == Sender::Node { rewritten } else { remote },
                    destination: local,
                    port,
                    mark: if sender == Sender::Proxy { ZTUNNEL } else { 0 },
                    over_lo: own || sender == Sender::Proxy,
                };
                let (remote, local, port) = (remote.into(), local.into(), Port::new(port));
                let facts = Inbound { remote, local, port, interface: ETH0, sender };
                let reason = verdict::inbound(&policy, &scene, &facts);
                let mut trace = Trail::default();
                prop_assert_eq!(verdict::trace_inbound(&policy, &scene, &facts, &mut trace), reason);
                prop_assert!(trace.leads_to(reason), "{:?} to {:?}: {:?}", facts, reason, trace);
                prop_assert_eq!(reason.action(), prerouting(&packet, bypass), "{:?} in {:?}", facts, &scene);
            }
            Ok(())
        },
    );
}

fn pod() -> Scene {
    ambient(Scene { captures_dns: true, ..Scene::default_pod() }, false)
}

#[test]
fn of_one_that_sleeps_nothing_is_captured_and_ztunnel_is_known() {
    let awake = pod();
    let asleep = Scene { included_ranges: Some(vec![]), included_inbound: Some(vec![]), ..pod() };
    let asleep = Scene { captures_dns: false, ..asleep };
    let outbound = |scene: &Scene, marked| {
        verdict::outbound(&scene.policy(), scene, &dialled("0.0.0.0", "192.0.2.9", marked))
    };
    assert_eq!(outbound(&awake, false), Reason::AllOutbound);
    assert_eq!((outbound(&asleep, false), outbound(&asleep, true)), (Reason::NotIncluded, Reason::ProxyMark));
    let inbound = |sender| {
        let (remote, local) = (ip("192.0.2.9").into(), ip("10.0.0.5").into());
        let arriving = Inbound { remote, local, port: Port::new(80), interface: ETH0, sender };
        verdict::inbound(&asleep.policy(), &asleep, &arriving)
    };
    assert_eq!(inbound(Sender::Client), Reason::NotIncludedInbound);
    assert_eq!(inbound(Sender::Proxy), Reason::HandedOn);
}

/// A connection from `source` to a port that is no DNS.
fn dialled(source: &str, destination: &str, is_marked: bool) -> Outbound {
    Outbound {
        uid: 1337,
        gid: 1337,
        is_impostor: false,
        is_before_proxy: false,
        is_marked,
        source: ip(source).into(),
        destination: ip(destination).into(),
        port: Port::new(80),
        interface: 0,
    }
}

#[test]
fn neither_ids_nor_a_sidecars_lists_count_but_the_mark() {
    let scene = Scene { excluded_outbound: vec![80], excluded_inbound: vec![80], ..pod() };
    let policy = scene.policy();
    let outbound = |marked| verdict::outbound(&policy, &scene, &dialled("0.0.0.0", "192.0.2.9", marked));
    assert_eq!(outbound(false), Reason::AllOutbound);
    assert_eq!(outbound(true), Reason::ProxyMark);
    let arriving = Inbound {
        remote: ip("192.0.2.9").into(),
        local: ip("10.0.0.5").into(),
        port: Port::new(80),
        interface: ETH0,
        sender: Sender::Client,
    };
    assert_eq!(verdict::inbound(&policy, &scene, &arriving), Reason::AllInbound);
}

#[test]
fn only_what_ztunnel_dials_from_elsewhere_to_its_pod_is_handed_on() {
    let scene = pod();
    for (source, destination, marked, expected) in [
        ("192.0.2.9", "10.0.0.5", true, true),
        ("2001:db8:9::9", "2001:db8::5", true, true),
        ("192.0.2.9", "10.0.0.5", false, false),
        ("0.0.0.0", "10.0.0.5", true, false),
        ("::", "2001:db8::5", true, false),
        ("10.0.0.5", "10.0.0.5", true, false),
        ("127.0.0.1", "10.0.0.5", true, false),
        ("192.0.2.9", "192.0.2.10", true, false),
        ("10.0.0.5", "192.0.2.10", true, false),
    ] {
        let connection = dialled(source, destination, marked);
        assert_eq!(hands_on(&scene, &connection), expected, "{source} {destination} {marked}");
    }
}

#[test]
fn of_a_mark_the_bits_that_are_istios_count() {
    for (mark, expected) in
        [(0, false), (0x539, true), (0xf539, true), (0x1539, true), (0x39, false), (0x111, true)]
    {
        assert_eq!(is_ztunnels(mark), expected, "{mark:#x}");
    }
}
