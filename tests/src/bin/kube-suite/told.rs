//! What the agent writes to the API server: Events on pods, the node's condition and its taint.

#![expect(clippy::indexing_slicing, reason = "a check that meets the unexpected fails, as a test does")]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use veer_tests::launch::veer_binary;
use veer_tests::mesh::{Listeners, connect, tcp};
use veer_tests::plugin::Ended;
use veer_tests::pod::REMOTE_V4;
use veer_tests::{scratch, wait};

use crate::node::{NODE, Node, PODS, Pod};

const TAINT: &str = "veer.dev/agent-not-ready";

/// Each pod is told what has become of it where that matters, once, and nothing is written on it.
pub(crate) fn events() -> Result<String> {
    let node = Node::start(&[])?;
    node.wait_health("state", &json!("synced"))?;
    let enrolled = node.pod("enrolled")?;
    node.enrol(&enrolled)?;
    let plain =
        created(&node, "plain", |pod| pod.on_node.manifest().without_annotation("sidecar.istio.io/status"))?;
    node.enrol(&plain)?;
    let init = created(&node, "init", |pod| pod.on_node.manifest().with_init_container("istio-init"))?;
    node.enrol(&init)?;
    let wrong =
        created(&node, "wrong", |pod| pod.on_node.manifest().with_traffic("excludeInboundPorts", "none"))?;
    for _ in 0..5 {
        ensure!(matches!(node.add(&wrong)?, Ended::Refused(_)), "a wrong annotation was taken");
    }
    let told = |pod: &Pod| event(&node, pod);
    let event = told(&enrolled)?;
    ensure!(event["reason"] == "VeerEnrolled" && event["type"] == "Normal", "{event:#}");
    let event = told(&init)?;
    ensure!(
        event["reason"] == "VeerSkipped" && event["note"].to_string().contains("pilot.cni.enabled"),
        "{event:#}"
    );
    let event = told(&wrong)?;
    ensure!(
        event["reason"] == "VeerFailed" && event["note"].to_string().contains("excludeInboundPorts"),
        "{event:#}"
    );
    ensure!(event["reportingInstance"] == NODE, "{event:#}");
    let counts = || {
        node.agent.json(&["status"]).map(|status| status["agent"]["podEvents"].clone()).unwrap_or_default()
    };
    let is_all = || counts() == json!({"written": 3, "repeated": 4, "dropped": 0});
    wait::until("three events, and four that were said before", wait::LIMIT, is_all)
        .with_context(|| format!("{}", counts()))?;
    let all = node.control_plane.client().get("/apis/events.k8s.io/v1/namespaces/test/events")?;
    let count = all["items"].as_array().map_or(0, Vec::len);
    ensure!(count == 3, "{count} events: {all:#}");
    let pod = node.control_plane.client().get(&format!("{PODS}/enrolled"))?;
    let writers = pod.pointer("/metadata/managedFields").and_then(Value::as_array).map_or(0, Vec::len);
    ensure!(writers == 1, "somebody has written on the pod: {pod:#}");
    Ok("3 events for 4 pods and 8 ADDs; no write on a pod".to_owned())
}

/// Events that cannot be written now are written after the outage.
pub(crate) fn events_of_an_outage() -> Result<String> {
    let mut node = Node::start(&[])?;
    node.wait_health("state", &json!("synced"))?;
    let pod = node.pod("pod")?;
    node.wait_health("pods", &json!(1))?;
    node.control_plane.stop_api_server()?;
    node.enrol(&pod)?;
    node.control_plane.start_api_server()?;
    let event = event(&node, &pod)?;
    ensure!(event["reason"] == "VeerEnrolled", "{event:#}");
    Ok("written after it".to_owned())
}

