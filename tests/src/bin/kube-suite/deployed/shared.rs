//! Pods without a sidecar: those of the node's Envoy, a container beside the agent, and those of ambient mode.

use std::net::SocketAddr;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use veer_tests::http::{self, Headers};
use veer_tests::kube::client::LIMIT;
use veer_tests::kube::manifests::Manifests;
use veer_tests::kube::pods::{PORT, Running, Shape, Sidecar, events};
use veer_tests::prometheus;
use veer_tests::wait;
use veer_tests::ztunnel::Ztunnel;

use super::{AGENTS, Deployed, file, installed};

/// Where the agent tells of all proxies, on the node: the chart's `metrics.port`.
const METRICS: u16 = 15014;
/// What Istio's own programs read of a pod that ztunnel serves.
const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Setns into the pods' namespaces, `linux/capability.h`.
const CAP_SYS_ADMIN: u64 = 1 << 21;
/// Where the test's chart has `ztunnel.socketDir`, below the node's directory.
const ZTUNNEL: &str = "veer/ztunnel/ztunnel.sock";

/// A rollout brings Envoy; two pods without a sidecar talk through it, and again when it was killed.
pub(crate) fn by_the_nodes_envoy(deployed: &mut Deployed) -> Result<String> {
    share(deployed)?;
    let client = deployed.client().clone();
    let shape = |name| Shape::new(name, Sidecar::None).with_label("veer.dev/proxy", "node");
    let (one, other) = (shape("one").run(&client)?, shape("other").run(&client)?);
    for name in ["one", "other"] {
        let pod = deployed.exec_json(&["veer", "pods", &format!("default/{name}")])?;
        let (driver, state) = (pod.get("driver"), pod.pointer("/proxy/state"));
        ensure!((driver, state) == (Some(&json!("node")), Some(&json!("ready"))), "{pod:#}");
    }
    through_envoy(deployed, &one, &other)?;
    let seen = [requests(deployed, "outbound", "one")?, requests(deployed, "inbound", "other")?];
    // kubelet's probes come to an app through its proxy, as with a sidecar, and are counted.
    ensure!(seen[0] == Some(1.0) && seen[1] > Some(1.0), "Envoy has counted {seen:?}");
    installed::may_only(deployed.stage.node.process_of(&envoy(deployed)?)?, CAP_SYS_ADMIN)?;
    let again = after_a_kill(deployed, &one, &other)?;
    for pod in [one, other] {
        pod.delete(&client)?;
    }
    deployed.stage.wait_nobody_enrolled()?;
    Ok(format!(
        "both directions, counted by pod and with a filter of `proxy.config`; Envoy has CAP_SYS_ADMIN alone, and is back \
         {again} ms after SIGKILL"
    ))
}

/// A rollout of what has both.
fn share(deployed: &mut Deployed) -> Result<()> {
    deployed.manifests = Manifests::read(&file("veer-shared.yaml")?)?;
    deployed.install()?;
    deployed.wait_condition("True").map(drop)
}

/// With what Envoy adds, and without a process of the pod's that did it.
fn through_envoy(deployed: &mut Deployed, one: &Running, other: &Running) -> Result<()> {
    let mark = deployed.stage.mark();
    let echo = deployed.stage.ask_through(one, other.address, PORT, &mark)?;
    ensure!(echo.app == "other" && echo.headers.contains_key("x-forwarded-proto"), "{echo:?}");
    // The filter of the chart's `proxy.config`, which is in front of the second one.
    let filtered = echo.headers.get("x-served-for");
    ensure!(filtered.is_some_and(|pod| pod == "default/other"), "{echo:?}");
    // As Istio's inbound passthrough has it.
    ensure!(echo.peer.ip().to_string() == "127.0.0.6", "the app was reached by {}", echo.peer);
    Ok(())
}

