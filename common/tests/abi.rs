//! The map ABI, byte for byte: what one version of veer pins, the next one opens.
//!
//! The golden text holds each type's size and its bytes, with a different value in every field, so that
//! neither order nor width nor byte order can change unseen; and the names, capacities, bits and numbers
//! that programs and agent must agree on. It is for little-endian machines, as the bytes are.

#![cfg(target_endian = "little")]

use veer_common::ABI_VERSION;
use veer_common::address::{Address, Port};
use veer_common::event::Event;
use veer_common::interface::{self, Arrival, IndexKey, Interface, NameKey, RouteMatch, kind};
use veer_common::maps::{
    self, Counters, DatagramRecord, Enrolment, HandOff, HandOffKey, ListenerKey, OwnAddressKey, PodPolicy,
    PortList, PortListKey, PortSet, ProxyContainer, RangeList, RangeMatch, Settings, SocketRecord, flag,
    name, role,
};
use veer_common::reason::{COUNTERS, Fault, HAND_OFFS_NOW, PROXY_BEGAN, PROXY_CEASED, PROXY_TOLD, Reason};
use zerocopy::{Immutable, IntoBytes};

const GOLDEN: &str = include_str!("abi.txt");

#[test]
fn the_map_abi_is_the_one_of_its_version() {
    let now = abi();
    if now == GOLDEN {
        return;
    }
    let version = format!("ABI_VERSION {ABI_VERSION}\n");
    let advice = if GOLDEN.starts_with(&version) {
        "bump ABI_VERSION in common/src/lib.rs: maps that an earlier build has pinned do not fit this one"
    } else {
        "ABI_VERSION was bumped; make the text below common/tests/abi.txt in the same change"
    };
    let golden: Vec<&str> = GOLDEN.lines().collect();
    let changed = now.lines().filter(|line| !golden.contains(line)).collect::<Vec<_>>().join("\n  ");
    panic!(
        "the map ABI differs from common/tests/abi.txt.\n{advice}.\n\nchanged:\n  {changed}\n\nall:\n{now}"
    );
}

#[test]
fn an_address_is_its_sixteen_bytes_in_network_order() {
    assert_eq!(hex(&Address::v4([10, 1, 2, 3])), "00000000000000000000ffff0a010203");
    let v6 = "2001:db8::5".parse::<std::net::Ipv6Addr>().unwrap();
    assert_eq!(hex(&Address::from(v6)), "20010db8000000000000000000000005");
    assert_eq!(hex(&Port::new(15001)), "3a99");
}

/// The trie compares from the first bit, so the address' first byte must follow the fixed part.
#[test]
fn a_route_of_either_family_begins_right_after_it() {
    let v4 = RouteMatch::of_address(1, &Address::v4([10, 1, 2, 3]));
    assert_eq!(hex(&v4), "0100000000000000040000000a010203000000000000000000000000");
    let address = Address::from("2001:db8::5".parse::<std::net::Ipv6Addr>().unwrap());
    let v6 = RouteMatch::of_address(1, &address);
    assert_eq!(hex(&v6), "01000000000000000600000020010db8000000000000000000000005");
    assert_eq!(RouteMatch::FIXED_BITS, 8 * (8 + 4));
}

/// As above.
#[test]
fn a_range_of_either_family_begins_right_after_its_list() {
    let v4 = RangeMatch::of_address(1, RangeList::IncludedV4, &Address::v4([10, 1, 2, 3]));
    assert_eq!(hex(&v4), "0100000000000000010000000a010203000000000000000000000000");
    let address = Address::from("2001:db8::5".parse::<std::net::Ipv6Addr>().unwrap());
    let v6 = RangeMatch::of_address(1, RangeList::ExcludedV6, &address);
    assert_eq!(hex(&v6), "01000000000000000400000020010db8000000000000000000000005");
    assert_eq!(RangeMatch::FIXED_BITS, 8 * (8 + 4));
    assert_eq!(RangeMatch::ALL_BITS, RangeMatch::FIXED_BITS + 128);
}

