//! Pods from the API server: what the agent knows, when it asks, and what an outage changes.

#![expect(clippy::indexing_slicing, reason = "a check that meets the unexpected fails, as a test does")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use veer_common::cni::Reply;
use veer_tests::cni::PluginError;
use veer_tests::manifest::Manifest;
use veer_tests::plugin::{Ended, Plugin};
use veer_tests::wait;

use crate::node::{NODE, Node, PODS, Pod};

/// The code of an error after which a runtime tries again.
const TRY_AGAIN: u32 = 11;

/// A pod of the watch is enrolled without a request for it, and its connections go through its proxy.
pub(crate) fn enrolment() -> Result<String> {
    let node = Node::start(&[])?;
    node.wait_health("state", &json!("synced"))?;
    let mut took = Duration::ZERO;
    for name in ["a", "b", "c"] {
        let pod = node.pod(name)?;
        let started = Instant::now();
        node.enrol(&pod)?;
        took = took.max(started.elapsed());
        node.wants_captured(&pod)?;
    }
    // On another node, and none of ours.
    node.create_on(Some("node-2"), &Manifest::new("test", "elsewhere"))?;
    node.wait_health("pods", &json!(3))?;
    let (asked, lists) = (node.requests("get pods")?, node.requests("list pods")?);
    ensure!((asked, lists) == (0, 1), "{asked} requests for a pod, {lists} lists");
    let of_namespaces = node.requests("list namespaces")? + node.requests("watch namespaces")?;
    ensure!(of_namespaces == 0, "an agent without a node's proxy asks for namespaces");
    Ok(format!("3 pods: 1 list, 1 watch, no request for a pod; ADD {} ms at most", took.as_millis()))
}

/// A pod that comes while ADD waits is not asked for; one that the watch does not have is asked for once.
pub(crate) fn unknown() -> Result<String> {
    let node = Node::start(&[])?;
    node.wait_health("state", &json!("synced"))?;
    let mut late = node.sandbox("late")?;
    let plugin = Plugin::new(&node.agent.run_dir())?;
    let adding = plugin.start("ADD", &late.attachment(), late.on_node.v4())?;
    let asks = || node.agent.log().contains("waits for its pod");
    wait::until("the agent to wait for the pod", wait::LIMIT, asks)?;
    late.uid = node.create(&late.on_node.manifest())?;
    ensure!(matches!(adding.wait()?, Ended::Done(_)), "a pod that came while ADD waited was refused");
    node.wants_captured(&late)?;
    let asked = node.requests("get pods")?;
    ensure!(asked == 0, "{asked} requests for a pod that the watch has told of");

    let mut unseen = node.sandbox("unseen")?;
    unseen.uid = node.create_on(None, &unseen.on_node.manifest())?;
    let started = Instant::now();
    node.enrol(&unseen)?;
    let took = started.elapsed();
    node.wants_captured(&unseen)?;
    let asked = node.requests("get pods unseen")?;
    ensure!(asked == 1, "{asked} requests for one pod");

    let nobody = node.sandbox("nobody")?;
    let refused = refused(&node, &nobody)?;
    ensure!(
        refused.code == TRY_AGAIN && refused.msg.contains("pod test/nobody is not known in kube"),
        "{refused}"
    );
    "another".clone_into(&mut unseen.uid);
    let refused = self::refused(&node, &unseen)?;
    ensure!(refused.msg.contains("at the API server and uid another at the runtime"), "{refused}");
    Ok(format!("0 requests, then 1; ADD took {:.1} s then", took.as_secs_f64()))
}

/// An outage: what is known is enrolled, what is not is refused, and it is seen when it begins and when it ends.
pub(crate) fn outage() -> Result<String> {
    let mut node = Node::start(&[])?;
    node.wait_health("state", &json!("synced"))?;
    let (before, during) = (node.pod("before")?, node.pod("during")?);
    node.wait_health("pods", &json!(2))?;
    node.enrol(&before)?;
    node.control_plane.stop_api_server()?;
    node.wait_health("state", &json!("degraded"))?;
    let text = String::from_utf8(node.agent.command(&["status"]).output()?.stdout)?;
    ensure!(text.contains("degraded for") && text.contains("2 pods are known: "), "{text}");
    ensure!(text.contains("Connection refused"), "{text}");
    node.enrol(&during)?;
    node.wants_captured(&during)?;
    let unknown = node.sandbox("unknown")?;
    let started = Instant::now();
    let refusal = refused(&node, &unknown)?;
    let took = started.elapsed();
    ensure!(refusal.code == TRY_AGAIN && refusal.msg.contains("the watch fails: "), "{refusal}");
    ensure!(took < Duration::from_secs(2), "an ADD waited {took:?} for a watch that fails");
    // One that starts meanwhile knows who is enrolled, and nobody else.
    node.agent.stop()?;
    node.agent.start_again()?;
    for pod in [&before, &during] {
        node.wants_captured(pod)?;
    }
    let status = node.agent.json(&["status"])?;
    ensure!(status["enrolled"] == 2 && status["agent"]["source"]["state"] == "starting", "{status:#}");

    node.control_plane.start_api_server()?;
    let back = Instant::now();
    node.wait_health("state", &json!("synced"))?;
    let back = back.elapsed();
    let after = node.pod("after")?;
    node.enrol(&after)?;
    for pod in [&before, &during, &after] {
        node.wants_captured(pod)?;
    }
    let asked = node.requests("get pods after")?;
    ensure!(asked == 0, "{asked} requests for a pod that the watch has told of");
    Ok(format!("2 pods enrolled all through it; synced {:.1} s after its end", back.as_secs_f64()))
}

