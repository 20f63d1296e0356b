use proptest::prelude::*;

use super::*;

fn port_list(value: &str) -> Result<Vec<u16>, Vec<ValueError>> {
    ports(value).map(|ports| ports.into_iter().map(Port::get).collect())
}

fn range_list(value: &str) -> Result<Vec<String>, Vec<ValueError>> {
    ranges(value).map(|ranges| ranges.iter().map(IpNet::to_string).collect())
}

fn bad_port(text: &str) -> ValueError {
    ValueError::Port(text.into())
}

#[test]
fn a_list_of_ports_is_read_as_istio_reads_it() {
    for (value, expected) in [
        ("", vec![]),
        ("  ", vec![]),
        ("80", vec![80]),
        ("443,80", vec![80, 443]),
        (" 80 ,\t443\n", vec![80, 443]),
        ("80,80,80", vec![80]),
        ("0", vec![0]),
        ("1,65535", vec![1, 65535]),
        // Istio's plugin reads decimal; the iptables behind it would read an octal 8.
        ("010", vec![10]),
    ] {
        assert_eq!(port_list(value), Ok(expected), "{value:?}");
    }
}

#[test]
fn a_list_of_ports_names_each_element_that_is_none() {
    for (value, bad) in [
        ("80a", vec![bad_port("80a")]),
        ("80,", vec![bad_port("")]),
        (",80", vec![bad_port("")]),
        ("80,,443", vec![bad_port("")]),
        (",", vec![bad_port(""), bad_port("")]),
        ("80;443", vec![bad_port("80;443")]),
        ("80 443", vec![bad_port("80 443")]),
        ("8000-9000", vec![bad_port("8000-9000")]),
        ("65536, -1,+1", vec![bad_port("65536"), bad_port(" -1"), bad_port("+1")]),
        ("*", vec![ValueError::AllPorts]),
        ("80,*", vec![ValueError::AllPorts]),
        ("http", vec![bad_port("http")]),
    ] {
        assert_eq!(port_list(value), Err(bad), "{value:?}");
    }
}

#[test]
fn included_inbound_ports_may_be_all() {
    assert_eq!(included_inbound_ports("*"), Ok(None));
    assert_eq!(included_inbound_ports(""), Ok(Some(BTreeSet::new())));
    assert_eq!(included_inbound_ports("80"), Ok(Some(BTreeSet::from([Port::new(80)]))));
    assert_eq!(
        included_inbound_ports(" * "),
        Err(vec![ValueError::AllPorts]),
        "Istio takes the bare star alone"
    );
    assert_eq!(included_inbound_ports("*,80"), Err(vec![ValueError::AllPorts]));
}

#[test]
fn a_list_of_ranges_is_read_as_istio_reads_it() {
    for (value, expected) in [
        ("", vec![]),
        ("10.0.0.0/8", vec!["10.0.0.0/8"]),
        ("10.0.0.0/8,2001:db8::/32,192.0.2.0/24", vec!["10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32"]),
        ("10.0.0.0/8,10.0.0.0/8", vec!["10.0.0.0/8"]),
        // Host bits are kept: whether a range begins in loopback is judged by what was written.
        ("10.1.2.3/8,127.0.0.1/4", vec!["10.1.2.3/8", "127.0.0.1/4"]),
        ("0.0.0.0/0,::/0", vec!["0.0.0.0/0", "::/0"]),
        ("10.1.2.3/32,::1/128", vec!["10.1.2.3/32", "::1/128"]),
        ("::ffff:10.0.0.0/104", vec!["::ffff:10.0.0.0/104"]),
    ] {
        assert_eq!(range_list(value), Ok(expected.into_iter().map(str::to_owned).collect()), "{value:?}");
    }
}

#[test]
fn a_list_of_ranges_names_each_element_that_is_none() {
    for value in [
        "10.0.0.1",
        "10.0.0.0/33",
        "::/129",
        "10.0.0.0/",
        "10.0.0.0/08",
        "10.0.0.0/+8",
        "10.0.0.0/-1",
        "/8",
        "10/8",
        "010.0.0.0/8",
        "10.0.0.0/255.0.0.0",
        " 10.0.0.0/8",
        "10.0.0.0/8 ",
        "10.0.0.0 /8",
        "fe80::1%eth0/64",
        "[::1]/128",
        "example.com",
        "10.0.0.0/8/8",
        "10.0.0.0/4294967304",
        "10.0.0.0\\8",
        "10.0.0.0/８",
    ] {
        assert_eq!(range_list(value), Err(vec![ValueError::Range(value.into())]), "{value:?}");
    }
    let bad = |text: &str| ValueError::Range(text.into());
    assert_eq!(range_list("10.0.0.0/8,"), Err(vec![bad("")]));
    assert_eq!(range_list("10.0.0.0/8, ::/0"), Err(vec![bad(" ::/0")]), "unlike in a list of ports");
    assert_eq!(range_list("a,10.0.0.0/8,b"), Err(vec![bad("a"), bad("b")]));
    assert_eq!(range_list(" "), Err(vec![bad(" ")]));
    assert_eq!(range_list("*"), Err(vec![ValueError::AllRanges]));
}

