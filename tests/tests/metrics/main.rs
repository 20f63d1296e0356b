//! Metrics, health and readiness of a real agent, over HTTP.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests panic as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use veer_common::cni::Reply;
use veer_tests::backend::Backend;
use veer_tests::http::{self, Headers, Response};
use veer_tests::launch::Launch;
use veer_tests::mesh::{APP, Mesh, dial, dial_from_world, dual_stack};
use veer_tests::on_each_backend;
use veer_tests::pod::{REMOTE_V4, TestPod};
use veer_tests::wait;

on_each_backend! {
    connections_pods_and_adds_are_counted_for_the_node_and_counts_outlive_the_pod,
}

const DOCUMENTED: &str = include_str!("../../../docs/metrics.md");
const RULES: &str = include_str!("../../../deploy/helm/veer/rules/veer.yaml");
const DASHBOARD: &str = include_str!("../../../deploy/helm/veer/dashboards/veer.json");
const ON_A_PORT: [&str; 2] = ["--admin-addr=127.0.0.1:0", "--health-addr=127.0.0.1:0"];

fn mesh(arguments: &[&str]) -> Mesh {
    Mesh::on_node(Launch::new(), &[&ON_A_PORT[..], arguments].concat()).unwrap()
}

fn address(mesh: &Mesh, which: &str) -> SocketAddr {
    mesh.agent.json(&["status"]).unwrap()["agent"][which].as_str().unwrap().parse().unwrap()
}

fn fetch(address: SocketAddr, path: &str) -> (u16, String) {
    let Response { status, body, .. } = http::get_from(address, path, &Headers::new()).unwrap();
    (status, String::from_utf8(body).unwrap())
}

fn get(mesh: &Mesh, which: &str, path: &str) -> (u16, String) {
    fetch(address(mesh, which), path)
}

fn scrape(address: SocketAddr) -> String {
    let (status, text) = fetch(address, "/metrics");
    assert_eq!(status, 200, "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    text
}

/// The samples by their names and labels.
fn samples_at(address: SocketAddr) -> BTreeMap<String, String> {
    let text = scrape(address);
    let sample = |line: &str| line.rsplit_once(' ').map(|(name, value)| (name.to_owned(), value.to_owned()));
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

fn samples(mesh: &Mesh) -> BTreeMap<String, String> {
    samples_at(address(mesh, "adminAddr"))
}

fn connections(reason: &str, direction: &str, action: &str) -> String {
    format!("veer_connections_total{{direction=\"{direction}\",action=\"{action}\",reason=\"{reason}\"}}")
}

#[test]
fn each_metric_is_documented_and_each_documented_one_is_there() {
    let mesh = mesh(&[]);
    let text = scrape(address(&mesh, "adminAddr"));
    let described = |kind: &str| -> BTreeSet<(String, String)> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(kind));
        lines.map(|line| line.split_once(' ').unwrap()).map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
    };
    let rows: Vec<Vec<&str>> = DOCUMENTED
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect())
        .collect();
    assert!(rows.len() > 15 && rows.is_sorted(), "{rows:?}");
    let documented = rows.iter().filter(|row| !row[4].contains("only with an installer"));
    let documented: BTreeSet<_> = documented.map(|row| (row[0].to_owned(), row[1].to_owned())).collect();
    assert_eq!(described("# TYPE "), documented);
    for (name, help) in described("# HELP ") {
        assert!(help.len() > 10 && help.starts_with(char::is_uppercase), "{name}: {help}");
    }
    // Of each label that a sample has its row speaks.
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = line.split_once('{').unwrap_or((line.split(' ').next().unwrap(), "}"));
        let row = rows.iter().filter(|row| name.starts_with(row[0])).max_by_key(|row| row[0].len()).unwrap();
        let labels = labels.split_once('}').unwrap().0;
        for (label, _) in labels.split("\",").filter_map(|label| label.split_once("=\"")) {
            assert!(label == "le" || row[2].contains(label), "{line}");
        }
    }
}

/// What expressions select: names, and labels with their values.
fn selectors() -> Vec<(String, Vec<String>)> {
    let rules = RULES.lines().filter_map(|line| line.trim().strip_prefix("expr: ").map(str::to_owned));
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    let panels = targets.map(|target| target["expr"].as_str().unwrap().to_owned());
    let mut all = Vec::new();
    for expression in rules.chain(panels) {
        let mut rest = expression.as_str();
        while let Some((before, behind)) = rest.split_once('{') {
            let name = before.rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next().unwrap();
            let (labels, behind) = behind.split_once('}').unwrap();
            // The node is Prometheus' to say.
            let labels = labels.split(',').filter(|label| !label.starts_with("node"));
            let alternatives = alternatives(labels);
            all.extend(alternatives.into_iter().map(|labels| (name.to_owned(), labels)));
            rest = behind;
        }
    }
    all
}

