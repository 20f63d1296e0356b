//! Namespaces from the API server: whose pods are ztunnel's because of a label of theirs, from the first pod on, through
//! outages, and while they run.

#![expect(clippy::indexing_slicing, reason = "a check that meets the unexpected fails, as a test does")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use veer_tests::ambient::Told;
use veer_tests::cni::PluginError;
use veer_tests::manifest::Manifest;
use veer_tests::plugin::{Ended, Plugin};
use veer_tests::{scratch, wait};

use crate::node::{NAMESPACE, Node, Pod};
use crate::told::condition_saying;

/// Istio's label.
const MODE: &str = "istio.io/dataplane-mode";
/// How soon a pod follows a label: news of pods are gathered for a second, and a pod that leaves is given another one.
const SOON: Duration = Duration::from_secs(20);

/// A node of ambient mode: the agent tells somebody who is content with everything.
struct Ambient {
    node: Node,
    _told: Told,
    _directory: TempDir,
}

impl Ambient {
    fn start() -> Result<Self> {
        let directory = scratch::directory()?;
        let socket = directory.path().join("ztunnel.sock");
        // Nothing is found by a full pass here, but by what the API server tells.
        let flags = [&format!("--ztunnel-socket={}", socket.display()), "--reconcile-interval=3600"];
        let node = Node::start(&flags)?;
        let ambient = Self { node, _told: Told::start(&socket), _directory: directory };
        ambient.node.wait_health("state", &json!("synced"))?;
        Ok(ambient)
    }

    /// Labels a namespace, or takes the label away.
    fn label(&self, namespace: &str, mode: Option<&str>) -> Result<()> {
        let labels = json!({"metadata": {"labels": {(MODE): mode}}});
        self.node.control_plane.client().patch(&format!("/api/v1/namespaces/{namespace}"), &labels).map(drop)
    }

    /// Makes a namespace with the label.
    fn namespace(&self, name: &str) -> Result<()> {
        let namespace = json!({"metadata": {"name": name, "labels": {(MODE): "ambient"}}});
        self.node.control_plane.client().create("/api/v1/namespaces", &namespace).map(drop)
    }

    /// Makes a pod without a sidecar and without a label.
    fn pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        let mut pod = self.node.silent_sandbox(name)?;
        self.create(&mut pod, namespace)?;
        Ok(pod)
    }

    /// The same of a sandbox that is there.
    fn create(&self, pod: &mut Pod, namespace: &str) -> Result<()> {
        let mut manifest = pod.on_node.manifest().without_sidecar();
        namespace.clone_into(&mut manifest.namespace);
        pod.uid = self.node.create(&manifest)?;
        namespace.clone_into(&mut pod.namespace);
        Ok(())
    }

    /// A pod that runs, as the kubelet tells of it; its ADD has been missed.
    fn running(&self, manifest: &Manifest) -> Result<Pod> {
        let uid = self.node.create(manifest)?;
        let mut pod = self.node.silent_sandbox(&format!("pod{uid}"))?;
        pod.uid = uid;
        self.runs(&manifest.name, &pod)?;
        Ok(pod)
    }

    /// Tells that a pod runs, as its kubelet does.
    fn runs(&self, name: &str, pod: &Pod) -> Result<()> {
        let status = json!({"status": {"phase": "Running", "podIP": pod.on_node.v4().to_string()}});
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}/status");
        self.node.control_plane.client().patch(&path, &status).map(drop)
    }

    /// Who drives a pod; `None` if it is not enrolled.
    fn driver(&self, namespace: &str, name: &str) -> Option<Value> {
        let pods = self.node.agent.json(&["pods"]).ok()?;
        let is_it = |pod: &&Value| pod["namespace"] == namespace && pod["name"] == name;
        pods.as_array()?.iter().find(is_it).map(|pod| pod["driver"].clone())
    }

    fn wait_driver(&self, name: &str, wanted: Option<&str>) -> Result<Duration> {
        let started = Instant::now();
        let wanted_value = wanted.map(|driver| json!(driver));
        let is_so = || self.driver(NAMESPACE, name) == wanted_value;
        let waited = wait::until(&format!("{name} to be driven by {wanted:?}"), SOON, is_so);
        waited.with_context(|| self.node.agent.log())?;
        Ok(started.elapsed())
    }

    /// Waits until ztunnel's standing is on a pod, and everything that was told of pods up to there has been looked at: what
    /// moves it then is its namespace.
    fn wait_quiet(&self, name: &str, standing: Option<&str>, marker: &str) -> Result<Pod> {
        let client = self.node.control_plane.client();
        let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
        client.wait("ztunnel's standing on the pod", &format!("{pods}/{name}"), |pod| {
            let told = pod["metadata"]["annotations"]["ambient.istio.io/redirection"].as_str();
            (told == standing).then_some(())
        })?;
        let later = self.running(&Manifest::new(NAMESPACE, marker))?;
        self.wait_driver(marker, Some("sidecar"))?;
        Ok(later)
    }

    fn wants_ztunnel(&self, namespace: &str, name: &str) -> Result<()> {
        let driver = self.driver(namespace, name);
        ensure!(
            driver == Some(json!("ztunnel")),
            "{namespace}/{name}: {driver:?}; {}",
            self.node.agent.log()
        );
        Ok(())
    }

    fn refused(&self, pod: &Pod) -> Result<PluginError> {
        match self.node.add(pod)? {
            Ended::Refused(error) => Ok(error),
            Ended::Done(_) => bail!("ADD of {} was done", pod.on_node.name()),
        }
    }

    fn of_namespaces(&self) -> Result<(usize, usize)> {
        Ok((self.node.requests("list namespaces")?, self.node.requests("get namespaces")?))
    }
}