/// An agent that starts in an outage: who is enrolled stays so and may go, the cluster's own pods pass, and of an unknown pod
/// the runtime hears who could not be asked for it.
pub(crate) fn start_in_outage() -> Result<String> {
    let mut node = Node::start(&["--exclude-namespaces=kube-system,calico-system"])?;
    node.wait_health("state", &json!("synced"))?;
    let pod = node.pod("before")?;
    node.enrol(&pod)?;
    node.control_plane.stop_api_server()?;
    node.agent.kill()?;
    node.agent.start_again()?;
    node.wants_captured(&pod)?;
    ensure!(
        node.agent.check(&pod.on_node)? == Reply::Done,
        "an enrolled pod is not well without an API server"
    );

    // What brings the API server back must not wait for it.
    let plugin = Plugin::new(&node.agent.run_dir())?;
    let started = Instant::now();
    for namespace in ["kube-system", "calico-system"] {
        let infrastructure = node.sandbox(namespace)?;
        let mut attachment = infrastructure.attachment();
        if let Some(reference) = &mut attachment.pod {
            namespace.clone_into(&mut reference.namespace);
        }
        let ended = plugin.run("ADD", &attachment, infrastructure.on_node.v4())?;
        ensure!(matches!(ended, Ended::Done(_)), "ADD of a pod of {namespace}: {ended:?}");
    }
    let passed = started.elapsed();
    ensure!(passed < Duration::from_secs(2), "pods of excluded namespaces waited {passed:?}");

    let mut unknown = node.sandbox("unknown")?;
    let started = Instant::now();
    let refusal = refused(&node, &unknown)?;
    let took = started.elapsed();
    let names_server =
        refusal.msg.contains(&node.control_plane.url()) && refusal.msg.contains("test/unknown");
    ensure!(refusal.code == TRY_AGAIN && names_server, "{refusal}");
    ensure!(took < Duration::from_secs(10), "an ADD waited {took:?}");

    node.agent.unenrol(&pod.on_node)?;
    let status = node.agent.json(&["status"])?;
    ensure!(status["enrolled"] == 0, "DEL without an API server left {status:#}");
    node.control_plane.start_api_server()?;
    unknown.uid = node.create(&unknown.on_node.manifest())?;
    node.wait_health("state", &json!("synced"))?;
    node.enrol(&unknown)?;
    node.wants_captured(&unknown)?;
    Ok(format!("passed in {} ms, refused in {} ms: {}", passed.as_millis(), took.as_millis(), refusal.msg))
}

/// A position that the server does not know any more: all is listed anew, and what is gone is forgotten.
pub(crate) fn expiry() -> Result<String> {
    let mut node = Node::start(&[])?;
    node.wait_health("state", &json!("synced"))?;
    node.create(&Manifest::new("test", "gone"))?;
    node.create(&Manifest::new("test", "stays"))?;
    node.wait_health("pods", &json!(2))?;
    node.agent.signal(Signal::SIGSTOP)?;
    // Twice: what the first one has sent waits for the agent, and of the second it hears nothing.
    node.control_plane.stop_api_server()?;
    node.control_plane.start_api_server()?;
    let client = node.control_plane.client();
    client.delete(&format!("{PODS}/gone?gracePeriodSeconds=0"))?;
    client.patch(&format!("{PODS}/stays"), &json!({"metadata": {"labels": {"a": "b"}}}))?;
    node.control_plane.stop_api_server()?;
    node.control_plane.start_api_server()?;
    node.agent.signal(Signal::SIGCONT)?;
    node.wait_health("pods", &json!(1))?;
    node.wait_health("state", &json!("synced"))?;
    let health = node.health()?;
    ensure!(health["lists"] == 2, "{health}");
    let pod = node.pod("new")?;
    node.enrol(&pod)?;
    node.wants_captured(&pod)?;
    Ok("listed once more, and went on".to_owned())
}

