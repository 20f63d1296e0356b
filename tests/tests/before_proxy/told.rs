//! Who is told, and that nobody is told anything else than what happens.

use serde_json::{Value, json};
use veer_tests::mesh::{Mesh, connect, dual_stack, tcp};
use veer_tests::monitor::Monitor;
use veer_tests::wait;

use super::{BY_PROXY, BY_WORLD, DIRECT, REMOTES, Responder, Scene};

fn text(mesh: &Mesh, arguments: &[&str]) -> String {
    let output = mesh.agent.command(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn explain_agrees_with_the_kernel_on_each_decision_before_and_after() {
    let scene = Scene::new(&[DIRECT]);
    let [json, text] = [&["--json"][..], &[]].map(|form| Monitor::start(&scene.mesh.agent, form).unwrap());
    scene.is_direct();
    assert_eq!(scene.answering(), BY_WORLD);
    let dns = Responder::of_proxy(scene.pod()).unwrap();
    let proxy = scene.mesh.proxy_listeners().unwrap();
    scene.is_at(&proxy);
    assert_eq!(scene.answering(), BY_PROXY);
    // Of the seven before and the seven after, and what the proxy's own sockets do is none of it.
    let is_apps = |line: &String| !line.contains("proxy-") && !line.contains("not-dns");
    for monitor in [json, text] {
        let lines = monitor.wait_for_lines(14).unwrap();
        let lines: Vec<&String> = lines.iter().filter(|line| is_apps(line)).collect();
        assert_eq!(lines.len(), 14, "{lines:?}");
        for (index, line) in lines.into_iter().enumerate() {
            let report = scene.mesh.agent.json(&["explain", "--event", line]).unwrap();
            assert_eq!(report["reason"] == "before-proxy", index < 7, "{line}");
            assert_eq!((&report["reason"], &report["notes"]), (&report["observed"], &json!([])), "{line}");
        }
    }
    drop((proxy, dns));
}

#[test]
fn explain_tells_the_setting_the_rule_and_what_ended_it() {
    let scene = Scene::new(&[DIRECT]);
    let explained = |arguments: &[&str]| -> Value {
        scene.mesh.agent.json(&[&["explain", "test/pod"], arguments].concat()).unwrap()
    };
    for arguments in [&["--to", "192.0.2.1:80"][..], &["--to", "192.0.2.1:53", "--protocol", "udp"]] {
        let report = explained(arguments);
        assert_eq!((&report["rule"], &report["action"]), (&json!("before-proxy"), &json!("direct")));
        assert_eq!(report["compared"], "nobody has listened on 15001 or 15006 yet");
        assert_eq!(report["because"][0]["text"], "the node's agent: --before-proxy=direct");
    }
    assert_eq!(explained(&["--to", "192.0.2.1:80", "--as", "1337:1337"])["rule"], "proxy");
    let _proxy = scene.mesh.proxy_listeners().unwrap();
    let report = explained(&["--to", "192.0.2.1:80"]);
    assert_eq!(report["rule"], "all-outbound");
    let before = report["before"].as_array().unwrap();
    let rule = before.iter().find(|rule| rule["rule"] == "before-proxy").unwrap();
    assert_eq!(rule["compared"], "somebody listens on 15001 or 15006, or has before");
    assert_eq!(report["notes"].as_array().unwrap().len(), 1, "only whom it takes for granted: {report}");
}

#[test]
fn pods_and_status_name_the_pods_that_are_past_the_mesh() {
    let scene = Scene::new(&[DIRECT]);
    scene.is_direct();
    let pods = text(&scene.mesh, &["pods"]);
    assert!(pods.contains("  awaited  "), "{pods}");
    let pod = text(&scene.mesh, &["pods", "test/pod"]);
    let line = "before proxy   direct, past the mesh, until somebody listens on 15001 or 15006";
    assert!(pod.contains(line) && pod.contains("before-proxy  outbound   direct"), "{pod}");
    let status = text(&scene.mesh, &["status"]);
    assert!(status.contains("before     the proxy listens: direct\n"), "{status}");
    assert!(status.contains("the proxies of 1 pods, whose connections go direct, past the mesh"), "{status}");
    let counted = scene.mesh.agent.json(&["status"]).unwrap();
    assert_eq!((&counted["awaitingProxy"], &counted["agent"]["beforeProxy"]), (&json!(1), &json!("direct")));

    let _proxy = scene.mesh.proxy_listeners().unwrap();
    assert!(text(&scene.mesh, &["pods"]).contains("  ready  "));
    assert_eq!(scene.mesh.agent.json(&["status"]).unwrap()["awaitingProxy"], 0);
}

#[test]
fn what_went_past_the_mesh_is_told_of_once_when_it_is_over_and_when_the_pod_goes() {
    let scene = Scene::new(&[DIRECT, "--reconcile-interval=1"]);
    scene.is_direct();
    let said = || -> Vec<String> {
        let log = scene.mesh.agent.log();
        log.lines().filter(|line| line.contains("went past the mesh")).map(str::to_owned).collect()
    };
    let passes = || scene.mesh.agent.json(&["status"]).unwrap()["agent"]["lookedAt"].as_u64().unwrap();
    let wait_passes = |count: u64| {
        let first = passes();
        wait::until("further looks at everything", wait::LIMIT, || passes() >= first + count).unwrap();
    };
    wait_passes(2);
    assert_eq!(said(), [""; 0], "it is not over");
    let proxy = scene.mesh.proxy_listeners().unwrap();
    wait::until("it to be told", wait::LIMIT, || said().len() == 1).unwrap();
    let count = scene.mesh.counter("reasons", "before-proxy").unwrap();
    assert!(
        count > 0 && said()[0].contains(&format!("connections={count} over=true")),
        "{:?} {count}",
        said()
    );
    wait_passes(2);
    scene.mesh.agent.unenrol(scene.pod()).unwrap();
    wait_passes(1);
    assert_eq!(said().len(), 1, "{:?}", said());
    drop(proxy);

    // One that goes before its proxy comes is told of when it goes.
    let scene = Scene::new(&[DIRECT]);
    scene.is_direct();
    scene.mesh.agent.unenrol(scene.pod()).unwrap();
    assert!(scene.mesh.agent.log().contains("over=false"), "{}", scene.mesh.agent.log());
}

#[test]
fn with_rules_of_nftables_it_stays_refused_and_the_log_and_status_say_why() {
    let mesh = Mesh::on_node(veer_tests::launch::Launch::new(), &[DIRECT, "--backend=nftables"]).unwrap();
    mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
    for to in REMOTES {
        connect(&tcp(mesh.pod.app(), to).unwrap(), to).unwrap_err();
    }
    let problem =
        "--before-proxy=direct is not possible on this node, it is refuse: veer's rules of nftables";
    assert!(mesh.agent.log().contains(problem), "{}", mesh.agent.log());
    let status = mesh.agent.json(&["status"]).unwrap();
    assert_eq!(status["agent"]["beforeProxy"], "refuse");
    assert!(text(&mesh, &["status"]).contains(&format!("warning    {problem}")));
    let pod = mesh.agent.json(&["pods", "test/pod"]).unwrap();
    assert_eq!(pod["policy"]["beforeProxy"], "refuse");
}

#[test]
fn a_pod_with_a_virtual_machine_is_redirected_by_rules_and_so_refused_and_the_log_names_it() {
    let scene = Scene::not_enrolled(&[DIRECT]);
    let manifest = scene.manifest().with_annotation("istio.io/reroute-virtual-interfaces", "k6t-eth0");
    scene.mesh.agent.enrol_as(scene.pod(), &manifest).unwrap();
    let log = scene.mesh.agent.log();
    let says = |line: &str| line.contains("what comes before it is refused in this pod");
    assert!(log.lines().any(|line| says(line) && line.contains("test/pod")), "{log}");
    scene.is_refused();
    assert_eq!(scene.before_proxy(), "refuse");
    let report =
        scene.mesh.agent.json(&["explain", "test/pod", "--to", "192.0.2.1:80", "--as", "7:7"]).unwrap();
    assert_eq!(report["notes"], json!([]), "nothing of the manifest or the node has changed");
}