/// What a pod sends past the mesh before its proxy listens is told of once, by whichever agent.
pub(crate) fn before_proxy() -> Result<String> {
    let mut node = Node::start(&["--before-proxy=direct", "--reconcile-interval=1"])?;
    node.wait_health("state", &json!("synced"))?;
    let mut early = node.silent_sandbox("early")?;
    early.uid = node.create(&early.on_node.manifest())?;
    node.enrol(&early)?;
    let (remote, any) = (SocketAddr::from((REMOTE_V4, 80)), IpAddr::from([0, 0, 0, 0]));
    let mut outside = Listeners::default();
    outside.add_in_world("outside", &node.world, (any, remote.port()))?;
    for _ in 0..3 {
        connect(&tcp(early.on_node.app(), remote)?, remote).context("dial before the proxy listens")?;
    }
    drop(outside);
    early.listen()?;
    node.wants_captured(&early)?;
    let of_it = |events: &Value| -> Vec<Value> {
        let is_its = |event: &&Value| {
            event.pointer("/regarding/uid").is_some_and(|uid| *uid == json!(early.uid))
                && event["reason"] == "VeerBeforeProxy"
        };
        events["items"].as_array().into_iter().flatten().filter(is_its).cloned().collect()
    };
    let events = "/apis/events.k8s.io/v1/namespaces/test/events";
    let found =
        node.control_plane.client().wait("the event", events, |events| of_it(events).first().cloned());
    let event = found.with_context(|| node.agent.log())?;
    let note = event["note"].to_string();
    ensure!(
        event["type"] == "Warning" && note.contains("3 connections of this pod went past the mesh"),
        "{event:#}"
    );
    // An agent that starts anew does not know that it was told, and the API server does.
    node.agent.stop()?;
    node.agent.start_again()?;
    let says = || node.agent.log().matches("went past the mesh").count() == 2;
    wait::until("the next agent to find it", wait::LIMIT, says).with_context(|| node.agent.log())?;
    let is_written = || {
        let status = node.agent.json(&["status"]).unwrap_or_default();
        status["agent"]["podEvents"]["written"] == 1
    };
    wait::until("the next agent to have told it", wait::LIMIT, is_written)
        .with_context(|| node.agent.log())?;
    let all = of_it(&node.control_plane.client().get(events)?);
    ensure!(all.len() == 1, "{all:#?}");
    Ok(note.chars().take(70).collect())
}

/// Condition and taint are what the agent is.
pub(crate) fn node_marks() -> Result<String> {
    let chain = Chain::new()?;
    let flags = chain.flags()?;
    let flags: Vec<&str> = ["--node-taint"].into_iter().chain(flags.iter().map(String::as_str)).collect();
    let mut node = Node::start(&flags)?;
    let ready = condition(&node, "True")?;
    ensure!(ready["reason"] == "PodsAreRedirected", "{ready:#}");
    wait_taints(&node, &["other"])?;
    chain_marks(&node, &chain)?;
    let ready = condition(&node, "True")?;
    // The right to list pods is taken away: new ones would not be known.
    let rules = json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"]},
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]}]);
    let right = node.set_rules(&rules)?;
    node.control_plane.stop_api_server()?;
    node.control_plane.start_api_server()?;
    let broken = condition_saying(&node, "False", "forbidden")?;
    ensure!(broken["reason"] == "PodsNotKnown", "{broken:#}");
    ensure!(broken["lastTransitionTime"] != ready["lastTransitionTime"], "{ready:#} {broken:#}");
    wait_taints(&node, &["other", TAINT])?;
    node.set_rules(&right)?;
    condition(&node, "True")?;
    wait_taints(&node, &["other"])?;
    // As the kubelet registers it.
    node.agent.stop()?;
    let taints = json!([{"key": TAINT, "value": "true", "effect": "NoExecute"}, {"key": "other", "effect": "NoSchedule"}]);
    node.control_plane.client().patch(&path(), &json!({"spec": {"taints": taints}}))?;
    node.agent.start_again()?;
    wait_taints(&node, &["other"])?;
    Ok("False and tainted with a broken chain, without its socket, without the right to list".to_owned())
}

/// The network that veer is in goes, and comes again; so does the socket that the plugin calls.
fn chain_marks(node: &Node, chain: &Chain) -> Result<()> {
    chain.break_off()?;
    let broken = condition_saying(node, "False", "cni: there is no network")?;
    ensure!(broken["reason"] == "NotInCniConfiguration", "{broken:#}");
    wait_taints(node, &["other", TAINT])?;
    chain.mend()?;
    condition(node, "True")?;
    wait_taints(node, &["other"])?;

    let (socket, aside) = (node.agent.run_dir().join("cni.sock"), node.agent.run_dir().join("aside.sock"));
    fs::rename(&socket, &aside).context("put the plugin's socket aside")?;
    let broken = condition(node, "False")?;
    ensure!(broken["reason"] == "PluginNotAnswered", "{broken:#}");
    wait_taints(node, &["other", TAINT])?;
    fs::rename(&aside, &socket).context("put the plugin's socket back")?;
    condition(node, "True")?;
    wait_taints(node, &["other"])
}

