//! The parts of a Kubernetes Pod that decide interception, and their decoding from JSON or YAML.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use thiserror::Error;

use super::asked::NamespaceLabels;
use super::decision::PROXY_CONTAINER;
use super::quoted::{Brief, Quoted};

/// Longest manifest that is read: what etcd takes for one object, and far more than a pod needs.
pub const MAX_MANIFEST_BYTES: usize = 1 << 20;

/// Most brackets that are open at one place of a YAML manifest.
const MAX_OPEN_BRACKETS: usize = 512;

/// Longest pod name and longest namespace; Kubernetes allows no more.
const MAX_NAME: usize = 253;
const MAX_NAMESPACE: usize = 63;

/// A pod. Fields that decide nothing are not kept.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pod {
    #[serde(deserialize_with = "null_as_default")]
    api_version: String,
    #[serde(deserialize_with = "null_as_default")]
    kind: String,
    /// Who the pod is.
    #[serde(deserialize_with = "null_as_default")]
    pub metadata: Metadata,
    /// What it is made of.
    #[serde(deserialize_with = "null_as_default")]
    pub spec: Spec,
    /// What its namespace asks for; no part of its manifest, whoever knows the namespace says it.
    #[serde(skip)]
    pub namespace_labels: NamespaceLabels,
}

/// What is read from a manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Manifest {
    /// A pod.
    Pod(Box<Pod>),
    /// A namespace, and what its labels ask for its pods.
    Namespace(String, NamespaceLabels),
}

/// Name, labels and annotations of a pod.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Pod name.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// Kubernetes namespace; `default` when the manifest names none.
    #[serde(deserialize_with = "null_as_default")]
    pub namespace: String,
    /// Pod uid, where the manifest has one.
    pub uid: Option<String>,
    /// Labels.
    #[serde(deserialize_with = "texts")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(deserialize_with = "texts")]
    pub annotations: BTreeMap<String, String>,
}

/// The containers of a pod, and which of the node's namespaces it shares.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Whether the pod runs in the node's network namespace.
    #[serde(deserialize_with = "null_as_default")]
    pub host_network: bool,
    /// Whether the pod runs in the node's user namespace; unset means yes.
    pub host_users: Option<bool>,
    /// Who the pod is to the API server, and in the mesh.
    pub service_account_name: Option<String>,
    /// Init containers, native sidecars among them.
    #[serde(deserialize_with = "null_as_default")]
    pub init_containers: Vec<Container>,
    /// Containers.
    #[serde(deserialize_with = "null_as_default")]
    pub containers: Vec<Container>,
}

/// A container.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Its name.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// Arguments to the image's entry point.
    #[serde(deserialize_with = "null_as_default")]
    pub args: Vec<String>,
    /// Environment variables.
    #[serde(deserialize_with = "null_as_default")]
    pub env: Vec<EnvironmentVariable>,
    /// Whom it runs as.
    #[serde(deserialize_with = "null_as_default")]
    pub security_context: SecurityContext,
}

/// An environment variable of a container.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvironmentVariable {
    /// Its name.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// Its value; empty when it comes from elsewhere (`valueFrom`).
    #[serde(deserialize_with = "null_as_default")]
    pub value: String,
}

/// Whom a container runs as. Kubernetes' own numbers are signed; [`decide`](super::decide) judges them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SecurityContext {
    /// Uid.
    pub run_as_user: Option<i64>,
    /// Gid.
    pub run_as_group: Option<i64>,
}

/// Why something is not a pod's manifest.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// It is too long to be read.
    #[error("manifest is longer than {MAX_MANIFEST_BYTES} bytes")]
    TooLong,
    /// No manifest has so many brackets inside of each other.
    #[error("manifest has more than {MAX_OPEN_BRACKETS} brackets that are open at one place")]
    TooDeep,
    /// It is neither JSON nor YAML, or a field has the wrong type.
    #[error("manifest is not a Pod in JSON: {}", Brief(.0))]
    Json(#[source] serde_json::Error),
    /// It is not YAML, or a field has the wrong type.
    #[error("manifest is not a Pod in YAML: {}", Brief(.0))]
    Yaml(#[source] serde_yaml_ng::Error),
    /// It is some other Kubernetes object.
    #[error(
        "manifest has apiVersion {} and kind {}, a pod's are \"v1\" and \"Pod\"",
        Quoted(.api_version),
        Quoted(.kind)
    )]
    NotAPod {
        /// What it says.
        api_version: String,
        /// What it says.
        kind: String,
    },
    /// Name or namespace could not be those of a pod.
    #[error("{field} {} is not 1 to {most} lower-case letters, digits, '-' and '.'", Quoted(.value))]
    Name {
        /// The field's path.
        field: &'static str,
        /// What it holds.
        value: String,
        /// Longest that it may be.
        most: usize,
    },
}