#[test]
fn included_ranges_may_be_all() {
    assert_eq!(included_outbound_ranges("*"), Ok(OutboundRanges::All));
    assert_eq!(included_outbound_ranges(""), Ok(OutboundRanges::Only(BTreeSet::new())));
    assert_eq!(included_outbound_ranges("*,10.0.0.0/8"), Err(vec![ValueError::AllRanges]));
    let one = included_outbound_ranges("10.0.0.0/8").unwrap();
    assert_eq!(one, OutboundRanges::Only(BTreeSet::from(["10.0.0.0/8".parse().unwrap()])));
}

#[test]
fn a_range_begins_in_loopback_by_the_address_that_was_written() {
    for (value, loopback) in [
        ("*", false),
        ("", false),
        ("127.0.0.0/8", true),
        ("127.0.0.1/32", true),
        ("127.255.0.0/16", true),
        ("127.0.0.1/4", true),
        ("112.0.0.0/4", false),
        ("0.0.0.0/0", false),
        ("::1/128", true),
        ("::/0", false),
        ("::ffff:127.0.0.1/128", true),
        ("10.0.0.0/8,127.0.0.0/8", true),
    ] {
        assert_eq!(included_outbound_ranges(value).unwrap().begin_in_loopback(), loopback, "{value:?}");
    }
}

#[test]
fn a_list_of_interfaces_is_trimmed_and_has_no_empty_element() {
    let names = |value| interfaces(value).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(names(""), Ok(vec![]));
    assert_eq!(names("net1, eth0 ,net1"), Ok(vec!["eth0".to_owned(), "net1".to_owned()]));
    for (value, bad) in [
        (" ", vec![""]),
        ("eth0,", vec![""]),
        ("0eth,eth0,a/b", vec!["0eth", "a/b"]),
        ("abcdefghijklmnop", vec!["abcdefghijklmnop"]),
    ] {
        let bad = bad.into_iter().map(|name| ValueError::Interface(name.into())).collect();
        assert_eq!(interfaces(value), Err(bad), "{value:?}");
    }
}

#[test]
fn a_mode_is_one_of_three_words() {
    use InterceptionMode::{Redirect, Tproxy};

    assert_eq!(interception_mode("REDIRECT"), Ok(RequestedMode::Capture(Redirect)));
    assert_eq!(interception_mode("TPROXY"), Ok(RequestedMode::Capture(Tproxy)));
    assert_eq!(interception_mode("NONE"), Ok(RequestedMode::Off));
    for value in ["", "redirect", "REDIRECT ", "none", "Tproxy", "0"] {
        assert_eq!(interception_mode(value), Err(ValueError::Mode(value.into())));
    }
}

#[test]
fn a_boolean_is_what_go_takes_for_one() {
    for value in ["1", "t", "T", "TRUE", "true", "True"] {
        assert_eq!(go_bool(value), Some(true), "{value}");
    }
    for value in ["0", "f", "F", "FALSE", "false", "False"] {
        assert_eq!(go_bool(value), Some(false), "{value}");
    }
    for value in ["", " true", "yes", "no", "on", "tRUE", "2", "null"] {
        assert_eq!(go_bool(value), None, "{value}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_a_parser_panic(value in ".{0,60}") {
        drop((ports(&value), ranges(&value), interfaces(&value), interception_mode(&value), go_bool(&value)));
    }

    #[test]
    fn every_list_of_ports_comes_back_whole(list in proptest::collection::vec(any::<u16>(), 0..200)) {
        let value = list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let expected: BTreeSet<Port> = list.into_iter().map(Port::new).collect();
        prop_assert_eq!(ports(&value), Ok(expected));
    }

    #[test]
    fn every_list_of_ranges_comes_back_whole(
        list in proptest::collection::vec((any::<IpAddr>(), 0..=128_u8), 0..50)
    ) {
        let networks: BTreeSet<IpNet> =
            list.into_iter().filter_map(|(address, length)| IpNet::new(address, length).ok()).collect();
        let value = networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        prop_assert_eq!(ranges(&value), Ok(networks));
    }
}
