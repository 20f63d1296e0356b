//! Pods as the injector leaves them, with images that exist: what a test creates through the API server.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::client::Client;
use super::injector::{self, Kind, MARK, unprivileged};
use super::node::IMAGE;
use crate::envoy;

/// Where every app listens.
pub const PORT: u16 = 8080;

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
    is_marked: bool,
    validates: bool,
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
            is_marked: true,
            validates: false,
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
        self.is_marked = false;
        self
    }

    /// With Istio's own init container that shows the redirection.
    #[must_use]
    pub const fn with_validation(mut self) -> Self {
        self.validates = true;
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
        client.create(&self.collection(), &self.to_json()?).map(drop)
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
    pub fn to_json(&self) -> Result<Value> {
        let containers = match self.sidecar {
            Sidecar::Router(_) => Vec::new(),
            Sidecar::Idle => vec![idle_proxy()],
            Sidecar::None | Sidecar::Classic | Sidecar::Native => vec![app(&self.name)],
        };
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": self.labels,
                "annotations": self.annotations},
            "spec": {"containers": containers, "terminationGracePeriodSeconds": 0},
        });
        // By kubelet, from outside of the pod: through the sidecar.
        annotate(&mut pod, injector::REWRITE_PROBES, "false");
        let kind = match self.sidecar {
            Sidecar::None => return Ok(pod),
            Sidecar::Idle => {
                annotate(&mut pod, MARK, r#"{"containers":["istio-proxy"]}"#);
                return Ok(pod);
            }
            Sidecar::Classic => Kind::Classic,
            Sidecar::Native => Kind::Native,
            Sidecar::Router(upstream) => Kind::Gateway(PORT, upstream),
        };
        injector::inject(&mut pod, kind, self.validates)?;
        if let (false, Some(annotations)) = (self.is_marked, pod.pointer_mut("/metadata/annotations")) {
            annotations.as_object_mut().map(|annotations| annotations.remove(MARK));
        }
        Ok(pod)
    }
}

impl Running {
    /// Its proxy's access log, as the node's directory shows it.
    pub fn access_log(&self, node: &Path) -> Result<Vec<envoy::Entry>> {
        envoy::read_access_log(&injector::access_log(node, &self.uid))
    }

    /// Deletes it and waits until it is gone.
    pub fn delete(&self, client: &Client) -> Result<()> {
        client.delete(&self.path)?;
        client.wait_gone(&self.path)
    }
}

/// Where nothing else is said.
fn annotate(pod: &mut Value, name: &str, value: &str) {
    if let Some(annotations) = pod.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.entry(name).or_insert(json!(value));
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
        "readinessProbe": {"httpGet": {"path": "/ready", "port": PORT}, "periodSeconds": 1},
    })
}

fn idle_proxy() -> Value {
    json!({
        "name": "istio-proxy", "image": IMAGE, "imagePullPolicy": "Never",
        "command": ["/pause"], "args": ["proxy", "sidecar"], "securityContext": unprivileged(1337),
    })
}
