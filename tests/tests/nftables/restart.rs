//! The agent ends and another one comes: rules and records are there, and what is missing is brought in again.

use std::fs;
use std::path::PathBuf;

use veer_common::cni::Reply;
use veer_tests::backend::Backend;
use veer_tests::mesh::Mesh;
use veer_tests::pod::TestPod;

use super::{CAPTURED, DIRECT, dump, ends, listeners, listeners_of_two, said, view, with_everything};

fn records(mesh: &Mesh) -> PathBuf {
    mesh.agent.run_dir().join("nftables")
}

fn record(mesh: &Mesh, pod: &TestPod) -> PathBuf {
    records(mesh).join(format!("{}.json", view(&mesh.agent, pod)["netnsCookie"]))
}

#[test]
fn a_new_agent_finds_rules_and_records_and_changes_nothing() {
    let mut mesh = Mesh::on_with(Backend::Nftables, with_everything).unwrap();
    let listeners = listeners(&mesh, &mesh.pod);
    assert_eq!(ends(&mesh, &mesh.pod, &listeners), CAPTURED);
    mesh.agent.kill().unwrap();
    assert_eq!(ends(&mesh, &mesh.pod, &listeners), CAPTURED);
    // Also the handles, which anything written anew would have others of.
    let handles =
        |mesh: &Mesh| said(mesh.pod.netns(), &["nft", "--handle", "--stateless", "list", "ruleset"]);
    let before = (dump(mesh.pod.netns()), handles(&mesh), view(&mesh.agent, &mesh.pod));
    mesh.agent.start_again().unwrap();
    assert_eq!((dump(mesh.pod.netns()), handles(&mesh), view(&mesh.agent, &mesh.pod)), before);
    assert_eq!(mesh.agent.check(&mesh.pod).unwrap(), Reply::Done);
    assert_eq!(mesh.agent.json(&["status"]).unwrap()["agent"]["enrolled"], 1);
}

#[test]
fn rules_that_somebody_flushed_are_missed_by_check_and_brought_in_by_add_or_a_new_agent() {
    let mut mesh = Mesh::on_with(Backend::Nftables, with_everything).unwrap();
    let listeners = listeners(&mesh, &mesh.pod);
    let whole = dump(mesh.pod.netns());
    let flush = |mesh: &Mesh, what: &[&str]| {
        said(mesh.pod.netns(), what);
        let reply = mesh.agent.check(&mesh.pod).unwrap();
        let Reply::Failed { msg, .. } = &reply else { panic!("{reply:?}") };
        assert!(msg.contains("the rules of pod test/pod are not in its netns any more"), "{msg}");
    };
    flush(&mesh, &["nft", "flush", "ruleset"]);
    assert_eq!(ends(&mesh, &mesh.pod, &listeners), DIRECT);
    assert_eq!(mesh.agent.add(&mesh.pod).unwrap(), Reply::Done);
    assert_eq!(dump(mesh.pod.netns()), whole);
    flush(&mesh, &["nft", "delete", "table", "ip", "veer"]);
    mesh.agent.kill().unwrap();
    mesh.agent.start_again().unwrap();
    assert_eq!(dump(mesh.pod.netns()), whole);
    assert_eq!(ends(&mesh, &mesh.pod, &listeners), CAPTURED);
    assert_eq!(mesh.agent.check(&mesh.pod).unwrap(), Reply::Done);
}

#[test]
fn a_pod_that_went_while_no_agent_was_there_leaves_no_record() {
    let mut mesh = Mesh::on(Backend::Nftables).unwrap();
    let gone = mesh.another_pod("gone").unwrap();
    let (kept, lost) = (record(&mesh, &mesh.pod), record(&mesh, &gone));
    mesh.agent.kill().unwrap();
    drop(gone);
    assert!(lost.exists());
    mesh.agent.start_again().unwrap();
    assert!(kept.exists() && !lost.exists());
    let pods = mesh.agent.json(&["pods"]).unwrap();
    assert_eq!(pods.as_array().unwrap().len(), 1, "{pods}");
}

#[test]
fn a_record_that_is_lost_or_broken_does_not_let_the_pods_traffic_through() {
    let mut mesh = Mesh::on(Backend::Nftables).unwrap();
    let other = mesh.another_pod("other").unwrap();
    let (own, others) = (record(&mesh, &mesh.pod), record(&mesh, &other));
    mesh.agent.kill().unwrap();
    fs::write(&own, "{\"half\": ").unwrap();
    fs::remove_file(&others).unwrap();
    fs::write(records(&mesh).join(".7.draft"), "what a crash leaves").unwrap();
    mesh.agent.start_again().unwrap();
    assert!(mesh.agent.log().contains("decode "), "{}", mesh.agent.log());
    let listeners = &listeners_of_two(&mesh, &other);
    for pod in [&mesh.pod, &other] {
        assert_eq!(ends(&mesh, pod, listeners), CAPTURED);
        // The next ADD makes it whole again, as if nothing had been.
        mesh.agent.enrol_as(pod, &veer_tests::mesh::dual_stack(pod)).unwrap();
        assert_eq!(mesh.agent.check(pod).unwrap(), Reply::Done);
        assert_eq!(ends(&mesh, pod, listeners), CAPTURED);
        mesh.agent.unenrol(pod).unwrap();
        assert_eq!(ends(&mesh, pod, listeners), DIRECT);
    }
    assert!(!own.exists() && !others.exists());
}
