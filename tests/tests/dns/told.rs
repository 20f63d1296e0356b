//! What the commands tell of DNS.

use std::net::IpAddr;

use serde_json::{Value, json};
use veer_tests::dns::question;
use veer_tests::monitor::Monitor;
use veer_tests::pod::{REMOTE_V4, REMOTE_V6};

use super::{CLUSTER_DNS, EBPF, NFTABLES, Scene, at, hear, tcp, udp};

#[test]
fn each_question_is_counted_and_shown_and_its_line_is_explained() {
    let scene = Scene::new(EBPF);
    let pod = scene.pod();
    let monitor = Monitor::start(&scene.mesh.agent, &["--json"]).unwrap();
    let connected = udp(pod.app(), CLUSTER_DNS.into());
    connected.connect(at(CLUSTER_DNS)).unwrap();
    connected.send(&question(1)).unwrap();
    hear(&connected);
    let unconnected = udp(pod.root(), REMOTE_V6.into());
    unconnected.send_to(&question(1), at(REMOTE_V6)).unwrap();
    hear(&unconnected);
    let (_socket, _told) = tcp::ask(pod.app(), CLUSTER_DNS.into());
    let direct = udp(pod.proxy(), REMOTE_V4.into());
    direct.send_to(&question(1), at(REMOTE_V4)).unwrap();
    hear(&direct);

    let decisions = monitor.wait_for_decisions(4).unwrap();
    let told: Vec<Value> = decisions
        .iter()
        .map(|one| json!([one["protocol"], one["uid"], one["destination"], one["action"], one["reason"]]))
        .collect();
    assert_eq!(
        told,
        [
            json!(["udp", 1000, "10.96.0.10:53", "to-dns", "dns"]),
            json!(["udp", 0, "[2001:db8::1]:53", "to-dns", "dns"]),
            json!(["tcp", 1000, "10.96.0.10:53", "to-dns", "dns"]),
            json!(["udp", 1337, "192.0.2.1:53", "direct", "proxy"]),
        ]
    );
    for line in monitor.lines().unwrap() {
        let report = scene.mesh.agent.json(&["explain", &format!("--event={line}")]).unwrap();
        let decision: Value = serde_json::from_str(&line).unwrap();
        let said = (&report["reason"], &report["action"], &report["protocol"], &report["notes"]);
        assert_eq!(said, (&decision["reason"], &decision["action"], &decision["protocol"], &json!([])));
    }
    let view = scene.mesh.agent.json(&["pods", "test/pod"]).unwrap();
    assert_eq!((&view["totals"]["toDns"], &view["reasons"]), (&json!(3), &json!({"dns": 3, "proxy": 1})));
    assert_eq!(view["policy"]["dns"], json!({"port": 15053, "listeners": 2}));
}

#[test]
fn a_question_that_might_be_asked_is_explained() {
    [EBPF, NFTABLES].map(Scene::new).iter().for_each(questions_are_explained);
}

fn questions_are_explained(scene: &Scene) {
    let explain = |arguments: &[&str]| {
        let output =
            scene.mesh.agent.command(&[&["explain", "test/pod"], arguments].concat()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(
        explain(&["--to=10.96.0.10:53", "--as=1000:1000", "--protocol=udp"]),
        "\
test/pod -> 10.96.0.10:53 by UDP as 1000:1000
verdict   to-dns: to the proxy's DNS port 15053
reason    dns: to port 53, and the pod captures DNS
matched   port 53 is DNS, which the pod captures
because   environment of istio-proxy: ISTIO_META_DNS_CAPTURE=\"true\"
looked at before, none of which matched:
  1  not-dns             port 53 is DNS, which the pod captures
  2  excluded-interface  the pod excludes no interface
  3  excluded-port       port 53 is none of 15020
  4  passthrough-source  the socket is bound to no address
  5  proxy               uid 1000 is not the proxy's, 1337
  6  proxy-group         gid 1000 is not the proxy's, 1337
  7  owner-group         the node captures all groups
  8  before-proxy        the node refuses what comes before the proxy
"
    );
    let told = explain(&["--to=192.0.2.1:443", "--as=0:0", "--protocol=udp"]);
    assert!(told.contains("\nmatched   port 443 is not 53\n"), "{told}");
    let told = explain(&["--to=127.0.0.53:53", "--as=0:0"]);
    assert!(told.contains("\nverdict   to-dns: "), "{told}");
    let told = explain(&["--to=127.0.0.53:53", "--as=1337:1337"]);
    assert!(told.contains("\nreason    proxy: within the pod, by the proxy\n"), "{told}");
    assert!(told.contains("port 53 is DNS, which the proxy asks by itself"), "{told}");
}

#[test]
fn the_kernel_and_the_explanation_agree_on_all_questions() {
    let scene = Scene::new(EBPF);
    let pod = scene.pod();
    let monitor = Monitor::start(&scene.mesh.agent, &["--json"]).unwrap();
    let mut sent = 0;
    for maker in [pod.app(), pod.root(), pod.proxy()] {
        for resolver in scene.resolvers() {
            let socket = udp(maker, resolver);
            // Nobody answers the proxy on its own loopback, which the next send() may be told.
            drop(socket.send_to(&question(1), at(resolver)));
            let connected = udp(maker, resolver);
            connected.connect(at(resolver)).unwrap();
            sent += 2;
        }
    }
    let decisions = monitor.wait_for_decisions(sent).unwrap();
    assert_eq!(decisions.len(), sent);
    for decision in decisions.iter().step_by(5) {
        let field = |name: &str| decision[name].as_str().unwrap();
        let (to, who) = (
            format!("--to={}", field("destination")),
            format!("--as={}:{}", decision["uid"], decision["gid"]),
        );
        let source = field("source")
            .parse::<std::net::SocketAddr>()
            .map_or(field("source").parse::<IpAddr>(), |at| Ok(at.ip()));
        let mut flags =
            vec!["explain".to_owned(), "test/pod".to_owned(), to, who, "--protocol=udp".to_owned()];
        let source = source.unwrap();
        if !source.is_unspecified() {
            flags.push(format!("--source={source}"));
        }
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let report = scene.mesh.agent.json(&flags).unwrap();
        assert_eq!(
            (&report["reason"], &report["action"]),
            (&decision["reason"], &decision["action"]),
            "{decision}"
        );
    }
}
