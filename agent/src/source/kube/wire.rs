//! What the API server says of pods and namespaces, and what is kept of it.
//!
//! Owns: the fields that are read from the wire. `managedFields`, volumes, probes and the status, which are most of a
//! pod, are passed over while it is parsed and never held. Never does: judge a pod. Called by: the watches and the lookup.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::model::manifest::{Metadata, Spec};
use crate::model::{NamespaceLabels, Pod};

/// The kubelet writes the pods of its own files to the API server as mirrors, with uids of their own; the uid that the
/// runtime has is in this annotation (`pkg/kubelet/types/pod_update.go`).
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// What says that a pod is such a mirror.
const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod as it comes.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Wire {
    metadata: WireMetadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: WireStatus,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireMetadata {
    name: String,
    namespace: String,
    uid: String,
    resource_version: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireStatus {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: String,
}

/// A namespace as it comes: its metadata alone (`PartialObjectMetadata`).
#[derive(Clone, Debug, Deserialize)]
pub(super) struct WireNamespace {
    metadata: NamespaceMetadata,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamespaceMetadata {
    name: String,
    resource_version: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// What has a place in the API server's history.
pub(super) trait Versioned {
    /// Its version.
    fn version(&self) -> &str;
}

/// A list.
#[derive(Debug, Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
pub(super) struct WireList<T> {
    /// Its version.
    pub(super) metadata: ListMetadata,
    /// What is in it; absent when there is nothing.
    #[serde(default = "Vec::new")]
    pub(super) items: Vec<T>,
}

/// What a list says of itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMetadata {
    /// From where a watch goes on.
    pub(super) resource_version: String,
}

/// A pod, reduced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    /// What decides.
    pub(super) pod: Pod,
    /// Whether the kubelet says that its network is there, so that the runtime's ADD is over.
    pub(super) has_started: bool,
}

impl Versioned for Wire {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl Versioned for WireNamespace {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl WireNamespace {
    /// What is kept of it: its name, and what it asks for its pods.
    pub(super) fn reduce(self) -> (String, NamespaceLabels) {
        let NamespaceMetadata { name, labels, .. } = self.metadata;
        (name, NamespaceLabels::of(&labels))
    }
}

impl Wire {
    /// What is kept of it.
    pub(super) fn reduce(self) -> Seen {
        let WireMetadata { name, namespace, uid, labels, mut annotations, .. } = self.metadata;
        let is_mirror = annotations.contains_key(CONFIG_MIRROR);
        let uid = annotations.remove(CONFIG_HASH).filter(|_| is_mirror).unwrap_or(uid);
        let metadata = Metadata { name, namespace, uid: Some(uid), labels, annotations };
        Seen {
            pod: Pod::observed(metadata, self.spec),
            // Init containers run while it is still pending.
            has_started: !self.status.pod_ip.is_empty()
                || !matches!(self.status.phase.as_str(), "" | "Pending"),
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::WatchEvent;

    use super::*;

    const POD: &str = r#"{"kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "cart", "namespace": "shop", "uid": "u1", "resourceVersion": "17",
            "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:a": {}}}],
            "annotations": {"sidecar.istio.io/status": "{}", "kubernetes.io/config.hash": "h"}},
        "spec": {"nodeName": "n", "hostUsers": false, "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": "istio-proxy", "image": "proxyv2", "resources": {}, "args": ["proxy", "sidecar"],
                "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]}}"#;

    #[test]
    fn a_pod_is_reduced_to_what_decides() {
        let wire: Wire = serde_json::from_str(POD).unwrap();
        assert_eq!(wire.version(), "17");
        let Seen { pod, has_started } = wire.reduce();
        assert!(has_started);
        assert_eq!((pod.full_name().as_str(), pod.metadata.uid.as_deref()), ("shop/cart", Some("u1")));
        assert_eq!(pod.spec.host_users, Some(false));
        assert_eq!(pod.container("istio-proxy").unwrap().args, ["proxy", "sidecar"]);
        assert_eq!(pod.metadata.annotations.len(), 1);
    }

    #[test]
    fn a_mirror_of_a_static_pod_has_the_uid_that_the_runtime_knows() {
        let mirror = POD.replace(
            r#""kubernetes.io/config.hash": "h""#,
            r#""kubernetes.io/config.hash": "h", "kubernetes.io/config.mirror": "h""#,
        );
        let wire: Wire = serde_json::from_str(&mirror).unwrap();
        assert_eq!(wire.reduce().pod.metadata.uid.as_deref(), Some("h"));
    }

    #[test]
    fn a_pod_has_started_when_it_has_an_address() {
        let has_started = |status: &str| {
            let pod = POD.replace(r#"{"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]}"#, status);
            serde_json::from_str::<Wire>(&pod).unwrap().reduce().has_started
        };
        assert!(has_started(r#"{"phase": "Pending", "podIP": "10.0.0.1"}"#));
        assert!(!has_started(r#"{"phase": "Pending"}"#) && !has_started("{}"));
    }

    #[test]
    fn lines_of_a_watch_are_told_apart() {
        let line = |kind: &str, object: &str| {
            serde_json::from_str::<WatchEvent<Wire>>(&format!(r#"{{"type":"{kind}","object":{object}}}"#))
                .unwrap()
        };
        assert!(matches!(line("ADDED", POD), WatchEvent::Added(_)));
        assert!(matches!(line("MODIFIED", POD), WatchEvent::Modified(_)));
        assert!(matches!(line("DELETED", POD), WatchEvent::Deleted(_)));
        let bookmark = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"42","creationTimestamp":null},"spec":{"containers":null}}"#;
        let WatchEvent::Bookmark(bookmark) = line("BOOKMARK", bookmark) else { panic!("no bookmark") };
        assert_eq!(bookmark.metadata.resource_version, "42");
        let expired = r#"{"kind":"Status","status":"Failure","message":"too old resource version: 1 (9)","reason":"Expired","code":410}"#;
        let WatchEvent::Error(status) = line("ERROR", expired) else { panic!("no error") };
        assert_eq!(status.code, 410);
    }

    #[test]
    fn an_empty_list_is_a_list() {
        let list: WireList<Wire> =
            serde_json::from_str(r#"{"kind":"PodList","metadata":{"resourceVersion":"9"},"items":[]}"#)
                .unwrap();
        assert_eq!((list.metadata.resource_version.as_str(), list.items.len()), ("9", 0));
    }

    #[test]
    fn of_a_namespace_its_name_and_what_it_asks_for_are_kept() {
        let list = r#"{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"40"},
            "items":[{"metadata":{"name":"shop","uid":"u","resourceVersion":"7","creationTimestamp":"2026-01-01T00:00:00Z",
            "labels":{"istio.io/dataplane-mode":"ambient","team":"a"},"managedFields":[{"manager":"m"}]}},
            {"metadata":{"name":"plain","resourceVersion":"8"}}]}"#;
        let list: WireList<WireNamespace> = serde_json::from_str(list).unwrap();
        assert_eq!(list.items[0].version(), "7");
        let reduced: Vec<_> = list.items.into_iter().map(WireNamespace::reduce).collect();
        let ambient = NamespaceLabels { ambient: true, node_proxy: false };
        let plain = ("plain".to_owned(), NamespaceLabels::default());
        assert_eq!(reduced, [("shop".to_owned(), ambient), plain]);
    }
}
