//! Other releases of containerd: what they ask the plugin, and what becomes of their node while nobody answers.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use veer_tests::kube::node::{NAME, Node};
use veer_tests::kube::pods::{Shape, Sidecar};
use veer_tests::kube::recorder;
use veer_tests::kube::runtime::Runtime;

use crate::deployed::{Deployed, trouble as outages};
use crate::stage::Stage;

/// containerd 1.7, of Debian 13.
pub(crate) fn trixie() -> Result<String> {
    let mut stage = Stage::set_on(Node::start_with(Runtime::of_suite("trixie", "1.0.0")?)?)?;
    let seen = life(&mut stage)?;
    ensure!(seen == ["ADD", "DEL"], "it asks for {seen:?}");
    Ok(seen.join(", "))
}

/// containerd 2.1, of the Debian after that, with a network of CNI 1.1: it asks for the plugins' status, and takes the node
/// out of service while one of them could not take a pod.
pub(crate) fn forky() -> Result<String> {
    let mut stage = Stage::set_on(Node::start_with(Runtime::of_suite("forky", "1.1.0")?)?)?;
    let seen = life(&mut stage)?;
    ensure!(seen == ["ADD", "DEL", "STATUS"], "it asks for {seen:?}");
    stage.kill_agent()?;
    let problem =
        stage.client().wait("the node not to be ready", &format!("/api/v1/nodes/{NAME}"), |node| {
            let conditions = node.pointer("/status/conditions")?.as_array()?.iter();
            let mut ready = conditions.filter(|one| one.get("type").is_some_and(|kind| kind == "Ready"));
            let ready = ready.find(|one| one.get("status").is_some_and(|status| status == "False"))?;
            ready.get("message")?.as_str().map(str::to_owned)
        })?;
    ensure!(problem.contains("veer"), "the node is not ready: {problem}");
    stage.start_agent()?;
    stage.node.wait_ready()?;
    life(&mut stage)?;
    Ok(format!("{}; without an agent the node is not ready", seen.join(", ")))
}

/// The same, with veer as a DaemonSet: the node is not ready because veer does not answer, and veer does not answer because
/// its pod is not there yet; pods of the host's network start all the same.
pub(crate) fn boot() -> Result<String> {
    let node = Node::start_with(Runtime::of_suite("forky", "1.1.0")?)?;
    let mut deployed = Deployed::set_on(node)?;
    outages::rebooted(&mut deployed).with_context(|| deployed.log())
}

/// Pods come, are redirected, and go. The verbs that the plugin has been called with so far.
fn life(stage: &mut Stage) -> Result<Vec<String>> {
    let client = stage.client().clone();
    let classic = Shape::new("classic", Sidecar::Classic).run(&client)?;
    let native = Shape::new("native", Sidecar::Native).run(&client)?;
    stage.prove_redirected(&classic, &native)?;
    stage.prove_redirected(&native, &classic)?;
    classic.delete(&client)?;
    native.delete(&client)?;
    stage.wait_nobody_enrolled()?;
    let verbs: BTreeSet<String> =
        recorder::records(&stage.node)?.iter().map(|record| record.verb().to_owned()).collect();
    Ok(verbs.into_iter().collect())
}
