//! What an enrolled pod loses comes back: entries, links and pins that somebody removes, and what is left of pods that
//! are gone goes.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use veer_common::maps::{NetnsCookie, name};
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::launch::Launch;
use veer_tests::manifest::Manifest;
use veer_tests::mesh::{APP, INBOUND, Listeners, OUTBOUND, dial, dial_from_world};
use veer_tests::pinned::{Counts, NETNS_LINKS, Pinned};
use veer_tests::pod::{REMOTE_V4, TestPod, World};
use veer_tests::wait;

/// A pass comes each second here; on a machine where much comes and goes, a look at all processes takes a while.
const PASS: Duration = Duration::from_mins(1);
const EXCLUDED: u16 = 443;

struct Node {
    agent: Agent,
    pod: Option<TestPod>,
    world: World,
    listeners: Listeners,
    cgroup: Cgroup,
}

/// An enrolled pod with lists of each kind, and an agent that looks at everything each second.
fn node() -> Node {
    node_with(&["--reconcile-interval=1"])
}

fn node_with(arguments: &[&str]) -> Node {
    let (cgroup, world) = (Cgroup::new().unwrap(), World::new().unwrap());
    let agent = Agent::start_with(&cgroup, Launch::new(), arguments).unwrap();
    let pod = TestPod::new(&world, &cgroup, "pod").unwrap();
    agent.enrol_as(&pod, &manifest(&pod)).unwrap();
    let mut listeners = Listeners::default();
    let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
    listeners.add("outbound", pod.proxy(), (any, OUTBOUND)).unwrap();
    listeners.add("inbound", pod.proxy(), (any, INBOUND)).unwrap();
    listeners.add("app", pod.app(), (any, APP)).unwrap();
    listeners.add_in_world("outside", &world, (any, EXCLUDED)).unwrap();
    Node { agent, pod: Some(pod), world, listeners, cgroup }
}

fn manifest(pod: &TestPod) -> Manifest {
    pod.manifest()
        .with_traffic("excludeOutboundPorts", "443")
        .with_traffic("includeOutboundIPRanges", "192.0.2.0/24,198.51.100.0/24")
}

impl Node {
    fn pod(&self) -> &TestPod {
        self.pod.as_ref().unwrap()
    }

    fn cookie(&self) -> NetnsCookie {
        let pod = self.agent.json(&["pods", "test/pod"]).unwrap();
        pod.pointer("/netnsCookie").unwrap().as_u64().unwrap()
    }

    fn pinned(&self) -> Pinned {
        Pinned::of(&self.agent)
    }

    fn counts(&self, cookie: NetnsCookie) -> Counts {
        let mut counts = self.pinned().of_pod(cookie).unwrap();
        counts.remove(name::HAND_OFFS);
        counts
    }

    fn wait_for(&self, cookie: NetnsCookie, counts: &Counts, what: &str) {
        let is_back = || self.counts(cookie) == *counts;
        let waited = wait::until(what, PASS, is_back);
        assert!(waited.is_ok(), "{what}: {:?} is not {counts:?}\n{}", self.counts(cookie), self.agent.log());
    }

    /// Where connections of the pod, and to the pod, end, and one that is excluded.
    fn ends(&self) -> [&'static str; 3] {
        let remote = |port| SocketAddr::from((REMOTE_V4, port));
        let out = |port| dial(self.pod().app(), remote(port), &self.listeners).unwrap().0.at;
        let (inbound, ..) = dial_from_world(&self.world, (self.pod().v4(), APP), &self.listeners).unwrap();
        [out(80), out(EXCLUDED), inbound.at]
    }
}

const RIGHT: [&str; 3] = ["outbound", "outside", "inbound"];

#[test]
fn whatever_a_pod_loses_comes_back() {
    let node = node();
    assert_eq!(node.ends(), RIGHT);
    let (cookie, before) = (node.cookie(), node.counts(node.cookie()));
    let maps = [
        name::ENROLMENTS,
        name::COUNTERS,
        name::PORTS,
        name::RANGES,
        name::OWN_ADDRESSES,
        name::LISTENERS,
        name::PODS,
    ];
    for map in maps {
        assert!(before.contains_key(map), "the pod has nothing in {map}: {before:?}");
        assert!(node.pinned().lose(map, cookie).unwrap() > 0);
        node.wait_for(cookie, &before, &format!("the entries of {map}"));
        assert_eq!(node.ends(), RIGHT, "after {map}");
    }
    node.pinned().remove_netns_link(cookie).unwrap();
    assert_eq!(node.ends(), RIGHT, "the agent holds the link");
    node.wait_for(cookie, &before, NETNS_LINKS);
    let log = node.agent.log();
    for finding in ["its policy was gone", "entries of its lists were gone", "its record was gone"] {
        assert!(log.contains(finding), "{finding}: {log}");
    }
}

