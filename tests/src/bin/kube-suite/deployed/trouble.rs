//! What happens to a node on which veer is a DaemonSet.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use veer_tests::kube::client::LIMIT;
use veer_tests::kube::manifests::Manifests;
use veer_tests::kube::node::{CONFLIST, NAME};
use veer_tests::kube::pods::{Shape, Sidecar};
use veer_tests::wait;

use super::load::under_load;
use super::{AGENTS, DAEMON_SET, Deployed, file};
use crate::{mesh, trouble};

/// The primary network's plugin writes its file anew, as most do at each of their starts.
pub(crate) fn rewritten(deployed: &mut Deployed) -> Result<String> {
    let client = deployed.client().clone();
    let before = Shape::new("before", Sidecar::Classic).run(&client)?;
    let started = Instant::now();
    deployed.rewrite()?;
    deployed.wait_chained()?;
    let took = started.elapsed();
    let after = Shape::new("after", Sidecar::Native).run(&client)?;
    deployed.stage.prove_redirected(&after, &before)?;
    deployed.stage.prove_redirected(&before, &after)?;
    let status = deployed.exec_json(&["veer", "status"])?;
    let times = status.pointer("/agent/cni/otherWriter/times").and_then(Value::as_u64);
    ensure!(times == Some(1), "{status:#}");
    before.delete(&client)?;
    after.delete(&client)?;
    deployed.stage.wait_nobody_enrolled()?;
    Ok(format!("back after {} ms", took.as_millis()))
}

/// The primary network's file is broken, as one that is truncated and written by and by: no pod can be created.
pub(crate) fn broken(deployed: &mut Deployed) -> Result<String> {
    deployed.manifests = Manifests::read(&file("veer-next.yaml")?)?;
    deployed.install()?;
    let client = deployed.client().clone();
    let (peer, late) = (Shape::new("there", Sidecar::Classic), Shape::new("late", Sidecar::Classic));
    let peer = peer.run(&client)?;
    deployed.wait_condition("True")?;
    wait_taint(deployed, false)?;
    deployed.stage.node.write_file(CONFLIST, b"")?;
    let problem = deployed.wait_condition("False")?;
    ensure!(problem.contains(CONFLIST), "VeerReady is False: {problem}");
    wait_taint(deployed, true)?;
    deployed.client().wait("the agent's pod to be unready", DAEMON_SET, |daemon_set| {
        (daemon_set.pointer("/status/numberReady")? == &json!(0)).then_some(())
    })?;
    late.create(&client)?;
    deployed.rewrite()?;
    deployed.wait_chained()?;
    deployed.wait_condition("True")?;
    wait_taint(deployed, false)?;
    let late = late.wait_ready(&client)?;
    deployed.stage.prove_redirected(&late, &peer)?;
    late.delete(&client)?;
    peer.delete(&client)?;
    deployed.stage.wait_nobody_enrolled()?;
    Ok(format!("tainted, and unready: {problem}"))
}

fn wait_taint(deployed: &Deployed, is_wanted: bool) -> Result<()> {
    let what = if is_wanted { "the node to be tainted" } else { "the node to be without our taint" };
    let waited = deployed.client().wait(what, &format!("/api/v1/nodes/{NAME}"), |node| {
        let taints = node.pointer("/spec/taints").and_then(Value::as_array).map(Vec::as_slice);
        let is_ours = |taint: &Value| taint.get("key").is_some_and(|key| key == "veer.dev/agent-not-ready");
        (taints.unwrap_or_default().iter().any(is_ours) == is_wanted).then_some(())
    });
    waited.with_context(|| deployed.log())
}