/// Of `state=~"missing|dead"` each.
fn alternatives<'a>(labels: impl Iterator<Item = &'a str>) -> Vec<Vec<String>> {
    labels.fold(vec![Vec::new()], |all, label| {
        let (name, values) = label.split_once("=~").unwrap_or_else(|| label.split_once('=').unwrap());
        let values: Vec<_> =
            values.trim_matches('"').split('|').map(|value| format!("{name}=\"{value}\"")).collect();
        let with = |one: &Vec<String>| {
            values
                .iter()
                .map(|value| [one.as_slice(), std::slice::from_ref(value)].concat())
                .collect::<Vec<_>>()
        };
        all.iter().flat_map(with).collect()
    })
}

#[test]
fn what_alerts_and_dashboard_select_is_there() {
    let mesh = mesh(&[]);
    let samples = samples(&mesh);
    let selectors = selectors();
    assert!(selectors.len() > 20, "{selectors:?}");
    // The installer's, and those of kube-state-metrics, are none of this agent's.
    let is_ours = |name: &str| !name.starts_with("istio_cni_install") && !name.starts_with("kube_");
    for (name, labels) in selectors.iter().filter(|(name, _)| is_ours(name)) {
        let is_it = |sample: &&String| {
            let (its_name, its_labels) = sample.split_once('{').unwrap_or((sample, ""));
            its_name == name && labels.iter().all(|label| its_labels.contains(label.as_str()))
        };
        assert!(samples.keys().any(|sample| is_it(&sample)), "nothing is {name} with {labels:?}");
    }
}

fn connections_pods_and_adds_are_counted_for_the_node_and_counts_outlive_the_pod(backend: Backend) {
    let mut mesh = mesh(&[&backend.flag()]);
    mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
    let listeners = mesh.proxy_listeners().unwrap();
    let (out, back) = (
        connections("all-outbound", "outbound", "to-outbound"),
        connections("all-inbound", "inbound", "to-inbound"),
    );
    let enrolled = format!("veer_pods_enrolled{{backend=\"{}\",mode=\"redirect\"}}", backend.name());
    let adds = "veer_cni_add_duration_seconds_count{result=\"enrolled\"}";
    let listening = "veer_pods_proxy{state=\"listening\"}";
    let of = |mesh: &Mesh| {
        let samples = samples(mesh);
        [&out, &back, &enrolled, adds, listening].map(|name| samples[name].parse::<u64>().unwrap())
    };
    assert_eq!(of(&mesh), [0, 0, 1, 1, 1]);
    for _ in 0..3 {
        dial(mesh.pod.app(), (REMOTE_V4, 80), &listeners).unwrap();
    }
    dial_from_world(&mesh.world, (mesh.pod.v4(), APP), &listeners).unwrap();
    assert_eq!(of(&mesh), [3, 1, 1, 1, 1]);
    // Between two scrapes, and then it is gone.
    dial(mesh.pod.app(), (REMOTE_V4, 80), &listeners).unwrap();
    mesh.agent.unenrol(&mesh.pod).unwrap();
    assert_eq!(of(&mesh), [4, 1, 0, 1, 0]);

    // What an agent finds counted is not what it has counted.
    let other = TestPod::new(&mesh.world, &mesh.cgroup, "other").unwrap();
    mesh.agent.enrol_as(&other, &dual_stack(&other)).unwrap();
    let theirs = veer_tests::mesh::proxy_listeners(&other).unwrap();
    dial(other.app(), (REMOTE_V4, 80), &theirs).unwrap();
    assert_eq!(of(&mesh), [5, 1, 1, 2, 1]);
    mesh.agent.stop().unwrap();
    mesh.agent.start_again().unwrap();
    assert_eq!(of(&mesh), [0, 0, 1, 0, 1]);
    dial(other.app(), (REMOTE_V4, 80), &theirs).unwrap();
    assert_eq!(of(&mesh), [1, 0, 1, 0, 1]);
}