#[test]
fn everything_lost_at_once_while_no_agent_runs_comes_back_when_one_does() {
    let mut node = node();
    let (cookie, before) = (node.cookie(), node.counts(node.cookie()));
    node.agent.kill().unwrap();
    for map in [name::PORTS, name::RANGES, name::COUNTERS, name::PODS] {
        assert!(node.pinned().lose(map, cookie).unwrap() > 0);
    }
    node.pinned().remove_netns_link(cookie).unwrap();
    node.agent.start_again().unwrap();
    node.wait_for(cookie, &before, "everything");
    assert_eq!(node.ends(), RIGHT);
}

#[test]
fn pins_that_somebody_removes_are_back_at_the_next_pass_and_nothing_was_lost_meanwhile() {
    let mut node = node();
    let root = node.pinned().root().to_owned();
    let pins = || {
        let directories = ["maps", "programs", "links", "netns"].map(|directory| root.join(directory));
        let files = directories.iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten();
        let mut paths: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    };
    let before = pins();
    for pin in &before {
        fs::remove_file(pin).unwrap();
    }
    assert_eq!(node.ends(), RIGHT);
    wait::until("all pins", PASS, || pins() == before).unwrap();
    node.agent.kill().unwrap();
    assert_eq!(node.ends(), RIGHT, "they outlive the agent again");
    node.agent.start_again().unwrap();
    assert_eq!(node.ends(), RIGHT);
}

#[test]
fn a_pod_that_comes_while_the_pins_are_gone_is_redirected_like_any_other() {
    // Nobody looks after the pins meanwhile.
    let node = node_with(&["--reconcile-interval=86400"]);
    node.agent.wait_settled().unwrap();
    for directory in ["maps", "programs", "links", "netns", "next"] {
        remove_pins(&node, directory, &[]);
        fs::remove_dir(node.pinned().root().join(directory)).unwrap();
    }
    let other = TestPod::new(&node.world, &node.cgroup, "other").unwrap();
    node.agent.enrol_as(&other, &manifest(&other)).unwrap();
    let any = IpAddr::from(Ipv4Addr::UNSPECIFIED);
    let mut listeners = Listeners::default();
    listeners.add("inbound", other.proxy(), (any, INBOUND)).unwrap();
    let (arrival, ..) = dial_from_world(&node.world, (other.v4(), APP), &listeners).unwrap();
    assert_eq!(arrival.at, "inbound");
    assert_eq!(node.ends(), RIGHT);
}

#[test]
fn programs_that_somebody_detaches_are_attached_again() {
    let node = node();
    for program in ["veer_connect4", "veer_sockops", "veer_sock_new"] {
        node.pinned().detach(program).unwrap();
    }
    let is_told = || node.agent.log().contains("veer_connect4 was detached from its cgroup");
    wait::until("the agent to notice", PASS, is_told).unwrap();
    wait::until("all to be attached", PASS, || node.agent.json(&["status"]).is_ok()).unwrap();
    // Who made a socket is remembered from now on; the makers of these have not been asked for one before.
    assert_eq!(node.ends(), RIGHT);
}

#[test]
fn an_inbound_program_that_somebody_detaches_is_attached_again_and_the_pod_is_never_forgotten() {
    let mut node = node();
    let (cookie, before) = (node.cookie(), node.counts(node.cookie()));
    node.pinned().detach_netns(cookie).unwrap();
    let inbound_is_back = |node: &Node| {
        let log = node.agent.log();
        log.contains("its inbound redirection was gone") || log.contains("attached its inbound program again")
    };
    wait::until("the agent to notice", PASS, || inbound_is_back(&node)).unwrap();
    assert_eq!(node.ends(), RIGHT);

    node.agent.kill().unwrap();
    node.pinned().detach_netns(cookie).unwrap();
    node.agent.start_again().unwrap();
    assert_eq!(node.ends(), RIGHT, "as soon as it serves");
    assert_eq!(node.counts(cookie), before);
    let log = node.agent.log();
    assert!(!log.contains("its netns is gone") && !log.contains("was running without redirection"), "{log}");
}

