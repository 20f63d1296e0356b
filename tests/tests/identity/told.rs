//! What the commands tell of who the proxy is.

use serde_json::{Value, json};
use veer_tests::mesh::{Mesh, connect, tcp};
use veer_tests::monitor::Monitor;
use veer_tests::socket_maker::Maker;

use super::{REMOTES, container, envoy, mesh, not_enrolled};

fn text(mesh: &Mesh, arguments: &[&str]) -> String {
    let output = mesh.agent.command(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn cgroup_id(mesh: &Mesh, name: &str) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(mesh.pod.cgroup().path().join(name)).unwrap().ino()
}

fn explained(mesh: &Mesh, arguments: &[&str]) -> Value {
    let to = REMOTES[0].to_string();
    mesh.agent
        .json(&[&["explain", "test/pod", "--to", &to, "--as", "1337:1337"], arguments].concat())
        .unwrap()
}

#[test]
fn explain_says_who_is_the_proxy_and_why() {
    let mesh = mesh("container");
    let nobody = explained(&mesh, &[]);
    assert_eq!(nobody["reason"], "all-outbound");
    assert!(nobody["notes"][0].as_str().unwrap().contains("nobody is the proxy"), "{nobody}");

    let proxy = container(&mesh, "istio-proxy");
    let _listeners = envoy(&proxy.maker);
    let taken = explained(&mesh, &[]);
    assert_eq!((&taken["reason"], &taken["rule"]), (&json!("proxy"), &json!("proxy")));
    assert_eq!(taken["compared"], "uid 1337 is the proxy's, and so is its container");
    let note = taken["notes"][0].as_str().unwrap();
    assert!(note.contains(&format!("(cgroup {})", cgroup_id(&mesh, "istio-proxy"))), "{note}");
    let because: Vec<_> = taken["because"].as_array().unwrap().iter().map(|one| &one["text"]).collect();
    assert_eq!(because[1], "the node's agent: --proxy-identity=container", "{because:?}");
    assert_eq!(explained(&mesh, &["--container=proxy"])["reason"], "proxy");

    let other = explained(&mesh, &["--container=other"]);
    assert_eq!(other["reason"], "all-outbound");
    let looked: Vec<_> = other["before"].as_array().unwrap().iter().map(|one| &one["compared"]).collect();
    for id in ["uid", "gid"] {
        let why = format!("{id} 1337 is the proxy's, but the socket was created in another container");
        assert!(looked.iter().any(|compared| **compared == json!(why)), "{looked:?}");
    }
    let to = REMOTES[0].to_string();
    let arguments = ["explain", "test/pod", "--to", &to, "--as=1337:1337", "--container=other"];
    assert!(text(&mesh, &arguments).contains("as 1337:1337 of another container"));
}

/// Opens a connection, whatever becomes of it.
fn open(maker: &Maker) {
    let to = REMOTES[0];
    drop(connect(&tcp(maker, to).unwrap(), to));
}

#[test]
fn a_line_of_monitor_tells_an_impostor_and_explain_agrees_with_the_kernel() {
    let mesh = mesh("container");
    let (proxy, app) = (container(&mesh, "istio-proxy"), container(&mesh, "app"));
    let _listeners = envoy(&proxy.maker);
    let [json, text] = [&["--json"][..], &[]].map(|form| Monitor::start(&mesh.agent, form).unwrap());
    let makers: [&Maker; 3] = [&app.maker, &proxy.maker, mesh.pod.app()];
    makers.into_iter().for_each(open);
    let [json, text] = [json, text].map(|monitor| monitor.wait_for_lines(3).unwrap());
    for (lines, is_told) in [(json, "\"impostor\":true"), (text, " 1337:1337/impostor ")] {
        let told: Vec<bool> = lines.iter().map(|line| line.contains(is_told)).collect();
        assert_eq!(told, [true, false, false], "{lines:?}");
        for (line, reason) in lines.iter().zip(["all-outbound", "proxy", "all-outbound"]) {
            let report = mesh.agent.json(&["explain", "--event", line]).unwrap();
            assert_eq!((&report["reason"], &report["observed"]), (&json!(reason), &json!(reason)), "{line}");
        }
    }
}

#[test]
fn pods_and_status_tell_what_makes_the_proxy() {
    let mesh = mesh("container");
    assert!(text(&mesh, &["pods", "test/pod"]).contains("nobody is the proxy"));
    let proxy = container(&mesh, "istio-proxy");
    let _listeners = envoy(&proxy.maker);
    let id = cgroup_id(&mesh, "istio-proxy");
    let path = proxy.cgroup.path().to_str().unwrap();
    let pod = mesh.agent.json(&["pods", "test/pod"]).unwrap();
    assert_eq!(pod["policy"]["proxyIdentity"], "container");
    assert_eq!(
        pod["policy"]["proxyContainer"],
        json!({"cgroup": id, "path": path, "listening": 4, "shared": false})
    );
    let line = format!("uid 1337, gid 1337, in the container of cgroup {path}, 4 listening");
    assert!(text(&mesh, &["pods", "test/pod"]).contains(&line));
    let status = mesh.agent.json(&["status"]).unwrap();
    assert_eq!(
        (&status["agent"]["proxyIdentity"], &status["sharedCgroups"]),
        (&json!("container"), &json!(0))
    );
    assert!(!text(&mesh, &["status"]).contains("warning"));

    let by_uid = super::mesh("uid");
    let pod = by_uid.agent.json(&["pods", "test/pod"]).unwrap();
    assert_eq!(
        (&pod["policy"]["proxyIdentity"], &pod["policy"]["proxyContainer"]),
        (&json!("uid"), &Value::Null)
    );
}

#[test]
fn with_rules_of_nftables_the_ids_decide_and_everybody_says_so() {
    let mesh = super::with_agent(&["--proxy-identity=container", "--backend=nftables"]);
    mesh.agent.enrol_as(&mesh.pod, &veer_tests::mesh::dual_stack(&mesh.pod)).unwrap();
    let (proxy, app) = (container(&mesh, "istio-proxy"), container(&mesh, "app"));
    let mut listeners = envoy(&proxy.maker);
    listeners.extend(super::others(&mesh));
    assert_eq!(super::ends(&mesh, &app.maker, &listeners), super::AS_PROXY);
    assert_eq!(super::ends(&mesh, mesh.pod.app(), &listeners), super::AS_APP);

    let problem =
        "--proxy-identity=container is not possible on this node, it is uid: veer's rules of nftables";
    assert!(mesh.agent.log().contains(problem), "{}", mesh.agent.log());
    let status = mesh.agent.json(&["status"]).unwrap();
    assert_eq!(status["agent"]["proxyIdentity"], "uid");
    assert!(text(&mesh, &["status"]).contains(&format!("warning    {problem}")));
    let cgroup = format!("--cgroup={}", mesh.cgroup.path().display());
    let doctor = mesh.agent.command(&["doctor", "--json", &cgroup]).output().unwrap();
    let report: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["name"] == "proxy-identity").unwrap();
    assert_eq!(finding["level"], "warning", "{finding}");
    assert!(finding["says"].as_str().unwrap().contains(problem), "{finding}");
}