/// How many requests Envoy has had of a pod, as the agent tells who scrapes it.
fn requests(deployed: &Deployed, direction: &str, pod: &str) -> Result<Option<f64>> {
    let from = SocketAddr::from((veer_tests::kube::node::ADDRESS, METRICS));
    let path = format!("/stats/prometheus?pod=default/{pod}");
    let response = deployed.stage.node.netns().run(|| http::get_from(from, &path, &Headers::new()))??;
    let text = String::from_utf8(response.body).context("metrics are text")?;
    let labels = [("veer_direction", direction), ("veer_namespace", "default"), ("veer_pod", pod)];
    let samples = prometheus::parse(&text)?;
    prometheus::value(&samples, "envoy_http_downstream_rq_total", &labels)
}

/// The id of Envoy's container.
fn envoy(deployed: &Deployed) -> Result<String> {
    let agent = deployed.agent()?;
    let pod = deployed.client().get(&format!("{AGENTS}/{}", agent.pod))?;
    let statuses = pod.pointer("/status/containerStatuses").and_then(Value::as_array).context("statuses")?;
    let proxy = statuses.iter().find(|status| status["name"] == "proxy").context("a container proxy")?;
    let id = proxy["containerID"].as_str().and_then(|id| id.strip_prefix("containerd://"));
    id.map(str::to_owned).with_context(|| format!("Envoy does not run: {proxy:#}"))
}

/// kubelet starts another one, which is told of the pods. How long that took, in milliseconds.
fn after_a_kill(deployed: &mut Deployed, one: &Running, other: &Running) -> Result<u128> {
    let before = envoy(deployed)?;
    let process = deployed.stage.node.process_of(&before)?;
    let agent = deployed.agent()?;
    let started = Instant::now();
    kill(Pid::from_raw(process.try_into()?), Signal::SIGKILL).context("kill Envoy")?;
    wait::until("another Envoy to run", LIMIT, || envoy(deployed).is_ok_and(|now| now != before))?;
    wait::until_ok("the pods to talk again", LIMIT, || through_envoy(deployed, one, other))?;
    let took = started.elapsed().as_millis();
    ensure!(deployed.agent()? == agent, "the agent has been started anew as well");
    Ok(took)
}

/// ztunnel's part is played; the pod, its label, the annotation and the right to write it are real.
pub(crate) fn by_ztunnel(deployed: &mut Deployed) -> Result<String> {
    share(deployed)?;
    let client = deployed.client().clone();
    let mut ztunnel = Ztunnel::start(&deployed.stage.node.directory().join(ZTUNNEL))?;
    ztunnel.obey_to_the_snapshot()?;
    let told = thread::spawn(move || ztunnel.obey().map(|said| (ztunnel, said)));
    let shape = Shape::new("in-ambient", Sidecar::None).with_label("istio.io/dataplane-mode", "ambient");
    // kubelet's probe of the app comes from the node, and past ztunnel.
    let pod = shape.run(&client)?;
    let told = told.join().map_err(|_panicked| anyhow!("ztunnel's part panicked"))?;
    let (mut ztunnel, said) = told?;
    ensure!(said == format!("add {}", pod.uid), "ztunnel was told {said}");
    let annotated = |pod: &Value| {
        let annotations = pod.pointer("/metadata/annotations")?;
        (annotations.get(REDIRECTION)? == "enabled").then_some(())
    };
    client.wait("the annotation", &pod.path, annotated).with_context(|| deployed.log())?;
    let view = deployed.exec_json(&["veer", "pods", "default/in-ambient"])?;
    ensure!(view.get("driver") == Some(&json!("ztunnel")), "{view:#}");
    ensure!(events(&client, "default", "in-ambient").contains("VeerEnrolled"), "no Event");
    client.delete(&pod.path)?;
    let said = ztunnel.obey()?;
    ensure!(said == format!("del {}", pod.uid), "ztunnel was told {said}");
    client.wait_gone(&pod.path)?;
    deployed.stage.wait_nobody_enrolled()?;
    Ok("told to ztunnel before it ran, annotated, probed by kubelet, and taken back".to_owned())
}
