//! The control plane itself: what the other checks stand on.

use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use veer_tests::kube::client::Client;
use veer_tests::kube::control_plane::ControlPlane;
use veer_tests::netns::NetNs;
use veer_tests::veth::{End, pair};

/// What was created before is there afterwards, and requests in between fail instead of hanging.
pub(crate) fn outage() -> Result<String> {
    let mut control_plane = ControlPlane::start()?;
    let settings = "/api/v1/namespaces/default/configmaps";
    let object = json!({"metadata": {"name": "kept"}, "data": {"key": "value"}});
    control_plane.client().create(settings, &object)?;
    control_plane.stop_api_server()?;
    let refused = control_plane.client().get("/api/v1/namespaces/default");
    ensure!(refused.is_err(), "an API server that was killed answered {refused:?}");
    let started = Instant::now();
    control_plane.start_api_server()?;
    let took = started.elapsed();
    let found = control_plane.client().get(&format!("{settings}/kept"))?;
    ensure!(found.pointer("/data/key") == Some(&json!("value")), "found {found}");
    Ok(format!("back after {:.1} s", took.as_secs_f64()))
}

/// Nobody may anything, a role later something.
pub(crate) fn rights() -> Result<String> {
    let control_plane = ControlPlane::start()?;
    let kubeconfig = control_plane.kubeconfig_of("somebody", "somebody", None)?;
    let somebody = Client::new(&kubeconfig, None)?;
    let refused = somebody.get("/api/v1/pods").err().context("somebody without a role may list pods")?;
    ensure!(refused.to_string().contains("403"), "{refused:#}");
    let role = json!({"metadata": {"name": "pods"},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]});
    let binding = json!({"metadata": {"name": "pods"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "pods"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "somebody"}]});
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    control_plane.client().create(&format!("{rbac}/clusterroles"), &role)?;
    control_plane.client().create(&format!("{rbac}/clusterrolebindings"), &binding)?;
    somebody.wait("a role to be known", "/api/v1/pods", |_pods| Some(()))?;
    Ok("403, then a list".to_owned())
}

/// A Deployment becomes a pod that waits for a node.
pub(crate) fn controllers() -> Result<String> {
    let (node, world) = (NetNs::new()?, NetNs::new()?);
    pair(
        End { netns: &node, name: "eth0", addresses: &["10.79.0.2/24"] },
        End { netns: &world, name: "node", addresses: &["10.79.0.1/24"] },
    )?;
    let started = Instant::now();
    let control_plane = ControlPlane::start_in(&node, Ipv4Addr::new(10, 79, 0, 2))?;
    let took = started.elapsed();
    let template = json!({"metadata": {"labels": {"app": "a"}},
        "spec": {"containers": [{"name": "a", "image": "localhost/a:1"}]}});
    let deployment = json!({"metadata": {"name": "a"}, "spec": {
        "selector": {"matchLabels": {"app": "a"}}, "template": template}});
    let client = control_plane.client();
    client.create("/apis/apps/v1/namespaces/default/deployments", &deployment)?;
    client.wait("a pod that no node takes", "/api/v1/namespaces/default/pods", |pods| {
        let conditions = pods.pointer("/items/0/status/conditions")?.as_array()?;
        conditions.iter().any(|condition| condition["reason"] == "Unschedulable").then_some(())
    })?;
    Ok(format!("ready after {:.1} s", took.as_secs_f64()))
}