fn abi() -> String {
    let mut lines = vec![format!("ABI_VERSION {ABI_VERSION}")];
    bytes(&mut lines);
    capacities(&mut lines);
    numbers(&mut lines);
    lines.join("\n") + "\n"
}

type Lines = Vec<String>;

fn bytes(lines: &mut Lines) {
    record(lines, "PodPolicy", &policy());
    record(lines, "PortListKey", &PortListKey { cookie: COOKIE, list: 0x1112_1314, _reserved: 0 });
    port_set(lines);
    record(
        lines,
        "RangeMatch",
        &RangeMatch { cookie: COOKIE.to_ne_bytes(), list: [0x11, 0x12, 0x13, 0x14], address: address(0xa0) },
    );
    record(lines, "OwnAddressKey", &OwnAddressKey { cookie: COOKIE, address: address(0xa0) });
    record(
        lines,
        "ListenerKey",
        &ListenerKey { cookie: COOKIE, port: port(0), _reserved: [0; 2], slot: 0x2122_2324 },
    );
    record(
        lines,
        "HandOffKey",
        &HandOffKey {
            cookie: COOKIE,
            source: address(0xa0),
            source_port: port(0),
            listener_port: port(1),
            to_own_address: 1,
        },
    );
    record(lines, "HandOff", &HandOff { destination: address(0xa0), port: port(0), _reserved: [0; 6] });
    record(lines, "SocketRecord", &socket_record());
    record(lines, "DatagramRecord", &datagram_record());
    let container = ProxyContainer { cgroup: 0x1112_1314_1516_1718, listening: 0x2122_2324_2526_2728 };
    record(lines, "ProxyContainer", &container);
    record(
        lines,
        "Settings",
        &Settings { abi_version: 0x1112_1314, watched: 0x2122_2324, build: 0x3132_3334_3536_3738 },
    );
    record(lines, "Counters", &counters());
    record(lines, "Enrolment", &enrolment());
    record(lines, "Event", &event());
    record(lines, "Arrival", &Arrival { cookie: COOKIE, interface: 0x1112_1314, _reserved: 0 });
    record(lines, "NameKey", &NameKey { cookie: COOKIE, name: [0x11; 16] });
    record(lines, "IndexKey", &IndexKey::new(COOKIE, 0x1112_1314));
    record(lines, "Interface", &Interface { kinds: 0x1112_1314, name: [0x22; 16] });
    record(
        lines,
        "RouteMatch",
        &RouteMatch {
            cookie: COOKIE.to_ne_bytes(),
            family: [0x11, 0x12, 0x13, 0x14],
            network: address(0xa0),
        },
    );
}

/// The ports at the ends of the set and of its words: each with the bytes that alone are not zero for it.
fn port_set(lines: &mut Lines) {
    lines.push(format!("PortSet: {} bytes, aligned to {}", size_of::<PortSet>(), align_of::<PortSet>()));
    for number in [0, 7, 8, 63, 64, 15001, 65535] {
        let set: PortSet = [Port::new(number)].into_iter().collect();
        for (at, byte) in set.as_bytes().iter().enumerate().filter(|(_, byte)| **byte != 0) {
            lines.push(format!("PortSet {number} {at:04x} {byte:02x}"));
        }
    }
}

const COOKIE: u64 = 0x0102_0304_0506_0708;

fn address(first: u8) -> Address {
    Address::v6([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15].map(|index| first + index))
}

fn port(index: u16) -> Port {
    Port::new(0xf0f1 + 0x0202 * index)
}

fn policy() -> PodPolicy {
    PodPolicy {
        flags: 0x1112_1314,
        proxy_uid: 0x2122_2324,
        proxy_gid: 0x3132_3334,
        outbound_port: port(0),
        inbound_port: port(1),
        tunnel_port: port(2),
        dns_port: port(3),
        _reserved: [0; 4],
        localhost: 0x4142_4344,
        localhost_mask: 0x5152_5354,
        source_v4: address(0xa0),
        source_v6: address(0xc0),
    }
}

