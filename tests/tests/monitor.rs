//! `veer monitor`: decisions as they are made, to everybody who watches, and to nobody when nobody does.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use veer_tests::mesh::{APP, Listeners, Mesh, PATIENCE, dial, dial_from_world, proxy_listeners};
use veer_tests::monitor::Monitor;
use veer_tests::pinned::Pinned;
use veer_tests::pod::{REMOTE_V4, REMOTE_V6};
use veer_tests::wait;

const REMOTE: SocketAddr = SocketAddr::new(IpAddr::V4(REMOTE_V4), 80);

fn listeners(mesh: &Mesh) -> Listeners {
    let mut listeners = mesh.proxy_listeners().unwrap();
    listeners.add("app", mesh.pod.app(), (Ipv4Addr::UNSPECIFIED, APP)).unwrap();
    listeners
}

fn milliseconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

/// Takes a field out, for those that differ each time.
fn take(decision: &mut Value, field: &str) -> Value {
    decision.as_object_mut().unwrap().remove(field).unwrap()
}

#[test]
fn a_decision_says_who_where_what_and_why() {
    let mesh = Mesh::new().unwrap();
    let listeners = listeners(&mesh);
    let monitor = Monitor::start(&mesh.agent, &["--json"]).unwrap();
    let before = milliseconds();
    dial(mesh.pod.app(), REMOTE, &listeners).unwrap();
    dial(mesh.pod.root(), (REMOTE_V6, 443), &listeners).unwrap();
    let (_, client, _) = dial_from_world(&mesh.world, (mesh.pod.v4(), APP), &listeners).unwrap();
    dial(mesh.pod.app(), (Ipv4Addr::LOCALHOST, APP), &listeners).unwrap();
    let mut decisions = monitor.wait_for_decisions(4).unwrap();
    let after = milliseconds();
    for decision in &mut decisions {
        let time = take(decision, "time_ms").as_u64().unwrap();
        // The clocks of the kernel and of the wall are read at two moments.
        assert!((before - 50..=after + 50).contains(&time), "{before} {time} {after}");
    }
    let client = client.local_addr().unwrap().as_socket().unwrap().to_string();
    let pod = mesh.pod.v4();
    let expected = [
        json!({
            "pod": "test/pod", "direction": "outbound", "protocol": "tcp", "action": "to-outbound", "reason": "all-outbound",
            "uid": 1000, "gid": 1000, "source": "0.0.0.0", "destination": "192.0.2.1:80",
        }),
        json!({
            "pod": "test/pod", "direction": "outbound", "protocol": "tcp", "action": "to-outbound", "reason": "all-outbound",
            "uid": 0, "gid": 0, "source": "::", "destination": "[2001:db8::1]:443",
        }),
        json!({
            "pod": "test/pod", "direction": "inbound", "protocol": "tcp", "action": "to-inbound", "reason": "all-inbound",
            "source": client, "destination": format!("{pod}:{APP}"),
        }),
        json!({
            "pod": "test/pod", "direction": "outbound", "protocol": "tcp", "action": "direct", "reason": "app-to-own-address",
            "uid": 1000, "gid": 1000, "source": "0.0.0.0", "destination": "127.0.0.1:8080",
        }),
    ];
    assert_eq!(decisions, expected);
}

#[test]
fn for_people_a_decision_is_one_line() {
    let mesh = Mesh::new().unwrap();
    let listeners = listeners(&mesh);
    let monitor = Monitor::start(&mesh.agent, &[]).unwrap();
    dial(mesh.pod.app(), REMOTE, &listeners).unwrap();
    let lines = monitor.wait_for_lines(1).unwrap();
    let (time, rest) = lines[0].split_once(' ').unwrap();
    assert_eq!(rest, "test/pod outbound 1000:1000 - -> 192.0.2.1:80 to-outbound (all-outbound)");
    let shape: String = time.chars().map(|sign| if sign.is_ascii_digit() { '0' } else { sign }).collect();
    assert_eq!(shape, "00:00:00.000Z");
}

#[test]
fn filters_let_through_what_they_name_and_count_ends() {
    let mesh = Mesh::new().unwrap();
    let other = mesh.another_pod("other").unwrap();
    let mut listeners = listeners(&mesh);
    listeners.extend(proxy_listeners(&other).unwrap());
    let all = Monitor::start(&mesh.agent, &["--json"]).unwrap();
    let by_pod = Monitor::start(&mesh.agent, &["--json", "--pod=test/other"]).unwrap();
    let by_action = Monitor::start(&mesh.agent, &["--json", "--action=direct"]).unwrap();
    let by_reason = Monitor::start(&mesh.agent, &["--json", "--reason=all-inbound"]).unwrap();
    let by_both =
        Monitor::start(&mesh.agent, &["--json", "--pod=test/other", "--reason=all-inbound"]).unwrap();
    let mut counted = Monitor::start(&mesh.agent, &["--json", "--action=to-outbound", "--count=2"]).unwrap();
    dial(mesh.pod.app(), (Ipv4Addr::LOCALHOST, APP), &listeners).unwrap();
    dial_from_world(&mesh.world, (mesh.pod.v4(), APP), &listeners).unwrap();
    for pod in [&mesh.pod, &other] {
        dial(pod.app(), REMOTE, &listeners).unwrap();
    }
    dial(other.app(), (REMOTE_V4, 81), &listeners).unwrap();
    dial_from_world(&mesh.world, (other.v4(), APP), &listeners).unwrap();
    assert_eq!(counted.end().unwrap().code(), Some(0));
    let destinations = |monitor: &Monitor, count| -> Vec<String> {
        let decisions = monitor.wait_for_decisions(count).unwrap();
        decisions.iter().map(|decision| decision["destination"].as_str().unwrap().to_owned()).collect()
    };
    let [first, last] = [&mesh.pod, &other].map(|pod| format!("{}:{APP}", pod.v4()));
    let everything = ["127.0.0.1:8080", &first, "192.0.2.1:80", "192.0.2.1:80", "192.0.2.1:81", &last];
    assert_eq!(destinations(&all, 6), everything);
    assert_eq!(destinations(&by_pod, 3), ["192.0.2.1:80", "192.0.2.1:81", &last]);
    assert_eq!(destinations(&by_action, 1), ["127.0.0.1:8080"]);
    assert_eq!(destinations(&by_reason, 2), [first.as_str(), &last]);
    assert_eq!(destinations(&by_both, 1), [last.as_str()]);
    assert_eq!(destinations(&counted, 2), ["192.0.2.1:80", "192.0.2.1:80"]);
}