/// Namespace, pod and ADD one right after the other: nobody of them is passed, and nobody is asked.
pub(crate) fn first_pods() -> Result<String> {
    const COUNT: usize = 20;
    let ambient = Ambient::start()?;
    let names: Vec<String> = (0..COUNT).map(|number| format!("fresh-{number}")).collect();
    // Sandboxes take a while, and are there before.
    let sandboxes: Result<Vec<Pod>> = names.iter().map(|name| ambient.node.silent_sandbox(name)).collect();
    let mut took = Duration::ZERO;
    let mut pods = sandboxes?;
    for (name, pod) in names.iter().zip(&mut pods) {
        ambient.namespace(name)?;
        ambient.create(pod, name)?;
        let started = Instant::now();
        ambient.node.enrol(pod)?;
        took = took.max(started.elapsed());
        ambient.wants_ztunnel(name, name)?;
    }
    // An ADD that is there before its pod and namespace are.
    let mut late = ambient.node.silent_sandbox("late")?;
    "late".clone_into(&mut late.namespace);
    let plugin = Plugin::new(&ambient.node.agent.run_dir())?;
    let adding = plugin.start("ADD", &late.attachment(), late.on_node.v4())?;
    let waits = || ambient.node.agent.log().contains("waits for its pod");
    wait::until("the agent to wait for the pod", wait::LIMIT, waits)?;
    ambient.namespace("late")?;
    ambient.create(&mut late, "late")?;
    ensure!(matches!(adding.wait()?, Ended::Done(_)), "a pod that came while ADD waited was refused");
    ambient.wants_ztunnel("late", "late")?;
    let (asked, requests) = (ambient.node.requests("get pods")?, ambient.of_namespaces()?);
    ensure!((asked, requests) == (0, (1, 0)), "{asked} pods, {requests:?} namespaces listed and asked for");
    Ok(format!("{COUNT} namespaces: 1 list, 1 watch, no request; ADD {} ms at most", took.as_millis()))
}