fn socket_record() -> SocketRecord {
    SocketRecord {
        cookie: COOKIE,
        uid: 0x1112_1314,
        gid: 0x2122_2324,
        role: 0x3132_3334,
        is_counted: 0x4142_4344,
        cgroup: 0x5152_5354_5556_5758,
        destination: address(0xa0),
        target: address(0xc0),
        port: port(0),
        target_port: port(1),
        _reserved_end: [0; 4],
    }
}

fn datagram_record() -> DatagramRecord {
    DatagramRecord {
        cookie: COOKIE,
        uid: 0x1112_1314,
        gid: 0x2122_2324,
        cgroup: 0x7172_7374_7576_7778,
        connected: address(0xa0),
        asked_v6: address(0xc0),
        asked_v4: [0x3132_3334, 0x4142_4344, 0x5152_5354, 0x6162_6364],
        dns_port: port(0),
        _reserved: [0; 6],
    }
}

fn counters() -> Counters {
    let mut next = 0;
    Counters([(); COUNTERS].map(|()| {
        next += 1;
        next
    }))
}

fn enrolment() -> Enrolment {
    Enrolment {
        container_id: [0x11; 128],
        netns_path: [0x22; 256],
        namespace: [0x33; 64],
        name: [0x44; 256],
        interface: [0x55; 16],
        network: [0x66; 128],
        netns_device: 0x7172_7374_7576_7778,
        netns_inode: 0x8182_8384_8586_8788,
        enrolled_at: 0x9192_9394_9596_9798,
        driver: 0xa1a2_a3a4_a5a6_a7a8,
    }
}

fn event() -> Event {
    Event {
        monotonic_ns: 0x1112_1314_1516_1718,
        cookie: COOKIE,
        reason: 0x2122_2324,
        uid: 0x3132_3334,
        gid: 0x4142_4344,
        protocol: 0x5152_5354,
        source: address(0xa0),
        destination: address(0xc0),
        source_port: port(0),
        port: port(1),
        is_impostor: 0x6162_6364,
        interface: 0x7172_7374,
        _reserved: 0,
    }
}

fn capacities(lines: &mut Lines) {
    for (name, capacity) in [
        (name::PODS, maps::MAX_PODS),
        (name::ENROLMENTS, maps::MAX_PODS),
        (name::COUNTERS, maps::MAX_PODS),
        (name::PORTS, maps::MAX_PORT_LISTS),
        (name::RANGES, maps::MAX_RANGES),
        (name::OWN_ADDRESSES, maps::MAX_OWN_ADDRESSES),
        (name::LISTENERS, maps::MAX_LISTENERS),
        (name::HAND_OFFS, maps::MAX_HAND_OFFS),
        (name::PROXIES, maps::MAX_PODS),
        (name::BEFORE_PROXY, maps::MAX_PODS),
        (name::NODE_ADDRESSES, maps::MAX_NODE_ADDRESSES),
        (name::SOCKETS, 0),
        (name::DATAGRAMS, 0),
        (name::INTERFACES, interface::MAX_INTERFACES),
        (name::INTERFACE_NAMES, interface::MAX_INTERFACES),
        (name::ROUTES, interface::MAX_ROUTES),
        (name::ARRIVAL, 1),
        (name::SETTINGS, 1),
        (name::EVENTS, maps::EVENTS_BYTES),
    ] {
        line(lines, "map", name, capacity);
    }
}