#[test]
fn a_pod_with_a_virtual_machine_is_redirected_by_rules_and_so_by_its_ids_and_the_log_names_it() {
    let mesh = not_enrolled("container");
    let manifest = veer_tests::mesh::dual_stack(&mesh.pod);
    let manifest = manifest.with_annotation("istio.io/reroute-virtual-interfaces", "k6t-eth0");
    mesh.agent.enrol_as(&mesh.pod, &manifest).unwrap();
    let (proxy, app) = (container(&mesh, "istio-proxy"), container(&mesh, "app"));
    let mut listeners = envoy(&proxy.maker);
    listeners.extend(super::others(&mesh));
    assert_eq!(super::ends(&mesh, &app.maker, &listeners), super::AS_PROXY);
    let log = mesh.agent.log();
    assert!(
        log.lines().any(|line| line.contains("rules know a process by its ids") && line.contains("test/pod")),
        "{log}"
    );
    let pod = mesh.agent.json(&["pods", "test/pod"]).unwrap();
    assert_eq!(pod["policy"]["proxyIdentity"], "uid");
    // Nothing of what the manifest or the node says has changed.
    let report = explained(&mesh, &[]);
    assert_eq!((&report["reason"], &report["notes"]), (&json!("proxy"), &json!([])), "{report}");
    // Other pods of the node are known by their containers.
    assert_eq!(mesh.agent.json(&["status"]).unwrap()["agent"]["proxyIdentity"], "container");
}

#[test]
fn where_containers_share_a_cgroup_the_ids_decide_and_status_says_so() {
    // As on a hybrid node, where all processes are in the cgroup that the programs hang on.
    let mesh = not_enrolled("container");
    mesh.agent.enrol_as(&mesh.pod, &veer_tests::mesh::dual_stack(&mesh.pod)).unwrap();
    let maker =
        || Maker::start(mesh.pod.netns(), &mesh.cgroup, veer_tests::launch::Identity::proxy()).unwrap();
    let (proxy, app) = (maker(), maker());
    let mut listeners = envoy(&proxy);
    listeners.extend(super::others(&mesh));
    assert_eq!(super::ends(&mesh, &app, &listeners), super::AS_PROXY);
    assert_eq!(mesh.agent.json(&["status"]).unwrap()["sharedCgroups"], 1);
    assert!(
        text(&mesh, &["status"]).contains("warning    in 1 pods the proxy's cgroup is the one that veer is")
    );
    let pod = text(&mesh, &["pods", "test/pod"]);
    assert!(pod.contains("its container shares cgroup"), "{pod}");
}
