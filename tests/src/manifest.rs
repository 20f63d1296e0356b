//! Pod manifests as the injector leaves them, for the agent's `--pods-from` directory.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// The injector's mark: the pod is in the mesh.
const STATUS: &str = "sidecar.istio.io/status";

/// A pod of the mesh. Default: no annotation but the injector's own, a container `istio-proxy` of 1337.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    annotations: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    proxy_env: BTreeMap<String, String>,
    proxy_user: u32,
    uid: Option<String>,
    proxy_args: Vec<String>,
    /// In which list the proxy is: a native sidecar is an init container that stays.
    native: bool,
    init_containers: Vec<String>,
    host_users: bool,
    /// Whether it has a proxy of its own.
    has_sidecar: bool,
}

impl Manifest {
    /// A pod of the mesh.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            annotations: BTreeMap::from([(STATUS.to_owned(), "{}".to_owned())]),
            labels: BTreeMap::new(),
            proxy_env: BTreeMap::new(),
            proxy_user: 1337,
            uid: None,
            proxy_args: ["proxy", "sidecar", "--domain"].map(str::to_owned).into(),
            native: false,
            init_containers: Vec::new(),
            host_users: true,
            has_sidecar: true,
        }
    }

    /// With a uid, which the cgroup of its processes has, too.
    #[must_use]
    pub fn with_uid(mut self, uid: &str) -> Self {
        self.uid = Some(uid.to_owned());
        self
    }

    /// With an annotation, by its full name.
    #[must_use]
    pub fn with_annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), value.to_owned());
        self
    }

    /// With an annotation `traffic.sidecar.istio.io/…`.
    #[must_use]
    pub fn with_traffic(self, name: &str, value: &str) -> Self {
        self.with_annotation(&format!("traffic.sidecar.istio.io/{name}"), value)
    }

    /// Without the annotation: for the injector's own, a pod outside of the mesh.
    #[must_use]
    pub fn without_annotation(mut self, name: &str) -> Self {
        self.annotations.remove(name);
        self
    }

    /// With a label.
    #[must_use]
    pub fn with_label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// With an environment variable of `istio-proxy`.
    #[must_use]
    pub fn with_proxy_env(mut self, name: &str, value: &str) -> Self {
        self.proxy_env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// With IPv6 beside IPv4: without it, istio-init leaves the IPv6 of a pod that has IPv4 alone.
    #[must_use]
    pub fn with_dual_stack(self) -> Self {
        self.with_proxy_env("ISTIO_DUAL_STACK", "true")
    }

    /// With a proxy of another user.
    #[must_use]
    pub const fn with_proxy_user(mut self, uid: u32) -> Self {
        self.proxy_user = uid;
        self
    }

    /// With a proxy that has other arguments: `["proxy", "router"]` for a gateway.
    #[must_use]
    pub fn with_proxy_args(mut self, args: &[&str]) -> Self {
        self.proxy_args = args.iter().map(ToString::to_string).collect();
        self
    }

    /// With a native sidecar: the proxy is an init container that is restarted.
    #[must_use]
    pub const fn with_native_sidecar(mut self) -> Self {
        self.native = true;
        self
    }

    /// Without any sidecar: the injector has not seen it.
    #[must_use]
    pub fn without_sidecar(mut self) -> Self {
        self.has_sidecar = false;
        self.without_annotation(STATUS)
    }

    /// Without any sidecar, and served by the node's proxy.
    #[must_use]
    pub fn with_node_proxy(self) -> Self {
        self.without_sidecar().with_label("veer.dev/proxy", "node")
    }

    /// Without any sidecar, and of Istio's ambient mode.
    #[must_use]
    pub fn of_ambient_mode(self) -> Self {
        self.without_sidecar().with_label("istio.io/dataplane-mode", "ambient")
    }

    /// With an init container, before a native sidecar.
    #[must_use]
    pub fn with_init_container(mut self, name: &str) -> Self {
        self.init_containers.push(name.to_owned());
        self
    }

    /// With a user namespace of its own.
    #[must_use]
    pub const fn without_host_users(mut self) -> Self {
        self.host_users = false;
        self
    }

    /// Its file's name in the directory.
    pub fn file_name(&self) -> String {
        format!("{}_{}.json", self.namespace, self.name)
    }

    /// The Pod object.
    pub fn to_json(&self) -> Value {
        let env: Vec<_> =
            self.proxy_env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        let proxy = json!({
            "name": "istio-proxy",
            "image": "proxyv2",
            "restartPolicy": self.native.then_some("Always"),
            "args": self.proxy_args,
            "env": env,
            "securityContext": {"runAsUser": self.proxy_user, "runAsGroup": 1337},
        });
        let mut containers = vec![json!({"name": "app", "image": "app"})];
        let named = |name: &String| json!({"name": name, "image": "proxyv2"});
        let mut init_containers: Vec<Value> = self.init_containers.iter().map(named).collect();
        if self.has_sidecar {
            if self.native { &mut init_containers } else { &mut containers }.push(proxy);
        }
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": self.namespace,
                "name": self.name,
                "uid": self.uid,
                "labels": self.labels,
                "annotations": self.annotations,
            },
            "spec": {
                "hostUsers": self.host_users,
                "initContainers": init_containers,
                "containers": containers,
            },
        })
    }
}
