//! The agent on a node of Kubernetes, as a process of the node: with the rights that the chart gives it, and no more.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;
use veer_common::cni::{Reply, Verb};

use super::control_plane::ControlPlane;
use super::node::{NAME, Node};
use crate::attachment;
use crate::launch::veer_binary;
use crate::process::Process;

/// Its service account, as the chart names it.
const ACCOUNT: &str = "system:serviceaccount:veer-system:veer";

/// Gives the agent's account its rights, and gives back its kubeconfig.
pub fn grant(control_plane: &ControlPlane) -> Result<PathBuf> {
    let kubeconfig = control_plane.kubeconfig_of("veer", ACCOUNT, Some("system:serviceaccounts"))?;
    let client = control_plane.client();
    let role = json!({"metadata": {"name": "veer"}, "rules": [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]}]});
    let binding = json!({"metadata": {"name": "veer"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "veer"},
        "subjects": [{"kind": "ServiceAccount", "name": "veer", "namespace": "veer-system"}]});
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    client.create(&format!("{rbac}/clusterroles"), &role)?;
    client.create(&format!("{rbac}/clusterrolebindings"), &binding)?;
    Ok(kubeconfig)
}

/// Starts it with further arguments, and waits until it answers the plugin.
pub fn start(node: &Node, kubeconfig: &Path, further: &[&str]) -> Result<Process> {
    let mut command = node.launch().command(veer_binary("VEER_BIN", "veer")?)?;
    command.args(["agent", "--pods-from=kube"]).arg(format!("--node-name={NAME}"));
    command.arg(format!("--kubeconfig={}", kubeconfig.display()));
    command.arg(format!("--cgroup={}", node.pods_cgroup().display())).args(further);
    let mut agent = Process::start("veer agent", command, &node.directory().join("agent.log"))?;
    let run_dir = node.directory().join("veer");
    let answers = || match attachment::ask(&run_dir, Verb::Status, None).context("ask the agent")? {
        Reply::Done => Ok(()),
        other @ (Reply::Passed { .. } | Reply::Failed { .. }) => bail!("STATUS answered {other:?}"),
    };
    agent.wait_ready(answers)?;
    Ok(agent)
}
