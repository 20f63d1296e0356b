//! A node of the cluster as the checks of the agent need it: a real agent that reads pods from a real API server, pods
//! that a test makes, and no kubelet: what it would do, the test does.

#![expect(clippy::indexing_slicing, reason = "a check that meets the unexpected fails, as a test does")]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use veer_common::cni::Attachment;
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::kube::control_plane::ControlPlane;
use veer_tests::launch::Launch;
use veer_tests::manifest::Manifest;
use veer_tests::mesh::{APP, INBOUND, Listeners, OUTBOUND, dial, dial_from_world};
use veer_tests::plugin::{Ended, Plugin};
use veer_tests::pod::{REMOTE_V4, TestPod, World};
use veer_tests::{scratch, wait};

/// The node's name.
pub(crate) const NODE: &str = "node-1";
/// The agent's user.
pub(crate) const USER: &str = "system:serviceaccount:veer-system:veer";
/// Where pods of tests are.
pub(crate) const PODS: &str = "/api/v1/namespaces/test/pods";
/// Their namespace.
pub(crate) const NAMESPACE: &str = "test";
const ACCOUNT: &str = "/api/v1/namespaces/veer-system/serviceaccounts/veer";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// A node with an agent.
pub(crate) struct Node {
    pub(crate) agent: Agent,
    pub(crate) world: World,
    pub(crate) cgroup: Cgroup,
    pub(crate) control_plane: ControlPlane,
    scratch: TempDir,
}

/// A pod at the API server and on the node.
pub(crate) struct Pod {
    pub(crate) on_node: TestPod,
    pub(crate) uid: String,
    /// Its Kubernetes namespace.
    pub(crate) namespace: String,
    listeners: Listeners,
}

impl Node {
    /// One whose agent has a service account with the rights that it needs, and no more.
    pub(crate) fn start(further: &[&str]) -> Result<Self> {
        let control_plane = ControlPlane::start()?;
        let scratch = scratch::directory()?;
        let client = control_plane.client();
        for namespace in ["test", "veer-system"] {
            client.create("/api/v1/namespaces", &json!({"metadata": {"name": namespace}}))?;
        }
        client.create(
            "/api/v1/nodes",
            &json!({"metadata": {"name": NODE}, "spec": {"taints": [{"key": "other", "effect": "NoSchedule"}]}}),
        )?;
        client.create(
            "/api/v1/namespaces/veer-system/serviceaccounts",
            &json!({"metadata": {"name": "veer"}}),
        )?;
        client.create(
            &format!("{RBAC}/clusterroles"),
            &json!({"metadata": {"name": "veer"}, "rules": rules(further)}),
        )?;
        client.create(
            &format!("{RBAC}/clusterrolebindings"),
            &json!({"metadata": {"name": "veer"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "veer"},
                "subjects": [{"kind": "ServiceAccount", "name": "veer", "namespace": "veer-system"}]}),
        )?;
        let kubeconfig = kubeconfig(&control_plane, &scratch)?;
        give_token(&control_plane, &scratch, &json!({"spec": {"expirationSeconds": 3600}}))?;
        let (cgroup, world) = (Cgroup::new()?, World::new()?);
        let mut arguments = vec![
            "--pods-from=kube".to_owned(),
            format!("--node-name={NODE}"),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--cni-cache={}", scratch.path().join("cni").display()),
        ];
        arguments.extend(further.iter().map(ToString::to_string));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let agent = Agent::start_with(&cgroup, Launch::new(), &arguments)?;
        Ok(Self { agent, world, cgroup, control_plane, scratch })
    }

    /// Gives the agent's account another token, in the place of the one before.
    pub(crate) fn give_token(&self, request: &Value) -> Result<()> {
        give_token(&self.control_plane, &self.scratch, request)
    }

    /// Gives the agent's account these rights alone; gives back those that it had.
    pub(crate) fn set_rules(&self, rules: &Value) -> Result<Value> {
        let (client, path) = (self.control_plane.client(), format!("{RBAC}/clusterroles/veer"));
        let before = client.get(&path)?["rules"].clone();
        client.patch(&path, &json!({"rules": rules}))?;
        Ok(before)
    }

    /// Makes a pod's netns, cgroup and listeners, which the API server does not know of.
    pub(crate) fn sandbox(&self, name: &str) -> Result<Pod> {
        let mut pod = self.silent_sandbox(name)?;
        pod.listen()?;
        Ok(pod)
    }

    /// The same without listeners.
    pub(crate) fn silent_sandbox(&self, name: &str) -> Result<Pod> {
        let on_node = TestPod::new(&self.world, &self.cgroup, name)?;
        let namespace = NAMESPACE.to_owned();
        Ok(Pod { on_node, uid: String::new(), namespace, listeners: Listeners::default() })
    }

    /// Makes a pod at the API server, on this node.
    pub(crate) fn create(&self, manifest: &Manifest) -> Result<String> {
        self.create_on(Some(NODE), manifest)
    }

    /// Makes a pod at the API server, on some node or on none yet; gives back its uid.
    pub(crate) fn create_on(&self, node: Option<&str>, manifest: &Manifest) -> Result<String> {
        let mut pod = manifest.to_json();
        pod["spec"]["nodeName"] = json!(node);
        let pods = format!("/api/v1/namespaces/{}/pods", manifest.namespace);
        let created = self.control_plane.client().create(&pods, &pod)?;
        let uid = created.pointer("/metadata/uid").and_then(Value::as_str);
        Ok(uid.context("a pod without a uid")?.to_owned())
    }