impl Manifest {
    /// Decodes a manifest and checks that it is a pod or a namespace, with a name.
    ///
    /// # Errors
    /// If it is neither, or cannot be read.
    pub fn read(bytes: &[u8]) -> Result<Self, ManifestError> {
        // A namespace has nothing that a pod has otherwise.
        let object = Pod::decode(bytes)?;
        if object.api_version == "v1" && object.kind == "Namespace" {
            let Metadata { name, labels, .. } = object.metadata;
            check_name("metadata.name", &name, MAX_NAMESPACE)?;
            return Ok(Self::Namespace(name, NamespaceLabels::of(&labels)));
        }
        object.checked().map(Box::new).map(Self::Pod)
    }
}

impl Pod {
    /// Decodes a manifest and checks that it is a pod with a name.
    ///
    /// # Errors
    /// If it is none, or cannot be read.
    pub fn from_manifest(bytes: &[u8]) -> Result<Self, ManifestError> {
        Self::decode(bytes)?.checked()
    }

    fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLong);
        }
        decode(bytes)
    }

    fn checked(mut self) -> Result<Self, ManifestError> {
        if self.api_version != "v1" || self.kind != "Pod" {
            return Err(ManifestError::NotAPod { api_version: self.api_version, kind: self.kind });
        }
        if self.metadata.namespace.is_empty() {
            "default".clone_into(&mut self.metadata.namespace);
        }
        check_name("metadata.name", &self.metadata.name, MAX_NAME)?;
        check_name("metadata.namespace", &self.metadata.namespace, MAX_NAMESPACE)?;
        Ok(self)
    }

    /// A pod as the API server tells of it, which has checked its fields: what decides, and no more, because an agent
    /// holds all pods of its node. What other containers than the proxy run and see decides nothing, nor do
    /// annotations of others, some of which hold all of the manifest once more.
    pub fn observed(mut metadata: Metadata, mut spec: Spec) -> Self {
        metadata.annotations.retain(|name, _| is_of_the_mesh(name));
        for container in spec.containers.iter_mut().chain(&mut spec.init_containers) {
            if container.name != PROXY_CONTAINER {
                let name = std::mem::take(&mut container.name);
                *container = Container { name, ..Container::default() };
            }
        }
        Self { metadata, spec, ..Self::default() }
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    /// Its service account; the API server writes `default` where a manifest names none.
    pub fn service_account(&self) -> &str {
        self.spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default")
    }

    /// The container of this name, wherever it stands: a native sidecar is an init container.
    pub fn container(&self, name: &str) -> Option<&Container> {
        let Spec { containers, init_containers, .. } = &self.spec;
        containers.iter().chain(init_containers).find(|container| container.name == name)
    }
}

/// JSON is nearly a part of YAML, but not quite (surrogate escapes, tabs), so it has its own decoder.
fn decode(bytes: &[u8]) -> Result<Pod, ManifestError> {
    let looks_like_json = bytes.trim_ascii_start().starts_with(b"{");
    if !looks_like_json {
        return decode_yaml(bytes);
    }
    match serde_json::from_slice(bytes) {
        Ok(pod) => Ok(pod),
        // A YAML flow mapping begins with a brace, too.
        Err(json) => decode_yaml(bytes).or(Err(ManifestError::Json(json))),
    }
}

/// For each token, the YAML scanner looks at every bracket that is open: a deep nest costs the square of
/// its length. Brackets in texts are counted as well, so the limit is far beyond what anybody nests.
fn decode_yaml(bytes: &[u8]) -> Result<Pod, ManifestError> {
    let mut depth = 0_usize;
    for byte in bytes {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_OPEN_BRACKETS {
            return Err(ManifestError::TooDeep);
        }
    }
    serde_yaml_ng::from_slice(bytes).map_err(ManifestError::Yaml)
}

fn check_name(field: &'static str, value: &str, most: usize) -> Result<(), ManifestError> {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    if (1..=most).contains(&value.len()) && value.bytes().all(allowed) {
        return Ok(());
    }
    let value = value.chars().take(most).collect();
    Err(ManifestError::Name { field, value, most })
}

/// Whether these could be names of a pod and its namespace: they become part of a request's path.
pub fn could_name_a_pod(namespace: &str, name: &str) -> bool {
    check_name("", name, MAX_NAME).is_ok() && check_name("", namespace, MAX_NAMESPACE).is_ok()
}

/// Whether an annotation is Istio's or our own.
fn is_of_the_mesh(name: &str) -> bool {
    let domain = name.split_once('/').map_or("", |(domain, _)| domain);
    ["istio.io", "veer.dev"]
        .iter()
        .any(|of| domain.strip_suffix(of).is_some_and(|before| before.is_empty() || before.ends_with('.')))
}

/// Kubernetes takes `null` for a field that is not there; empty YAML values are null.
fn null_as_default<'a, T: Default + Deserialize<'a>, D: Deserializer<'a>>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// A map of texts, in which a value that is not there is empty.
fn texts<'a, D: Deserializer<'a>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    let map = Option::<BTreeMap<String, Option<String>>>::deserialize(from)?.unwrap_or_default();
    Ok(map.into_iter().map(|(name, value)| (name, value.unwrap_or_default())).collect())
}

#[cfg(test)]
mod tests;