#[test]
fn two_monitors_both_get_every_decision_in_order() {
    const CONNECTIONS: u16 = 500;
    let mesh = Mesh::new().unwrap();
    let listeners = listeners(&mesh);
    let monitors = [(); 2].map(|()| Monitor::start(&mesh.agent, &["--json"]).unwrap());
    for number in 1..=CONNECTIONS {
        dial(mesh.pod.app(), (REMOTE_V4, number), &listeners).unwrap();
    }
    let expected: Vec<String> = (1..=CONNECTIONS).map(|number| format!("192.0.2.1:{number}")).collect();
    for monitor in &monitors {
        let decisions = monitor.wait_for_decisions(CONNECTIONS.into()).unwrap();
        let seen: Vec<_> =
            decisions.iter().map(|decision| decision["destination"].as_str().unwrap()).collect();
        assert_eq!(seen, expected);
    }
    assert_eq!(mesh.counter("faults", "event-lost").unwrap(), 0);
}

#[test]
fn events_are_written_exactly_while_somebody_watches() {
    let mesh = Mesh::new().unwrap();
    let listeners = listeners(&mesh);
    let pinned = Pinned::of(&mesh.agent);
    assert!(!pinned.watched().unwrap());
    // Nobody is told of this one, later either.
    dial(mesh.pod.app(), (REMOTE_V4, 1), &listeners).unwrap();
    let first = Monitor::start(&mesh.agent, &["--json"]).unwrap();
    assert!(pinned.watched().unwrap());
    let second = Monitor::start(&mesh.agent, &["--json"]).unwrap();
    drop(first);
    dial(mesh.pod.app(), (REMOTE_V4, 2), &listeners).unwrap();
    let decisions = second.wait_for_decisions(1).unwrap();
    assert_eq!(decisions[0]["destination"], "192.0.2.1:2");
    assert!(pinned.watched().unwrap(), "the other one still watches");
    drop(second);
    wait::until("the last one to be missed", PATIENCE, || !pinned.watched().unwrap()).unwrap();
}

#[test]
fn a_monitor_whose_reader_has_enough_ends_without_an_error() {
    let mesh = Mesh::new().unwrap();
    let listeners = listeners(&mesh);
    let mut command = mesh.agent.command(&["monitor"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let pinned = Pinned::of(&mesh.agent);
    wait::until("the monitor to watch", PATIENCE, || pinned.watched().unwrap()).unwrap();
    drop(child.stdout.take());
    dial(mesh.pod.app(), REMOTE, &listeners).unwrap();
    let ended = wait::until_some("the monitor to end", PATIENCE, || child.try_wait().unwrap()).unwrap();
    assert_eq!(ended.code(), Some(0));
    wait::until("the agent to notice", PATIENCE, || !pinned.watched().unwrap()).unwrap();
}

#[test]
fn an_agent_that_ends_ends_its_monitors_and_the_next_one_writes_no_events() {
    let mut mesh = Mesh::new().unwrap();
    let listeners = listeners(&mesh);
    let mut monitor = Monitor::start(&mesh.agent, &["--json"]).unwrap();
    mesh.agent.stop().unwrap();
    assert_eq!(monitor.end().unwrap().code(), Some(69));
    assert!(
        monitor.errors().unwrap().ends_with("veer: the agent has ended\n"),
        "{}",
        monitor.errors().unwrap()
    );

    mesh.agent.start_again().unwrap();
    let mut monitor = Monitor::start(&mesh.agent, &["--json"]).unwrap();
    mesh.agent.kill().unwrap();
    assert_eq!(monitor.end().unwrap().code(), Some(69), "{}", monitor.errors().unwrap());
    // Nobody reads any more, and connections do not care.
    assert!(Pinned::of(&mesh.agent).watched().unwrap());
    dial(mesh.pod.app(), REMOTE, &listeners).unwrap();
    mesh.agent.start_again().unwrap();
    assert!(!Pinned::of(&mesh.agent).watched().unwrap());
    let monitor = Monitor::start(&mesh.agent, &["--json"]).unwrap();
    dial(mesh.pod.app(), (REMOTE_V4, 443), &listeners).unwrap();
    let is_told = || monitor.lines().unwrap().iter().any(|line| line.contains("192.0.2.1:443"));
    wait::until("the next agent's monitor to see", PATIENCE, is_told).unwrap();
}
