//! veer goes, in the order that `deploy/README.md` tells, under pods that run.

use std::fs;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use veer_tests::kube::client::LIMIT;
use veer_tests::kube::pods::{PORT, Shape, Sidecar};
use veer_tests::wait;

use super::{Deployed, trouble};

/// What it ends with where there is nothing of veer.
const UNAVAILABLE: i32 = 69;
/// What it ends with while an agent runs.
const BUSY: i32 = 75;

/// Pods that run leave the mesh and go on; files are what their vendor wrote; pods can still be deleted.
pub(crate) fn in_order(deployed: &mut Deployed) -> Result<String> {
    let client = deployed.client().clone();
    let [member, other] = [("stays", Sidecar::Classic), ("as-well", Sidecar::None)];
    let member = Shape::new(member.0, member.1).run(&client)?;
    let other = Shape::new(other.0, other.1).run(&client)?;
    deployed.stage.prove_redirected(&member, &other)?;
    // Out of order it says who has to go first, and does nothing.
    for command in ["uninstall-cni", "uninstall"] {
        let output = node(deployed, &[command])?;
        ensure!(output.status.code() == Some(BUSY), "veer {command} beside an agent: {output:?}");
    }
    ensure!(deployed.is_chained(), "veer uninstall-cni did something in spite of the agent");
    // 1. `helm uninstall`, or `kubectl delete -f`.
    deployed.manifests.delete(&client)?;
    trouble::no_agent(deployed)?;
    deployed.stage.prove_redirected(&member, &other)?;
    // 2. and 3.
    succeeded(&node(deployed, &["uninstall-cni"])?)?;
    let now = fs::read(deployed.conflist()).context("read the conflist")?;
    ensure!(now == deployed.original, "the conflist is {}", String::from_utf8_lossy(&now));
    let plugin = deployed.stage.node.directory().join("bin/veer-cni");
    ensure!(plugin.exists(), "the plugin is gone, and the runtime may call it for pods that run");
    succeeded(&node(deployed, &["uninstall"])?)?;
    let mark = deployed.stage.mark();
    let echo = deployed.stage.ask_through(&member, other.address, PORT, &mark)?;
    ensure!(echo.peer.ip() == member.address, "the other app was reached by {}", echo.peer);
    let again = deployed.stage.mark();
    deployed.stage.ask(&member, &again)?;
    ensure!(!deployed.stage.has_entry(&member, &mark)?, "the proxy still sees the traffic");
    let left = node(deployed, &["status"])?;
    ensure!(left.status.code() == Some(UNAVAILABLE), "veer status still finds something: {left:?}");
    // Their DEL, and a pod that comes now.
    member.delete(&client)?;
    other.delete(&client)?;
    let after = Shape::new("afterwards", Sidecar::Classic).run(&client)?;
    after.delete(&client)?;
    // The API forgets a pod before the runtime has taken its network away.
    wait::until_ok("the plugin to be needed by nobody", LIMIT, || {
        let again = node(deployed, &["uninstall-cni"])?;
        succeeded(&again)?;
        ensure!(!plugin.exists(), "{}", String::from_utf8_lossy(&again.stdout));
        Ok::<_, anyhow::Error>(())
    })?;
    deployed.install()?;
    Ok("the conflist as it was, traffic direct, DEL works, and nothing is left".to_owned())
}

/// On the node, with the binary.
fn node(deployed: &Deployed, arguments: &[&str]) -> Result<Output> {
    let mut command = deployed.stage.command(arguments)?;
    command.output().with_context(|| format!("run veer {}", arguments.join(" ")))
}

fn succeeded(output: &Output) -> Result<()> {
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {errors}", output.status);
    Ok(())
}
