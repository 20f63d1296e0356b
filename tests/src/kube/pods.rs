//! Pods as the injector leaves them, with images that exist: what a test creates through the API server.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::client::Client;
use super::node::{IMAGE, PROXY_IMAGE};
use crate::envoy;

/// Where every app listens.
pub const PORT: u16 = 8080;
/// Where the proxy writes its access log, in a volume that the node's directory shows.
const LOGS: &str = "/var/log/proxy";
const STATUS: &str = "sidecar.istio.io/status";

/// What a pod has beside its app.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sidecar {
    /// Nothing.
    None,
    /// A container like any other.
    Classic,
    /// An init container that stays.
    Native,
    /// A container that has the proxy's name and user and does nothing: where pods are only counted.
    Idle,
    /// Alone and as a gateway: `proxy router`, without an app; it asks there.
    Router(SocketAddr),
}

/// A pod to be.
#[derive(Clone, Debug)]
pub struct Shape {
    namespace: String,
    name: String,
    sidecar: Sidecar,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    is_injected: bool,
}

/// A pod that runs.
#[derive(Clone, Debug)]
pub struct Running {
    /// Its path in the API.
    pub path: String,
    /// Its address.
    pub address: IpAddr,
    /// Its uid.
    pub uid: String,
}

impl Shape {
    /// A pod of namespace `default` with an app.
    pub fn new(name: &str, sidecar: Sidecar) -> Self {
        Self {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            sidecar,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            is_injected: sidecar != Sidecar::None,
        }
    }

    /// In another namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// With a label.
    #[must_use]
    pub fn with_label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// With an annotation.
    #[must_use]
    pub fn with_annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Without the injector's mark, though it has a proxy: as nobody but the mark says that it is in the mesh.
    #[must_use]
    pub const fn without_mark(mut self) -> Self {
        self.is_injected = false;
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path in the API.
    pub fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name)
    }

    /// Creates it, and waits for nothing.
    pub fn create(&self, client: &Client) -> Result<()> {
        client.create(&self.collection(), &self.to_json()).map(drop)
    }

    /// Creates it and waits until it is ready.
    pub fn run(&self, client: &Client) -> Result<Running> {
        self.create(client)?;
        self.wait_ready(client)
    }

    /// Waits until all of its containers are ready.
    pub fn wait_ready(&self, client: &Client) -> Result<Running> {
        let path = self.path();
        let what = format!("pod {} to be ready", self.name);
        let found = client.wait(&what, &path, |pod| {
            let conditions = pod.pointer("/status/conditions")?.as_array()?;
            conditions.iter().find(|one| one["type"] == "Ready" && one["status"] == "True")?;
            let address = pod.pointer("/status/podIP")?.as_str()?.parse().ok()?;
            Some((address, pod.pointer("/metadata/uid")?.as_str()?.to_owned()))
        });
        let (address, uid) = found.with_context(|| events(client, &self.namespace, &self.name))?;
        Ok(Running { path, address, uid })
    }

    fn collection(&self) -> String {
        format!("/api/v1/namespaces/{}/pods", self.namespace)
    }

    /// The Pod object.
    pub fn to_json(&self) -> Value {
        let (mut init_containers, mut containers) = (Vec::new(), Vec::new());
        match self.sidecar {
            Sidecar::None => {}
            Sidecar::Native => init_containers.push(proxy("sidecar", &sidecar(), Some("Always"))),
            Sidecar::Classic => containers.push(proxy("sidecar", &sidecar(), None)),
            Sidecar::Idle => containers.push(idle_proxy()),
            Sidecar::Router(upstream) => containers.push(proxy(
                "router",
                &envoy::gateway_configuration(&access_log(), PORT, upstream),
                None,
            )),
        }
        if !matches!(self.sidecar, Sidecar::Router(_) | Sidecar::Idle) {
            containers.push(app(&self.name));
        }
        let mut annotations = self.annotations.clone();
        if self.is_injected {
            annotations.insert(STATUS.to_owned(), r#"{"containers":["istio-proxy"]}"#.to_owned());
        }
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "labels": self.labels, "annotations": annotations},
            "spec": {
                "initContainers": init_containers, "containers": containers,
                "terminationGracePeriodSeconds": 0,
                "volumes": [{"name": "logs", "emptyDir": {}}],
            },
        })
    }
}

impl Running {
    /// Its proxy's access log, as the node's directory shows it.
    pub fn access_log(&self, node: &Path) -> Result<Vec<envoy::Entry>> {
        let volumes: PathBuf =
            ["kubelet/pods", &self.uid, "volumes/kubernetes.io~empty-dir/logs"].iter().collect();
        envoy::read_access_log(&node.join(volumes).join("access.log"))
    }

    /// Deletes it and waits until it is gone.
    pub fn delete(&self, client: &Client) -> Result<()> {
        client.delete(&self.path)?;
        client.wait_gone(&self.path)
    }
}

/// What became of a pod, as `kubectl describe` shows it.
pub fn events(client: &Client, namespace: &str, name: &str) -> String {
    let path = format!("/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name={name}");
    let Ok(events) = client.get(&path) else { return "its events cannot be read".to_owned() };
    let items = events.get("items").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let lines = items.iter().map(|event| format!("{}: {}", event["reason"], event["message"]));
    format!("its events:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

fn app(name: &str) -> Value {
    json!({
        "name": "app", "image": IMAGE, "imagePullPolicy": "Never",
        "command": ["/echo-app", "--name", name],
        "securityContext": unprivileged(1000),
        // By kubelet, from outside of the pod: where there is a sidecar, through it.
        "readinessProbe": {"httpGet": {"path": "/ready", "port": PORT}, "periodSeconds": 1},
    })
}

fn idle_proxy() -> Value {
    json!({
        "name": "istio-proxy", "image": IMAGE, "imagePullPolicy": "Never",
        "command": ["/pause"], "args": ["proxy", "sidecar"], "securityContext": unprivileged(1337),
    })
}

fn access_log() -> PathBuf {
    Path::new(LOGS).join("access.log")
}

fn sidecar() -> Value {
    envoy::configuration(&access_log(), &[PORT])
}

/// An Envoy without any privilege, as a plain proxy of the injector's has none where no istio-init is.
fn proxy(kind: &str, configuration: &Value, restart: Option<&str>) -> Value {
    let arguments = [
        "proxy",
        kind,
        "--config-yaml",
        &configuration.to_string(),
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--file-flush-interval-msec",
        "100",
        "--log-level",
        "warning",
    ]
    .map(str::to_owned);
    let (is_native, is_gateway) = (restart.is_some(), kind == "router");
    let reached =
        |port: u16| json!({"tcpSocket": {"port": port}, "periodSeconds": 1, "failureThreshold": 60});
    json!({
        "name": "istio-proxy", "image": PROXY_IMAGE, "imagePullPolicy": "Never", "args": arguments,
        "securityContext": unprivileged(1337),
        "volumeMounts": [{"name": "logs", "mountPath": LOGS}],
        "restartPolicy": restart,
        "readinessProbe": is_gateway.then(|| reached(PORT)),
        // Apps start once it is there, as Istio's probe has it.
        "startupProbe": is_native.then(|| reached(15006)),
    })
}

fn unprivileged(uid: u32) -> Value {
    json!({
        "runAsUser": uid, "runAsGroup": uid, "runAsNonRoot": true, "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
    })
}