/// A pod that runs comes in with its namespace's label and goes with it; one that says `none` stays out, and one with a
/// sidecar what it is.
pub(crate) fn labelled_later() -> Result<String> {
    let ambient = Ambient::start()?;
    let node = &ambient.node;
    node.agent.wait_settled()?;
    let plain = |name| Manifest::new(NAMESPACE, name).without_sidecar();
    let _runs = ambient.running(&plain("runs"))?;
    let _out = ambient.running(&plain("out"))?;
    let client = node.control_plane.client();
    let out = json!({"metadata": {"labels": {(MODE): "none"}}});
    client.patch(&format!("/api/v1/namespaces/{NAMESPACE}/pods/out"), &out)?;
    let sidecar = node.pod("sidecar")?;
    node.enrol(&sidecar)?;
    let mut took = Duration::ZERO;
    let mut markers = Vec::new();
    for turn in 0..2 {
        markers.push(ambient.wait_quiet("runs", None, &format!("before-in-{turn}"))?);
        ambient.label(NAMESPACE, Some("ambient"))?;
        took = took.max(ambient.wait_driver("runs", Some("ztunnel"))?);
        node.wants_captured(&sidecar)?;
        ensure!(ambient.driver(NAMESPACE, "sidecar") == Some(json!("sidecar")), "the sidecar's pod moved");
        ensure!(ambient.driver(NAMESPACE, "out").is_none(), "a pod that says none is in");
        markers.push(ambient.wait_quiet("runs", Some("enabled"), &format!("before-out-{turn}"))?);
        ambient.label(NAMESPACE, None)?;
        took = took.max(ambient.wait_driver("runs", None)?);
    }
    // What is of no interest changes nothing.
    let (asked, requests) = (node.requests("get pods")?, ambient.of_namespaces()?);
    ensure!((asked, requests) == (0, (1, 0)), "{asked} pods, {requests:?} namespaces listed and asked for");
    Ok(format!("in and out twice, {:.1} s at most", took.as_secs_f64()))
}

/// Without the right to watch them, a namespace is asked for, for the pods that depend on it; without any, such pods are
/// refused, and others are not.
pub(crate) fn unknown() -> Result<String> {
    let mut ambient = Ambient::start()?;
    ambient.label(NAMESPACE, Some("ambient"))?;
    let before = ambient.pod(NAMESPACE, "before")?;
    wait::until_ok("the label to be heard of", SOON, || {
        ambient.node.enrol(&before)?;
        ambient.wants_ztunnel(NAMESPACE, "before")
    })?;
    let all = ambient.node.set_rules(&json!([]))?;
    let but = |verbs: Option<Value>| {
        let rules = all.as_array().cloned().unwrap_or_default().into_iter().filter_map(|mut rule| {
            if rule["resources"] == json!(["namespaces"]) {
                rule["verbs"] = verbs.clone()?;
            }
            Some(rule)
        });
        Value::Array(rules.collect())
    };
    ambient.node.set_rules(&but(None))?;
    ambient.node.agent.stop()?;
    ambient.node.agent.start_again()?;
    let node = &ambient.node;
    let is_forbidden =
        || node.health().is_ok_and(|health| health["problem"].to_string().contains("namespaces"));
    wait::until("namespaces to be forbidden", Duration::from_mins(1), is_forbidden)?;
    ensure!(node.health()?["state"] == "starting", "{}", node.health()?);
    condition_saying(node, "False", "namespaces are not known yet")?;
    let sidecar = node.pod("sidecar")?;
    node.enrol(&sidecar)?;
    node.wants_captured(&sidecar)?;
    // The reconciler does not guess either: it has looked at the one when it has found the other.
    ambient.runs("before", &before)?;
    let _missed = ambient.running(&Manifest::new(NAMESPACE, "missed"))?;
    ambient.wait_driver("missed", Some("sidecar"))?;
    ambient.wants_ztunnel(NAMESPACE, "before")?;
    let pod = ambient.pod(NAMESPACE, "depends")?;
    let started = Instant::now();
    let refusal = ambient.refused(&pod)?;
    let took = started.elapsed();
    let names = refusal.msg.contains("for namespace test, by which pod test/depends is decided on: ");
    ensure!(refusal.code == 11 && names, "{refusal}");
    ensure!(took < Duration::from_secs(2), "an ADD waited {took:?} for a watch that fails");

    node.set_rules(&but(Some(json!(["get"]))))?;
    wait::until_ok("the right to ask for one", Duration::from_mins(1), || node.enrol(&pod))?;
    ambient.wants_ztunnel(NAMESPACE, "depends")?;
    let asked_before = ambient.of_namespaces()?.1;
    let other = ambient.pod(NAMESPACE, "other")?;
    node.enrol(&other)?;
    let asked = ambient.of_namespaces()?.1 - asked_before;
    ensure!(asked == 1, "{asked} requests for one namespace");

    node.set_rules(&all)?;
    node.wait_health("state", &json!("synced"))?;
    condition_saying(node, "True", "")?;
    Ok(format!("refused in {} ms, 1 request with the right to it: {}", took.as_millis(), refusal.msg))
}

