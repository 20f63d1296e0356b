//! Who is redirected, and who is left alone.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use serde_json::json;
use veer_tests::envoy::Direction;
use veer_tests::kube::node::OUTSIDE;
use veer_tests::kube::pods::{PORT, Running, Shape, Sidecar};

use crate::stage::Stage;

/// Both shapes of a sidecar, with real Envoys: to the pod and from it.
pub(crate) fn redirected(stage: &mut Stage) -> Result<String> {
    let client = stage.client().clone();
    let classic = Shape::new("classic", Sidecar::Classic).run(&client)?;
    let native = Shape::new("native", Sidecar::Native).run(&client)?;
    stage.prove_redirected(&classic, &native)?;
    stage.prove_redirected(&native, &classic)?;
    let mark = stage.mark();
    let echo = stage.ask(&native, &mark)?;
    ensure!(echo.peer.ip().to_string() == "127.0.0.6", "the app was reached by {}", echo.peer);
    classic.delete(&client)?;
    native.delete(&client)?;
    stage.wait_nobody_enrolled()?;
    Ok("classic and native, inbound and outbound; DEL leaves nothing".to_owned())
}

/// By the namespace, by the pod's label, by its annotation, and by the injector.
pub(crate) fn opted_out(stage: &mut Stage) -> Result<String> {
    let client = stage.client().clone();
    let member = Shape::new("member", Sidecar::Classic).run(&client)?;
    let inject = "sidecar.istio.io/inject";
    // kube-system is excluded by the plugin and by the agent.
    let account = json!({"metadata": {"name": "default"}});
    client.create("/api/v1/namespaces/kube-system/serviceaccounts", &account).ok();
    let shapes = [
        Shape::new("in-excluded-namespace", Sidecar::Classic).in_namespace("kube-system"),
        Shape::new("by-label", Sidecar::Classic).with_label(inject, "false"),
        Shape::new("by-annotation", Sidecar::Classic).with_annotation(inject, "false"),
        Shape::new("not-injected", Sidecar::Classic).without_mark(),
        Shape::new("without-proxy", Sidecar::None),
    ];
    for shape in &shapes {
        shape.create(&client)?;
    }
    for shape in &shapes {
        let pod = shape.wait_ready(&client)?;
        prove_left_alone(stage, &pod, &member)?;
        pod.delete(&client)?;
    }
    member.delete(&client)?;
    Ok(format!("{} ways", shapes.len()))
}

/// It talks to pods of the mesh, and its own proxy, if it has one, sees nothing of it.
pub(crate) fn prove_left_alone(stage: &mut Stage, pod: &Running, member: &Running) -> Result<()> {
    let mark = stage.mark();
    let echo = stage.ask_through(pod, member.address, PORT, &mark)?;
    ensure!(echo.app == "member", "{echo:?}");
    // The member's proxy writes its entry after the pod's would have written its own.
    let entry = stage.entry(member, Direction::Inbound, &mark)?;
    ensure!(entry.client.map(|client| client.ip()) == Some(pod.address), "{entry:?}");
    ensure!(!stage.has_entry(pod, &mark)?, "the proxy of {} saw its traffic", pod.path);
    Ok(())
}

/// An ingress gateway is no sidecar: what it listens on is reached as it is, and it knows who the client is.
pub(crate) fn gateway(stage: &mut Stage) -> Result<String> {
    let client = stage.client().clone();
    let member = Shape::new("behind", Sidecar::Classic).run(&client)?;
    let behind = SocketAddr::new(member.address, PORT);
    let gateway = Shape::new("gateway", Sidecar::Router(behind)).run(&client)?;
    let enrolled = stage.enrolled()?;
    ensure!(!enrolled.iter().any(|name| name.contains("gateway")), "enrolled: {enrolled:?}");
    let mark = stage.mark();
    let echo = stage.ask(&gateway, &mark)?;
    ensure!(echo.app == "behind", "{echo:?}");
    let entry = stage.entry(&gateway, Direction::Inbound, &mark)?;
    ensure!(entry.client.map(|client| client.ip()) == Some(OUTSIDE.into()), "{entry:?}");
    let entry = stage.entry(&member, Direction::Inbound, &mark)?;
    ensure!(entry.client.map(|client| client.ip()) == Some(gateway.address), "{entry:?}");
    gateway.delete(&client)?;
    member.delete(&client)?;
    Ok(format!("its client is {OUTSIDE}, the member's is {}", gateway.address))
}