    /// Makes both.
    pub(crate) fn pod(&self, name: &str) -> Result<Pod> {
        let mut pod = self.sandbox(name)?;
        pod.uid = self.create(&pod.on_node.manifest())?;
        Ok(pod)
    }

    /// ADD, by the real plugin.
    pub(crate) fn add(&self, pod: &Pod) -> Result<Ended> {
        Plugin::new(&self.agent.run_dir())?.run("ADD", &pod.attachment(), pod.on_node.v4())
    }

    /// ADD, which is to be done.
    pub(crate) fn enrol(&self, pod: &Pod) -> Result<()> {
        match self.add(pod)? {
            Ended::Done(_) => Ok(()),
            Ended::Refused(error) => Err(error).context("ADD"),
        }
    }

    /// Where connections of the pod and to the pod end.
    pub(crate) fn ends(&self, pod: &Pod) -> Result<(&'static str, &'static str)> {
        let remote = SocketAddr::new(IpAddr::V4(REMOTE_V4), 80);
        let mut outside = Listeners::default();
        outside.add_in_world("outside", &self.world, (IpAddr::from([0, 0, 0, 0]), remote.port()))?;
        let outbound = if let Ok((outbound, ..)) = dial(pod.on_node.app(), remote, &pod.listeners) {
            outbound.at
        } else {
            outside.accept()?.0.at
        };
        let (inbound, ..) = dial_from_world(&self.world, (pod.on_node.v4(), APP), &pod.listeners)?;
        Ok((outbound, inbound.at))
    }

    /// Wants the pod's connections to go through its proxy, both ways.
    pub(crate) fn wants_captured(&self, pod: &Pod) -> Result<()> {
        let ends = self.ends(pod)?;
        ensure!(ends == ("outbound", "inbound"), "connections of {} end at {ends:?}", pod.on_node.name());
        Ok(())
    }

    /// What the agent says of its source.
    pub(crate) fn health(&self) -> Result<Value> {
        let status = self.agent.json(&["status"])?;
        status.pointer("/agent/source").cloned().context("the status tells nothing of the source")
    }

    /// Waits until the agent says that of its source.
    pub(crate) fn wait_health(&self, key: &str, value: &Value) -> Result<()> {
        let is_so = || self.health().is_ok_and(|health| health[key] == *value);
        let waited =
            wait::until(&format!("the source's {key} to be {value}"), veer_tests::kube::client::LIMIT, is_so);
        waited.with_context(|| format!("{:?}; the agent's log:\n{}", self.health(), self.agent.log()))
    }

    /// How many requests of this form the agent has sent.
    pub(crate) fn requests(&self, form: &str) -> Result<usize> {
        let requests = self.control_plane.requests_of(USER)?;
        Ok(requests.iter().filter(|request| request.starts_with(form)).count())
    }
}

impl Pod {
    /// Has its proxy and its app listen.
    pub(crate) fn listen(&mut self) -> Result<()> {
        let (any, listeners) = (IpAddr::from([0, 0, 0, 0]), &mut self.listeners);
        listeners.add("outbound", self.on_node.proxy(), (any, OUTBOUND))?;
        listeners.add("inbound", self.on_node.proxy(), (any, INBOUND))?;
        listeners.add("app", self.on_node.app(), (any, APP))
    }

    /// How a runtime names its attachment.
    pub(crate) fn attachment(&self) -> Attachment {
        let mut attachment = self.on_node.attachment();
        if let Some(pod) = &mut attachment.pod {
            pod.namespace.clone_from(&self.namespace);
            pod.uid = (!self.uid.is_empty()).then(|| self.uid.clone()).or(pod.uid.take());
        }
        attachment
    }
}

/// All that an agent with `--node-taint` needs, and one with these flags.
fn rules(further: &[&str]) -> Value {
    let mut rules = vec![
        json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}),
        json!({"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]}),
        json!({"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]}),
        json!({"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"]}),
    ];
    // As in the chart: who has sidecars alone has no right to them.
    if further.iter().any(|flag| flag.starts_with("--ztunnel-socket=")) {
        rules.push(json!({"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]}));
        rules
            .push(json!({"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "list", "watch"]}));
    }
    Value::Array(rules)
}

fn token_file(scratch: &TempDir) -> PathBuf {
    scratch.path().join("token")
}

fn kubeconfig(control_plane: &ControlPlane, scratch: &TempDir) -> Result<PathBuf> {
    let authority = control_plane.authority().certificate();
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": control_plane.url(), "certificate-authority": authority}}],
        "users": [{"name": "test", "user": {"tokenFile": token_file(scratch)}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    let path = scratch.path().join("agent.kubeconfig");
    fs::write(&path, config.to_string()).context("write the agent's kubeconfig")?;
    Ok(path)
}

fn give_token(control_plane: &ControlPlane, scratch: &TempDir, request: &Value) -> Result<()> {
    let answer = control_plane.client().create(&format!("{ACCOUNT}/token"), request)?;
    let token = answer.pointer("/status/token").and_then(Value::as_str).context("no token")?;
    let draft = scratch.path().join(".token.draft");
    fs::write(&draft, token).context("write the token")?;
    fs::rename(&draft, token_file(scratch)).context("put the token in its place")
}
