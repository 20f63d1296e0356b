//! The commands, as `docs/troubleshooting.md` has them: by exec in the pod of the node's agent.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use veer_tests::kube::pods::{PORT, Shape, Sidecar};

use super::Deployed;

/// All that only look.
pub(crate) fn by_exec(deployed: &mut Deployed) -> Result<String> {
    let client = deployed.client().clone();
    let pod = Shape::new("asked-for", Sidecar::Classic).run(&client)?;
    let peer = Shape::new("peer", Sidecar::None).run(&client)?;
    deployed.stage.prove_redirected(&pod, &peer)?;
    let status = deployed.exec_json(&["veer", "status"])?;
    ensure!(status.pointer("/agent/enrolled") == Some(&json!(1)), "{status:#}");
    ensure!(status.pointer("/agent/cni/phase") == Some(&json!("installed")), "{status:#}");
    let cgroup = status.pointer("/agent/cgroup").and_then(|path| path.as_str());
    ensure!(cgroup == deployed.stage.node.pods_cgroup().to_str(), "attached to {cgroup:?}");
    let pods = deployed.exec_json(&["veer", "pods", "default/asked-for"])?;
    ensure!(pods.to_string().contains("asked-for"), "{pods:#}");
    let to = format!("{}:{PORT}", peer.address);
    let explained = deployed.exec_json(&["veer", "explain", "default/asked-for", "--to", &to])?;
    ensure!(explained.to_string().contains("15001"), "{explained:#}");
    for arguments in [
        &["veer", "status"][..],
        &["veer", "pods"],
        &["veer", "explain", "default/asked-for", "--to", &to],
        &["veer", "explain", "default/peer", "--to", &to],
    ] {
        let output = deployed.exec(arguments)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success() && !output.stdout.is_empty(),
            "{arguments:?}: {}: {errors}",
            output.status
        );
    }
    let seen = doctor(deployed)?;
    pod.delete(&client)?;
    peer.delete(&client)?;
    deployed.stage.wait_nobody_enrolled()?;
    Ok(format!("status, pods, explain; doctor: {seen}"))
}

/// It tries everything that the agent did; what it finds is told by its code.
fn doctor(deployed: &Deployed) -> Result<String> {
    let output = deployed.exec(&["veer", "doctor"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    let code = output.status.code().context("doctor was killed")?;
    ensure!(code == 0, "veer doctor ended with {code}:\n{text}{}", String::from_utf8_lossy(&output.stderr));
    text.lines().last().map(str::to_owned).context("doctor said nothing")
}