fn numbers(lines: &mut Lines) {
    line(lines, "limit", "listener slots", maps::MAX_LISTENER_SLOTS);
    line(lines, "limit", "counters", COUNTERS);
    for (name, bit) in [
        ("INBOUND_ALL", flag::INBOUND_ALL),
        ("OUTBOUND_ALL", flag::OUTBOUND_ALL),
        ("EXCLUDES_OUTBOUND_PORTS", flag::EXCLUDES_OUTBOUND_PORTS),
        ("INCLUDES_OUTBOUND_PORTS", flag::INCLUDES_OUTBOUND_PORTS),
        ("EXCLUDES_RANGES", flag::EXCLUDES_RANGES),
        ("INCLUDES_LOOPBACK", flag::INCLUDES_LOOPBACK),
        ("TPROXY", flag::TPROXY),
        ("HAS_V4", flag::HAS_V4),
        ("HAS_V6", flag::HAS_V6),
        ("CAPTURES_V6", flag::CAPTURES_V6),
        ("EXCLUDES_GROUPS", flag::EXCLUDES_GROUPS),
        ("INCLUDES_GROUPS", flag::INCLUDES_GROUPS),
        ("ASLEEP", flag::ASLEEP),
        ("DUAL_STACK", flag::DUAL_STACK),
        ("DNS_CAPTURE", flag::DNS_CAPTURE),
        ("EXCLUDES_INTERFACES", flag::EXCLUDES_INTERFACES),
        ("REROUTES_INTERFACES", flag::REROUTES_INTERFACES),
        ("BY_CONTAINER", flag::BY_CONTAINER),
        ("DIRECT_BEFORE_PROXY", flag::DIRECT_BEFORE_PROXY),
        ("AMBIENT", flag::AMBIENT),
    ] {
        line(lines, "flag", name, bit);
    }
    line(lines, "ports", "ExcludedOutbound", PortList::ExcludedOutbound as u32);
    line(lines, "ports", "IncludedOutbound", PortList::IncludedOutbound as u32);
    line(lines, "ports", "ExcludedInbound", PortList::ExcludedInbound as u32);
    line(lines, "ports", "IncludedInbound", PortList::IncludedInbound as u32);
    line(lines, "ranges", "IncludedV4", RangeList::IncludedV4 as u32);
    line(lines, "ranges", "ExcludedV4", RangeList::ExcludedV4 as u32);
    line(lines, "ranges", "IncludedV6", RangeList::IncludedV6 as u32);
    line(lines, "ranges", "ExcludedV6", RangeList::ExcludedV6 as u32);
    line(lines, "ranges", "Groups", RangeList::Groups as u32);
    line(lines, "interface", "EXCLUDED", kind::EXCLUDED);
    line(lines, "interface", "REROUTED", kind::REROUTED);
    line(lines, "route", "NOT_EXCLUDED", interface::ROUTE_NOT_EXCLUDED);
    line(lines, "role", "NONE", role::NONE);
    line(lines, "role", "DIALLER", role::DIALLER);
    line(lines, "role", "LISTENER", role::LISTENER);
    line(lines, "role", "ACCEPTED", role::ACCEPTED);
    line(lines, "role", "HANDING_ON", role::HANDING_ON);
    for reason in Reason::ALL {
        line(lines, "reason", reason.name(), reason as u32);
    }
    for fault in Fault::ALL {
        line(lines, "fault", fault.name(), fault as u32);
    }
    line(lines, "no count", "HAND_OFFS_NOW", HAND_OFFS_NOW);
    line(lines, "no count", "PROXY_BEGAN", PROXY_BEGAN);
    line(lines, "no count", "PROXY_CEASED", PROXY_CEASED);
    line(lines, "no count", "PROXY_TOLD", PROXY_TOLD);
}

fn line(lines: &mut Lines, kind: &str, name: &str, number: impl std::fmt::Display) {
    lines.push(format!("{kind} {name} {number}"));
}

fn record<T: IntoBytes + Immutable>(lines: &mut Lines, name: &str, value: &T) {
    lines.push(format!("{name}: {} bytes, aligned to {}", size_of::<T>(), align_of::<T>()));
    for (row, chunk) in value.as_bytes().chunks(16).enumerate() {
        lines.push(format!("{name} {:04x} {}", row * 16, hex(chunk)));
    }
}

fn hex(value: &(impl IntoBytes + Immutable + ?Sized)) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16);
    value.as_bytes().iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).flatten().collect()
}
