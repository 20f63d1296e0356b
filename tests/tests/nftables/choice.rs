//! Which backend it is, who says so, and pods of both on one node.

use std::process::Command;

use nix::errno::Errno;
use serde_json::Value;
use veer_tests::agent::Agent;
use veer_tests::backend::Backend;
use veer_tests::bpf_gate::BpfGate;
use veer_tests::cgroup::Cgroup;
use veer_tests::launch::{Launch, veer_binary};
use veer_tests::mesh::{Mesh, dual_stack};
use veer_tests::scratch;

use super::{CAPTURED, DIRECT, ends, listeners, listeners_of_two, view};

fn text(mut command: Command) -> (i32, String) {
    let output = command.output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// `veer doctor` for the places of an agent, started so.
fn doctor(launch: &Launch, agent: &Agent, cgroup: &Cgroup) -> (i32, Value) {
    let mut command = launch.command(veer_binary("VEER_BIN", "veer").unwrap()).unwrap();
    command.args(["doctor", "--json"]).env("VEER_RUN_DIR", agent.run_dir());
    command.env("VEER_BPFFS", agent.bpffs()).env("VEER_CGROUP", cgroup.path());
    let (code, report) = text(command);
    (code, serde_json::from_str(&report).unwrap())
}

fn finding<'a>(report: &'a Value, name: &str) -> &'a Value {
    let findings = report["findings"].as_array().unwrap();
    findings
        .iter()
        .find(|finding| finding["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

/// As a node's runtime has it whose profile lets nobody call bpf(2).
fn refusing() -> BpfGate {
    let gate = BpfGate::new().unwrap();
    gate.close(Errno::EPERM);
    gate
}

#[test]
fn where_bpf_is_refused_auto_takes_nftables_and_status_and_doctor_say_why() {
    let gate = refusing();
    let mesh = Mesh::on_node(Launch::new().before_bpf_gate(&gate), &[]).unwrap();
    let listeners = listeners(&mesh, &mesh.pod);
    mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
    assert_eq!(ends(&mesh, &mesh.pod, &listeners), CAPTURED);

    let status = mesh.agent.json(&["status"]).unwrap();
    let agent = &status["agent"];
    assert_eq!((&agent["backend"], &agent["cgroup"]), (&"nftables".into(), &Value::Null));
    let why = agent["backendReason"].as_str().unwrap();
    assert!(why.starts_with("eBPF cannot be used: load the eBPF object"), "{why}");
    assert!(why.contains("Operation not permitted"), "{why}");
    let (code, told) = text(mesh.agent.command(&["status"]));
    assert_eq!(code, 0, "{told}");
    assert!(told.contains(&format!("\nbackend    nftables ({why})\n")), "{told}");
    let pins = std::fs::read_dir(mesh.agent.bpffs()).map_or(0, Iterator::count);
    assert_eq!(pins, 0, "what was tried is gone");

    let (code, report) = doctor(&Launch::new().before_bpf_gate(&gate), &mesh.agent, &mesh.cgroup);
    assert_eq!(
        (code, &report["backend"], &report["verdict"]),
        (1, &"nftables".into(), &"warning".into()),
        "{report:#}"
    );
    for (name, level, says) in [
        ("backend", "warning", "nftables: not all of the eBPF works here"),
        ("ebpf-maps", "warning", "Operation not permitted"),
        ("nftables", "ok", "could redirect in ip and ip6"),
        ("datapath", "ok", why),
    ] {
        let finding = finding(&report, name);
        assert_eq!(finding["level"], level, "{finding}");
        assert!(finding["says"].as_str().unwrap().contains(says), "{finding}");
    }
    // Who may call it finds that the node could do better.
    let (_, report) = doctor(&Launch::new(), &mesh.agent, &mesh.cgroup);
    assert_eq!(report["backend"], "ebpf");
    let says = finding(&report, "datapath")["says"].as_str().unwrap();
    assert!(says.contains("it redirects new pods by nftables") && says.contains(why), "{says}");
}

#[test]
fn where_ebpf_was_asked_for_and_is_refused_the_agent_does_not_start() {
    let gate = refusing();
    let refused = Mesh::on_node(Launch::new().before_bpf_gate(&gate), &[&Backend::Ebpf.flag()]).unwrap_err();
    let text = format!("{refused:#}");
    assert!(text.contains("load the eBPF object") && text.contains("Operation not permitted"), "{text}");
}

#[test]
fn what_is_wrong_in_the_flags_is_no_reason_to_take_nftables() {
    let (cgroup, directory) = (Cgroup::new().unwrap(), scratch::directory().unwrap());
    let mut command = Command::new(veer_binary("VEER_BIN", "veer").unwrap());
    command.arg("agent");
    let path = |name: &str| directory.path().join(name);
    std::fs::create_dir(path("pods")).unwrap();
    for (flag, value) in [
        ("--pods-from", path("pods")),
        ("--run-dir", path("run")),
        ("--bpffs", path("no-bpffs")),
        ("--cgroup", cgroup.path().to_owned()),
    ] {
        command.arg(flag).arg(value);
    }
    let output = command.output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && errors.contains("no-bpffs"), "{errors}");
    assert!(errors.contains("is not on a bpffs"), "{errors}");
}

#[test]
fn a_pod_stays_with_the_backend_that_has_enrolled_it() {
    let mut mesh = Mesh::on_node(Launch::new(), &[&Backend::Nftables.flag()]).unwrap();
    mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
    mesh.agent.stop().unwrap();
    mesh.agent.set_arguments(&[]);
    mesh.agent.start_again().unwrap();
    let young = mesh.another_pod("young").unwrap();
    let backends = [&mesh.pod, &young].map(|pod| view(&mesh.agent, pod)["backend"].clone());
    assert_eq!(backends, ["nftables", "ebpf"]);
    // A second ADD, as when an interface is added, changes nothing of that.
    mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
    let listeners = listeners_of_two(&mesh, &young);
    for pod in [&mesh.pod, &young] {
        assert_eq!(ends(&mesh, pod, &listeners), CAPTURED, "{}", pod.name());
        mesh.agent.unenrol(pod).unwrap();
        assert_eq!(ends(&mesh, pod, &listeners), DIRECT, "{}", pod.name());
    }
}

#[test]
fn with_pods_of_ebpf_on_the_node_auto_does_not_change_over_in_silence() {
    let gate = refusing();
    let mut mesh = Mesh::on_node(Launch::new(), &[]).unwrap();
    mesh.agent.enrol(&mesh.pod).unwrap();
    let listeners = listeners(&mesh, &mesh.pod);
    mesh.agent.stop().unwrap();
    mesh.agent.use_launch(Launch::new().before_bpf_gate(&gate));
    let refused = format!("{:#}", mesh.agent.start_again().unwrap_err());
    assert!(refused.contains("Operation not permitted"), "{refused}");
    assert!(refused.contains("so nftables does not take its place"), "{refused}");
    assert_eq!(ends(&mesh, &mesh.pod, &listeners), CAPTURED, "the pod does not notice");
}