/// A runtime's CNI configuration.
struct Chain(TempDir);

impl Chain {
    const FILE: &str = "net.d/10-bridge.conflist";

    fn new() -> Result<Self> {
        let chain = Self(scratch::directory()?);
        for name in ["net.d", "bin"] {
            fs::create_dir(chain.0.path().join(name)).context("make a CNI directory")?;
        }
        chain.mend()?;
        Ok(chain)
    }

    fn flags(&self) -> Result<Vec<String>> {
        let path = |name: &str| self.0.path().join(name).display().to_string();
        Ok(vec![
            "--cni-install=auto".to_owned(),
            format!("--cni-conf-dir={}", path("net.d")),
            format!("--cni-bin-dir={}", path("bin")),
            format!("--cni-plugin={}", veer_binary("VEER_CNI_BIN", "veer-cni")?.display()),
        ])
    }

    /// As a vendor writes it.
    fn mend(&self) -> Result<()> {
        let list = json!({"name": "net", "cniVersion": "1.0.0", "plugins": [{"type": "bridge"}]});
        fs::write(self.0.path().join(Self::FILE), list.to_string()).context("write a network")
    }

    fn break_off(&self) -> Result<()> {
        fs::remove_file(self.0.path().join(Self::FILE)).context("remove the network")
    }
}

/// A pod with such a manifest, at the API server and on the node.
fn created(
    node: &Node,
    name: &str,
    manifest: impl FnOnce(&Pod) -> veer_tests::manifest::Manifest,
) -> Result<Pod> {
    let mut pod = node.sandbox(name)?;
    pod.uid = node.create(&manifest(&pod))?;
    Ok(pod)
}

/// The Event on a pod, once it is there.
fn event(node: &Node, pod: &Pod) -> Result<Value> {
    let what = format!("an event on {}", pod.on_node.name());
    let found =
        node.control_plane.client().wait(&what, "/apis/events.k8s.io/v1/namespaces/test/events", |events| {
            let is_its =
                |event: &&Value| event.pointer("/regarding/uid").is_some_and(|uid| *uid == json!(pod.uid));
            events["items"].as_array()?.iter().find(is_its).cloned()
        });
    found.with_context(|| node.agent.log())
}

fn path() -> String {
    format!("/api/v1/nodes/{NODE}")
}

/// The node's condition, once it has this status.
fn condition(node: &Node, status: &str) -> Result<Value> {
    condition_saying(node, status, "")
}

/// The same, once its message says this, too: what comes before it may be said first.
pub(crate) fn condition_saying(node: &Node, status: &str, text: &str) -> Result<Value> {
    let what = format!("the condition to be {status}, and to say {text:?}");
    let found = node.control_plane.client().wait(&what, &path(), |object| {
        let conditions = object.pointer("/status/conditions")?.as_array()?;
        let says = |one: &Value| one["message"].as_str().is_some_and(|message| message.contains(text));
        let is_it = |one: &&Value| one["type"] == "VeerReady" && one["status"] == status && says(one);
        conditions.iter().find(is_it).cloned()
    });
    found.with_context(|| node.agent.log())
}

fn wait_taints(node: &Node, wanted: &[&str]) -> Result<()> {
    let keys = || -> Option<Vec<String>> {
        let object = node.control_plane.client().get(&path()).ok()?;
        let taints = object.pointer("/spec/taints")?.as_array()?;
        let keys: Option<Vec<String>> =
            taints.iter().map(|taint| Some(taint["key"].as_str()?.to_owned())).collect();
        // The API server has its own for nodes that no kubelet speaks for.
        Some(keys?.into_iter().filter(|key| !key.starts_with("node.kubernetes.io/")).collect())
    };
    let are_so = || keys().is_some_and(|keys| keys == wanted);
    let waited = wait::until(&format!("taints {wanted:?}"), Duration::from_mins(1), are_so);
    waited.with_context(|| format!("{:?}; {}", keys(), node.agent.log()))
}