/// A token that is replaced: the agent reads the new one, also after the old one was refused.
pub(crate) fn rotation() -> Result<String> {
    let mut node = Node::start(&[])?;
    let secrets = "/api/v1/namespaces/veer-system/secrets";
    let client = node.control_plane.client();
    let bound = client.create(secrets, &json!({"metadata": {"name": "first"}}))?;
    let reference =
        json!({"kind": "Secret", "apiVersion": "v1", "name": "first", "uid": bound["metadata"]["uid"]});
    node.give_token(&json!({"spec": {"expirationSeconds": 3600, "boundObjectRef": reference}}))?;
    node.agent.stop()?;
    node.agent.start_again()?;
    node.wait_health("state", &json!("synced"))?;
    // The token is worth nothing any more, and the watch that was begun with it ends.
    node.control_plane.client().delete(&format!("{secrets}/first"))?;
    node.control_plane.stop_api_server()?;
    node.control_plane.start_api_server()?;
    let is_refused =
        || node.health().is_ok_and(|health| health["problem"].to_string().contains("Unauthorized"));
    wait::until("the old token to be refused", Duration::from_mins(1), is_refused)?;
    node.give_token(&json!({"spec": {"expirationSeconds": 3600}}))?;
    let given = Instant::now();
    node.wait_health("state", &json!("synced"))?;
    let took = given.elapsed();
    let pod = node.pod("pod")?;
    node.enrol(&pod)?;
    node.wants_captured(&pod)?;
    Ok(format!("synced {:.1} s after the new token was there", took.as_secs_f64()))
}

/// Pods that run and were missed are enrolled when the API server tells that they run, and a pod whose annotation was
/// wrong when it is right: not at the next full pass, which is minutes away.
pub(crate) fn missed() -> Result<String> {
    let node = Node::start(&["--reconcile-interval=3600"])?;
    node.wait_health("state", &json!("synced"))?;
    node.agent.wait_settled()?;
    let uid = node.create(&Manifest::new("test", "missed").with_traffic("excludeInboundPorts", "none"))?;
    let mut pod = node.sandbox(&format!("pod{uid}"))?;
    pod.uid = uid;
    let path = format!("{PODS}/missed");
    let status = json!({"status": {"phase": "Running", "podIP": pod.on_node.v4().to_string()}});
    node.control_plane.client().patch(&format!("{path}/status"), &status)?;
    let started = Instant::now();
    let is_told = || {
        let status = node.agent.json(&["status"]).unwrap_or_default();
        status["agent"]["unrepaired"].to_string().contains("excludeInboundPorts")
    };
    wait::until("the agent to say why the pod is not redirected", wait::LIMIT, is_told)?;
    let right = json!({"metadata": {"annotations": {"traffic.sidecar.istio.io/excludeInboundPorts": "9"}}});
    node.control_plane.client().patch(&path, &right)?;
    let is_enrolled = || node.agent.json(&["pods", "test/missed"]).is_ok_and(|pod| pod["policy"].is_object());
    wait::until("the pod to be enrolled", wait::LIMIT, is_enrolled)?;
    let took = started.elapsed();
    node.wants_captured(&pod)?;
    let asked = node.requests("get pods")?;
    ensure!(asked == 0, "{asked} requests for a pod that the watch has told of");
    Ok(format!("refused, then redirected while it ran; {:.1} s in all", took.as_secs_f64()))
}

/// A full node: memory, and requests.
pub(crate) fn full_node() -> Result<String> {
    const COUNT: usize = 250;
    let node = Node::start(&[])?;
    node.wait_health("state", &json!("synced"))?;
    let before = Memory::of(node.agent.process().pid())?;
    for number in 0..COUNT {
        node.create_on(Some(NODE), &large(number))?;
    }
    node.wait_health("pods", &json!(COUNT))?;
    let after = Memory::of(node.agent.process().pid())?;
    let pod = node.pod("one-more")?;
    node.enrol(&pod)?;
    let asked = node.requests("get pods")?;
    ensure!(asked == 0, "{asked} requests for a pod that the watch has told of");
    let mut node = node;
    node.agent.stop()?;
    node.agent.start_again()?;
    node.wait_health("pods", &json!(COUNT + 1))?;
    let listed = Memory::of(node.agent.process().pid())?;
    ensure!(listed.resident < before.resident + 16 * 1024, "{before} without pods, {listed} with {COUNT}");
    Ok(format!("{before} with none, {after} with {COUNT} watched, {listed} after a start that lists them"))
}

/// A pod as large as real ones are: with the whole of it once more in an annotation, and an environment.
fn large(number: usize) -> Manifest {
    let variables = (0..60).map(|variable| format!("VARIABLE_{variable}"));
    variables.fold(
        Manifest::new("test", &format!("large-{number}"))
            .with_annotation("kubectl.kubernetes.io/last-applied-configuration", &"x".repeat(6000)),
        |manifest, name| manifest.with_proxy_env(&name, "a value of some length, as they have"),
    )
}

/// What the agent has in memory, in kB.
struct Memory {
    /// Its own.
    own: u64,
    /// With its pages of the program.
    resident: u64,
}

impl Memory {
    fn of(pid: u32) -> Result<Self> {
        let status =
            std::fs::read_to_string(format!("/proc/{pid}/status")).context("read the agent's status")?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok())
                .with_context(|| format!("no {name}"))
        };
        Ok(Self { own: number("RssAnon")?, resident: number("VmRSS")? })
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mb = |kb: u64| kb.div_ceil(1024);
        write!(f, "{} MB ({} its own)", mb(self.resident), mb(self.own))
    }
}

fn refused(node: &Node, pod: &Pod) -> Result<PluginError> {
    match node.add(pod)? {
        Ended::Refused(error) => Ok(error),
        Ended::Done(_) => bail!("ADD of {} was done", pod.on_node.name()),
    }
}