#[test]
fn refused_connections_failed_adds_and_map_entries_are_told() {
    let mesh = mesh(&["--backend=ebpf"]);
    let wrong = dual_stack(&mesh.pod).with_traffic("excludeOutboundPorts", "http");
    mesh.agent.write_manifest(&wrong).unwrap();
    assert!(matches!(mesh.agent.add(&mesh.pod).unwrap(), Reply::Failed { .. }));
    mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
    let to = SocketAddr::from((mesh.pod.v4(), APP));
    let refused = mesh.world.tcp4().unwrap();
    veer_tests::mesh::connect(&refused, to).unwrap_err();
    let samples = samples(&mesh);
    for (name, value) in [
        (connections("no-listener", "inbound", "drop").as_str(), "1"),
        ("veer_cni_add_duration_seconds_count{result=\"failed\"}", "1"),
        ("veer_map_entries{map=\"PODS\"}", "1"),
        ("veer_map_capacity{map=\"PODS\"}", "4096"),
        ("veer_map_entries{map=\"HAND_OFFS\"}", "0"),
        ("veer_pods_proxy{state=\"not-listening\"}", "1"),
        ("veer_pods_proxy_state{driver=\"sidecar\",state=\"waiting\"}", "1"),
        ("veer_pods_proxy_state{driver=\"node\",state=\"dead\"}", "0"),
        ("veer_datapath_faults_total{fault=\"hand-off\"}", "0"),
        ("veer_pods_unrepaired", "0"),
        ("veer_source_state{state=\"synced\"}", "1"),
    ] {
        assert_eq!(samples.get(name).map(String::as_str), Some(value), "{name}");
    }
    let registered = |mesh: &Mesh| self::samples(mesh)["veer_map_entries{map=\"LISTENERS\"}"].clone();
    assert_eq!(registered(&mesh), "0");
    let listeners = mesh.proxy_listeners().unwrap();
    let known = mesh.agent.json(&["pods"]).unwrap();
    let of = |end: &str| known[0]["policy"][end]["listeners"].as_u64().unwrap();
    assert_eq!(registered(&mesh), (of("outbound") + of("inbound")).to_string());
    assert_ne!(registered(&mesh), "0");
    drop(listeners);
    wait::until("the kernel to take them out", wait::LIMIT, || registered(&mesh) == "0").unwrap();
    assert!(samples["veer_map_entries{map=\"OWN_ADDRESSES\"}"].parse::<u64>().unwrap() >= 2);
    let build = samples.keys().find(|name| name.starts_with("veer_build_info")).unwrap();
    assert!(build.contains(&format!("version=\"{}\"", env!("CARGO_PKG_VERSION"))), "{build}");
}

#[test]
fn ready_is_who_would_redirect_a_pod_now_and_who_is_not_says_why() {
    let mesh = mesh(&["--backend=ebpf", "--reconcile-interval=1"]);
    let [admin, health] = ["adminAddr", "healthAddr"].map(|which| address(&mesh, which));
    let is_ready = || fetch(health, "/readyz").0 == 200;
    wait::until("the agent to be ready", wait::LIMIT, is_ready).unwrap();
    assert_eq!(fetch(health, "/readyz"), (200, "ready\n".to_owned()));
    let verbose = "datapath: ok\nnode: ok\npods: ok\nsettled: ok\nsocket: ok\nready\n";
    assert_eq!(fetch(health, "/readyz?verbose"), (200, verbose.to_owned()));
    assert_eq!(samples_at(admin)["veer_ready"], "1");

    // Without its bpffs an agent can enrol nobody.
    let bpffs = mesh.agent.bpffs().parent().unwrap().to_owned();
    umount2(&bpffs, MntFlags::MNT_DETACH).unwrap();
    wait::until("the agent to notice", Duration::from_mins(1), || !is_ready()).unwrap();
    let (status, text) = fetch(health, "/readyz");
    assert!(status == 503 && text.starts_with("datapath: ") && text.lines().count() == 1, "{text}");
    let now = samples_at(admin);
    assert_eq!(now["veer_ready"], "0");
    assert_eq!(now["veer_ready_condition{condition=\"datapath\"}"], "0");
    assert_eq!(now["veer_ready_condition{condition=\"node\"}"], "1");
    assert_ne!(now["veer_reconcile_errors_total"], "0");
    // It lives all the same: to kill it would not help.
    assert_eq!(fetch(health, "/healthz"), (200, "alive\n".to_owned()));

    mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
    wait::until("the agent to have pinned all of it again", Duration::from_mins(1), is_ready).unwrap();
}

#[test]
fn a_pod_that_is_repaired_while_it_runs_is_counted_under_istio_cnis_name() {
    let mesh = mesh(&["--backend=ebpf", "--reconcile-interval=1"]);
    let repaired = "istio_cni_repair_pods_repaired_total{type=\"repair\",result=\"success\"}";
    assert_eq!(samples(&mesh)[repaired], "0");
    // Uids are the machine's.
    let uid = format!("{:08x}-95b4-4b63-8a51-000000000001", std::process::id());
    let pod = TestPod::new(&mesh.world, &mesh.cgroup, &format!("pod{uid}")).unwrap();
    mesh.agent.write_manifest(&dual_stack(&pod).with_uid(&uid)).unwrap();
    wait::until("the pod to be repaired", Duration::from_mins(1), || samples(&mesh)[repaired] == "1")
        .unwrap();
}

#[test]
fn only_what_is_asked_for_is_served_and_only_reading_is_allowed() {
    let mesh = mesh(&[]);
    for (which, path, status) in [
        ("adminAddr", "/", 404),
        ("adminAddr", "/readyz", 404),
        ("healthAddr", "/metrics", 404),
        ("healthAddr", "/healthz", 200),
    ] {
        assert_eq!(get(&mesh, which, path).0, status, "{which} {path}");
    }
    let mut stream = TcpStream::connect(address(&mesh, "adminAddr")).unwrap();
    stream
        .write_all(b"POST /metrics HTTP/1.1\r\nHost: veer\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("GET, HEAD"), "{answer}");

    let off = Mesh::not_enrolled().unwrap();
    let status = off.agent.json(&["status"]).unwrap();
    assert!(status["agent"]["adminAddr"].is_null() && status["agent"]["healthAddr"].is_null(), "{status}");
}