/// What is pinned in a directory goes, but what holds programs to their hooks.
fn remove_pins(node: &Node, directory: &str, keep: &[&str]) {
    for entry in fs::read_dir(node.pinned().root().join(directory)).unwrap() {
        let path = entry.unwrap().path();
        if !keep.iter().any(|name| path.ends_with(name)) {
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn maps_whose_pins_are_lost_while_no_agent_runs_are_those_that_the_next_one_goes_on_with() {
    let mut node = node();
    let (cookie, before) = (node.cookie(), node.counts(node.cookie()));
    assert_eq!(node.ends(), RIGHT);
    node.agent.kill().unwrap();
    // Who is enrolled is in a map that no program uses; and see below for the other.
    remove_pins(&node, "maps", &[name::ENROLMENTS, name::INBOUND]);
    remove_pins(&node, "programs", &[]);
    assert_eq!(node.ends(), RIGHT, "without any agent");
    node.agent.start_again().unwrap();
    assert_eq!(node.ends(), RIGHT, "as soon as it serves");
    assert_eq!(node.counts(cookie), before);
    let log = node.agent.log();
    assert!(log.contains("the pin of map PODS was gone, and is back"), "{log}");
}

#[test]
fn a_pod_whose_record_is_lost_while_no_agent_runs_stays_redirected_until_it_is_found_again() {
    let mut node = node();
    let (cookie, before) = (node.cookie(), node.counts(node.cookie()));
    node.agent.kill().unwrap();
    remove_pins(&node, "maps", &[]);
    // The kernel empties an array of programs, in its own time, when nobody but programs holds it.
    let is_refused = || dial(node.pod().app(), (REMOTE_V4, 80), &node.listeners).is_err();
    wait::until("connections to be refused", PASS, is_refused).unwrap();
    let inbound = dial_from_world(&node.world, (node.pod().v4(), APP), &node.listeners).unwrap_err();
    assert!(
        format!("{inbound:#}").contains("Connection refused"),
        "past the proxy goes nothing: {inbound:#}"
    );
    node.agent.start_again().unwrap();
    assert_eq!(node.ends(), RIGHT);
    let whole = node.counts(cookie);
    assert_eq!(whole.get(name::ENROLMENTS), None);
    let others = |counts: &Counts| {
        let mut counts = counts.clone();
        counts.remove(name::ENROLMENTS);
        counts
    };
    assert_eq!(others(&whole), others(&before));
    // As the runtime tries again, or the reconciler does for one that it can find.
    node.agent.enrol_as(node.pod(), &manifest(node.pod())).unwrap();
    assert_eq!(node.ends(), RIGHT);
    assert_eq!(node.counts(cookie), before);

    node.agent.kill().unwrap();
    remove_pins(&node, "maps", &[]);
    node.listeners = Listeners::default();
    drop(node.pod.take());
    node.agent.start_again().unwrap();
    node.wait_for(cookie, &Counts::new(), "what has neither a name nor a netns to go");
}

#[test]
fn a_pod_that_is_gone_without_a_del_leaves_nothing() {
    let mut node = node();
    let cookie = node.cookie();
    node.agent.remove_manifest(&manifest(node.pod())).unwrap();
    node.listeners = Listeners::default();
    drop(node.pod.take());
    node.wait_for(cookie, &Counts::new(), "nothing to be left");
}

#[test]
fn what_only_a_manifest_tells_is_told_of_where_there_is_none() {
    let node = node();
    let cookie = node.cookie();
    node.agent.remove_manifest(&manifest(node.pod())).unwrap();
    node.pinned().lose(name::PORTS, cookie).unwrap();
    let problem = || {
        let status = node.agent.json(&["status"]).unwrap();
        status.pointer("/agent/unrepaired/0/problem")?.as_str().map(str::to_owned)
    };
    let problem = wait::until_some("a problem to be told", PASS, problem).unwrap();
    assert!(problem.contains("entries of its lists were gone) that only its manifest tells"), "{problem}");
    node.agent.write_manifest(&manifest(node.pod())).unwrap();
    let healed = || node.agent.json(&["status"]).unwrap()["agent"]["unrepaired"] == serde_json::json!([]);
    wait::until("it to be well", PASS, healed).unwrap();
    assert_eq!(node.ends(), RIGHT);
}