/// Another build, whose eBPF programs differ, by a rollout.
pub(crate) fn upgraded(deployed: &mut Deployed) -> Result<String> {
    let next = Manifests::read(&file("veer-next.yaml")?)?;
    let before = deployed.agent()?;
    let build = |deployed: &Deployed| -> Result<String> {
        let status = deployed.exec_json(&["veer", "status"])?;
        let build = status.pointer("/agent/build").and_then(|build| build.as_str());
        build.map(str::to_owned).with_context(|| format!("the agent has no build: {status:#}"))
    };
    let old = build(deployed)?;
    let carried = under_load(deployed, "upgrade", |deployed| {
        next.apply(deployed.client())?;
        deployed.wait_rolled_out()
    })?;
    let after = deployed.agent()?;
    ensure!(after.image != before.image && after.uid != before.uid, "{before:?} is {after:?}");
    let new = build(deployed)?;
    ensure!(old != new, "both builds are {old}");
    deployed.manifests = next;
    Ok(format!("{} to {}: {}", before.image, after.image, carried.told()))
}

/// Somebody deletes the pod; its controller makes another one.
pub(crate) fn pod_deleted(deployed: &mut Deployed) -> Result<String> {
    let before = deployed.agent()?;
    let carried = under_load(deployed, "deletion", |deployed| {
        deployed.client().delete(&format!("{AGENTS}/{}", before.pod))?;
        deployed.client().wait_gone(&format!("{AGENTS}/{}", before.pod))?;
        deployed.wait_rolled_out()
    })?;
    ensure!(deployed.agent()?.uid != before.uid, "it is the same pod");
    Ok(carried.told())
}

/// Pods of the mesh come up before the agent does, wait for it, and are redirected.
pub(crate) fn rebooted(deployed: &mut Deployed) -> Result<String> {
    let client = deployed.client().clone();
    let shapes = ["early", "bird"].map(|name| Shape::new(name, Sidecar::Native));
    let before = [shapes[0].run(&client)?, shapes[1].run(&client)?];
    let started = Instant::now();
    deployed.stage.node.reboot()?;
    let again = |pod| trouble::wait_again(&client, pod).with_context(|| deployed.log());
    let [one, other] = before.each_ref().map(again);
    let (one, other) = (one?, other?);
    let took = started.elapsed();
    deployed.stage.prove_redirected(&one, &other)?;
    deployed.stage.prove_redirected(&other, &one)?;
    one.delete(&client)?;
    other.delete(&client)?;
    deployed.stage.wait_nobody_enrolled()?;
    Ok(format!("two pods redirected again {} s after the boot", took.as_secs()))
}

/// The node has no agent, and its network was set up anew without it: pods start as if there were no mesh.
pub(crate) fn repaired(deployed: &mut Deployed) -> Result<String> {
    let client = deployed.client().clone();
    let member = Shape::new("member", Sidecar::Classic).run(&client)?;
    client.delete(DAEMON_SET)?;
    client.wait_gone(DAEMON_SET)?;
    no_agent(deployed)?;
    deployed.rewrite()?;
    let missed = ["missed", "too"].map(|name| Shape::new(name, Sidecar::Classic));
    let missed = [missed[0].run(&client)?, missed[1].run(&client)?];
    for pod in &missed {
        mesh::prove_left_alone(&mut deployed.stage, pod, &member)?;
    }
    let started = Instant::now();
    deployed.install()?;
    wait::until_ok("the pods to be repaired", LIMIT, || {
        let enrolled = deployed.stage.enrolled()?;
        ensure!(enrolled.len() == 3, "enrolled: {enrolled:?}");
        Ok::<_, anyhow::Error>(())
    })?;
    let took = started.elapsed();
    for pod in &missed {
        deployed.stage.prove_redirected(pod, &member)?;
        pod.delete(&client)?;
    }
    member.delete(&client)?;
    deployed.stage.wait_nobody_enrolled()?;
    Ok(format!("two pods, {:.1} s after the DaemonSet was there again", took.as_secs_f64()))
}

/// Waits until the node has no agent any more.
pub(super) fn no_agent(deployed: &Deployed) -> Result<()> {
    let limit = Duration::from_mins(1);
    let are_gone = || {
        let pods = deployed.client().get(AGENTS);
        pods.is_ok_and(|pods| pods.pointer("/items") == Some(&json!([])))
    };
    wait::until("the agent's pod to be gone", limit, are_gone)
}