/// While the API server is away, pods of namespaces that are known are enrolled by what they said last. An agent that starts
/// then moves nobody.
pub(crate) fn outage() -> Result<String> {
    let mut ambient = Ambient::start()?;
    ambient.label(NAMESPACE, Some("ambient"))?;
    let (before, during) = (ambient.pod(NAMESPACE, "before")?, ambient.pod(NAMESPACE, "during")?);
    let node = &mut ambient.node;
    node.wait_health("pods", &json!(2))?;
    node.enrol(&before)?;
    node.control_plane.stop_api_server()?;
    node.wait_health("state", &json!("degraded"))?;
    node.enrol(&during)?;
    node.agent.stop()?;
    node.agent.start_again()?;
    node.agent.wait_settled()?;
    for name in ["before", "during"] {
        ambient.wants_ztunnel(NAMESPACE, name)?;
    }
    let unknown = ambient.node.silent_sandbox("unknown")?;
    let refusal = ambient.refused(&unknown)?;
    ensure!(refusal.code == 11, "{refusal}");
    ambient.node.control_plane.start_api_server()?;
    ambient.node.wait_health("state", &json!("synced"))?;
    let after = ambient.pod(NAMESPACE, "after")?;
    ambient.node.enrol(&after)?;
    for name in ["before", "during", "after"] {
        ambient.wants_ztunnel(NAMESPACE, name)?;
    }
    Ok("2 pods enrolled all through it, and another one after it".to_owned())
}

/// A position that the server does not know any more: what was said meanwhile holds after a new list.
pub(crate) fn expiry() -> Result<String> {
    let mut ambient = Ambient::start()?;
    ambient.namespace("goes-out")?;
    let pod = ambient.pod("goes-out", "pod")?;
    ambient.node.enrol(&pod)?;
    ambient.wants_ztunnel("goes-out", "pod")?;
    let node = &mut ambient.node;
    let known = node.health()?["namespaces"]["known"].clone();
    node.agent.signal(Signal::SIGSTOP)?;
    // Twice: what the first one has sent waits for the agent, and of the second it hears nothing.
    node.control_plane.stop_api_server()?;
    node.control_plane.start_api_server()?;
    let client = node.control_plane.client();
    client.patch("/api/v1/namespaces/goes-out", &json!({"metadata": {"labels": {(MODE): null}}}))?;
    client
        .create("/api/v1/namespaces", &json!({"metadata": {"name": "new", "labels": {(MODE): "ambient"}}}))?;
    node.control_plane.stop_api_server()?;
    node.control_plane.start_api_server()?;
    node.agent.signal(Signal::SIGCONT)?;
    let more = json!(known.as_u64().context("no number of namespaces")? + 1);
    let is_known = || node.health().is_ok_and(|health| health["namespaces"]["known"] == more);
    wait::until("the new namespace to be known", Duration::from_mins(1), is_known)
        .with_context(|| format!("{:?}", node.health()))?;
    node.wait_health("state", &json!("synced"))?;
    let lists = node.health()?["namespaces"]["lists"].clone();
    ensure!(lists == 2, "{lists} lists");
    let is_out = || ambient.driver("goes-out", "pod").is_none();
    wait::until("the pod to be out", SOON, is_out).with_context(|| ambient.node.agent.log())?;
    let pod = ambient.pod("new", "pod-2")?;
    ambient.node.enrol(&pod)?;
    ambient.wants_ztunnel("new", "pod-2")?;
    Ok("listed once more, and went on".to_owned())
}
