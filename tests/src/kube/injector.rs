//! What Istio's injector makes of a pod: its template (`injection-template.yaml`, `gateway-injection-template.yaml`) with
//! `pilot.cni.enabled`, so that no container of the pod has a privilege.
//!
//! Owns: who is injected, and what is added to whom. Never does: add what only an istiod would read (certificates,
//! tokens), or say how the pod's own containers are. Called by: whoever makes pods of the mesh.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::node::PROXY_IMAGE;
use super::pilot_agent::{HttpGet, INSTANCE_IP, PROBERS, Prober};
use crate::envoy::{self, AGENT, STATUS, TELEMETRY};

/// The injector's mark.
pub const MARK: &str = "sidecar.istio.io/status";
/// What says on a pod whether it is to be injected, and on a redirection whether it is to be captured.
pub const INJECT: &str = "sidecar.istio.io/inject";
/// What says so on a namespace: `enabled` or `disabled`.
pub const NAMESPACE_LABEL: &str = "istio-injection";
/// Whether kubelet's probes go to the agent instead of the app.
pub const REWRITE_PROBES: &str = "sidecar.istio.io/rewriteAppHTTPProbers";
/// How the pod's connections are captured.
pub const MODE: &str = "sidecar.istio.io/interceptionMode";
/// The init container that shows that they are.
pub const VALIDATION: &str = "istio-validation";
/// The variable with Envoy's configuration, of which Istio has the most from istiod.
pub const CONFIGURATION: &str = "ENVOY_CONFIGURATION";
/// Ports of apps of the mesh that speak HTTP.
pub const HTTP_PORTS: [u16; 2] = [8080, 9080];

/// Where the proxy writes its access log, in a volume that the node's directory shows.
const LOGS: &str = "/var/log/proxy";
const PROXY: &str = "istio-proxy";

/// What is added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The proxy as a container like any other.
    Classic,
    /// The proxy as an init container that stays.
    Native,
    /// Nothing beside it: a gateway, which listens on a port and asks there.
    Gateway(u16, SocketAddr),
}

/// Whether the webhook of an Istio without revisions takes a pod of this namespace.
pub fn wants(namespace: &Value, pod: &Value) -> bool {
    let namespace = namespace.pointer(&format!("/metadata/labels/{NAMESPACE_LABEL}")).and_then(Value::as_str);
    let on_pod = |kind| metadata(pod, kind, INJECT).filter(|value| !value.is_empty());
    let pod = on_pod("labels").or_else(|| on_pod("annotations"));
    match (namespace, pod.as_deref()) {
        (Some("disabled"), _) | (_, Some("false")) => false,
        (Some("enabled"), _) => true,
        (_, inject) => inject == Some("true"),
    }
}

/// Injects a pod or a template of pods. `validates` is whether it has an init container that shows the redirection, as
/// with Istio's CNI; without interception it has none.
pub fn inject(pod: &mut Value, kind: Kind, validates: bool) -> Result<()> {
    let is_intercepted = metadata(pod, "annotations", MODE).as_deref() != Some("NONE");
    let is_gateway = matches!(kind, Kind::Gateway(..));
    mark(pod, kind, validates && is_intercepted)?;
    let mut probers = Map::new();
    if !is_gateway && metadata(pod, "annotations", REWRITE_PROBES).as_deref() != Some("false") {
        rewrite_probes(pod, &mut probers)?;
    }
    let proxy = proxy(kind, &Value::Object(probers));
    let mut init = Vec::new();
    if validates && is_intercepted && !is_gateway {
        init.push(validation(pod));
    }
    match kind {
        Kind::Native => init.push(proxy),
        Kind::Classic | Kind::Gateway(..) => list(pod, "containers")?.push(proxy),
    }
    // Before the pod's own.
    list(pod, "initContainers")?.splice(0..0, init);
    list(pod, "volumes")?.push(json!({"name": "logs", "emptyDir": {}}));
    Ok(())
}

/// Where the access log of a pod with this uid is, in a node's directory.
pub fn access_log(node: &Path, uid: &str) -> PathBuf {
    node.join("kubelet/pods").join(uid).join("volumes/kubernetes.io~empty-dir/logs/access.log")
}

/// A container that may nothing.
pub fn unprivileged(uid: u32) -> Value {
    json!({
        "runAsUser": uid, "runAsGroup": uid, "runAsNonRoot": true, "allowPrivilegeEscalation": false,
        "privileged": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
    })
}

/// Labels and annotations: the pod's own win.
fn mark(pod: &mut Value, kind: Kind, validates: bool) -> Result<()> {
    let label = |name: &str, other: &str| metadata(pod, "labels", name).unwrap_or_else(|| other.to_owned());
    let mut labels = json!({
        "service.istio.io/canonical-name": label("app", "pod"),
        "service.istio.io/canonical-revision": label("version", "latest"),
    });
    let mut added: Vec<&str> = validates.then_some(VALIDATION).into_iter().collect();
    let containers: &[&str] = if kind == Kind::Native { &[] } else { &[PROXY] };
    added.extend((kind == Kind::Native).then_some(PROXY));
    let status = json!({"initContainers": added, "containers": containers, "volumes": ["logs"],
        "imagePullSecrets": null, "revision": "default"});
    let mut annotations = json!({
        "istio.io/rev": "default",
        (MARK): status.to_string(),
        "prometheus.io/path": "/stats/prometheus", "prometheus.io/port": AGENT.to_string(),
        "prometheus.io/scrape": "true",
    });
    if !matches!(kind, Kind::Gateway(..)) {
        merge(&mut labels, json!({"security.istio.io/tlsMode": "istio"}));
        merge(
            &mut annotations,
            json!({
                (MODE): "REDIRECT",
                "traffic.sidecar.istio.io/includeOutboundIPRanges": "*",
                "traffic.sidecar.istio.io/includeInboundPorts": "*",
                "traffic.sidecar.istio.io/excludeInboundPorts": AGENT.to_string(),
            }),
        );
    }
    for (name, mut added) in [("labels", labels), ("annotations", annotations)] {
        let own = metadata_map(pod, name)?;
        merge(&mut added, Value::Object(own.clone()));
        *own = added.as_object().cloned().unwrap_or_default();
    }
    Ok(())
}

fn merge(into: &mut Value, further: Value) {
    if let (Value::Object(into), Value::Object(further)) = (into, further) {
        into.extend(further);
    }
}

/// kubelet asks the agent, which asks the app: so an app that is behind mutual TLS is reached.
fn rewrite_probes(pod: &mut Value, probers: &mut Map<String, Value>) -> Result<()> {
    const PROBES: [(&str, &str); 3] =
        [("livenessProbe", "livez"), ("readinessProbe", "readyz"), ("startupProbe", "startupz")];
    for container in list(pod, "containers")? {
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        for (probe, short) in PROBES {
            let Some(asked) = container.pointer_mut(&format!("/{probe}/httpGet")) else { continue };
            let path = format!("/app-health/{name}/{short}");
            let http_get: HttpGet = serde_json::from_value(asked.clone()).context("read a probe")?;
            probers.insert(path.clone(), serde_json::to_value(Prober { http_get })?);
            *asked = json!({"path": path, "port": AGENT});
        }
    }
    Ok(())
}

/// Istio's own program, as the proxy's user: it listens where the proxy will, and dials what must come there.
fn validation(pod: &Value) -> Value {
    let annotation = |name: &str, other: &str| {
        metadata(pod, "annotations", &format!("traffic.sidecar.istio.io/{name}"))
            .unwrap_or_else(|| other.to_owned())
    };
    json!({
        "name": VALIDATION, "image": PROXY_IMAGE, "imagePullPolicy": "Never",
        "args": [
            "istio-iptables", "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT",
            "-i", annotation("includeOutboundIPRanges", "*"), "-x", annotation("excludeOutboundIPRanges", ""),
            "-b", annotation("includeInboundPorts", "*"),
            "-d", format!("{TELEMETRY},{STATUS},{}", annotation("excludeInboundPorts", "15020")),
            "--log_output_level=default:info", "--run-validation", "--skip-rule-apply",
        ],
        "securityContext": unprivileged(1337),
    })
}

fn proxy(kind: Kind, probers: &Value) -> Value {
    let log = Path::new(LOGS).join("access.log");
    let (word, configuration) = match kind {
        Kind::Gateway(port, upstream) => ("router", envoy::gateway_configuration(&log, port, upstream)),
        Kind::Classic | Kind::Native => ("sidecar", envoy::configuration(&log, &HTTP_PORTS)),
    };
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let ready = |period: u32, failures: u32| {
        json!({"httpGet": {"path": "/healthz/ready", "port": STATUS}, "periodSeconds": period, "timeoutSeconds": 3,
            "failureThreshold": failures})
    };
    json!({
        "name": PROXY, "image": PROXY_IMAGE, "imagePullPolicy": "Never",
        "args": ["proxy", word, "--domain", "$(POD_NAMESPACE).svc.cluster.local", "--proxyLogLevel=warning",
            "--proxyComponentLogLevel=misc:error", "--log_output_level=default:info"],
        "ports": [{"containerPort": TELEMETRY, "protocol": "TCP", "name": "http-envoy-prom"}],
        "env": [
            field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace"),
            field(INSTANCE_IP, "status.podIP"), field("HOST_IP", "status.hostIP"),
            {"name": "ISTIO_META_INTERCEPTION_MODE", "value": "REDIRECT"},
            {"name": PROBERS, "value": probers.to_string()},
            {"name": CONFIGURATION, "value": configuration.to_string()},
        ],
        "restartPolicy": (kind == Kind::Native).then_some("Always"),
        // Every second, where Istio's readiness waits for 15.
        "startupProbe": ready(1, 600), "readinessProbe": ready(1, 4),
        "securityContext": unprivileged(1337),
        "volumeMounts": [{"name": "logs", "mountPath": LOGS}],
    })
}

fn metadata(pod: &Value, kind: &str, name: &str) -> Option<String> {
    pod.get("metadata")?.get(kind)?.get(name)?.as_str().map(str::to_owned)
}

fn metadata_map<'a>(pod: &'a mut Value, kind: &str) -> Result<&'a mut Map<String, Value>> {
    let metadata = entry(pod, "metadata", json!({}))?;
    entry(metadata, kind, json!({}))?.as_object_mut().with_context(|| format!("{kind} are no object"))
}

fn list<'a>(pod: &'a mut Value, name: &str) -> Result<&'a mut Vec<Value>> {
    let spec = entry(pod, "spec", json!({}))?;
    entry(spec, name, json!([]))?.as_array_mut().with_context(|| format!("{name} is no list"))
}

fn entry<'a>(object: &'a mut Value, name: &str, other: Value) -> Result<&'a mut Value> {
    let object = object.as_object_mut().with_context(|| format!("what has {name} is no object"))?;
    Ok(object.entry(name).or_insert(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_webhook_takes_whom_istios_takes() {
        let namespace = |label: Option<&str>| json!({"metadata": {"labels": {"istio-injection": label}}});
        let pod = |label: Option<&str>, annotation: Option<&str>| json!({"metadata": {"labels": {(INJECT): label}, "annotations": {(INJECT): annotation}}});
        let enabled = namespace(Some("enabled"));
        assert!(wants(&enabled, &pod(None, None)) && wants(&enabled, &pod(Some("true"), Some("false"))));
        assert!(!wants(&enabled, &pod(Some("false"), None)) && !wants(&enabled, &pod(None, Some("false"))));
        assert!(!wants(&namespace(Some("disabled")), &pod(Some("true"), None)));
        assert!(
            wants(&namespace(None), &pod(Some("true"), None)) && !wants(&namespace(None), &pod(None, None))
        );
    }

    #[test]
    fn what_the_pod_says_itself_stays() {
        let range = "traffic.sidecar.istio.io/includeOutboundIPRanges";
        let mut pod = json!({"metadata": {"labels": {"app": "a"}, "annotations": {(range): ""}},
            "spec": {"containers": [{"name": "a", "readinessProbe": {"httpGet": {"path": "/h", "port": 1}}}],
                "initContainers": [{"name": "own"}]}});
        inject(&mut pod, Kind::Native, true).unwrap();
        assert_eq!(pod["metadata"]["annotations"][range], "");
        assert_eq!(pod["metadata"]["labels"]["service.istio.io/canonical-name"], "a");
        let names: Vec<_> =
            pod["spec"]["initContainers"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
        assert_eq!(names, [VALIDATION, PROXY, "own"]);
        assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 1);
        let probe = &pod["spec"]["containers"][0]["readinessProbe"]["httpGet"];
        assert_eq!(*probe, json!({"path": "/app-health/a/readyz", "port": 15020}));
    }

    #[test]
    fn a_gateway_is_asked_itself() {
        let mut pod = json!({"spec": {}});
        inject(&mut pod, Kind::Gateway(8080, ([10, 0, 0, 1], 80).into()), true).unwrap();
        assert_eq!(pod["spec"]["initContainers"], json!([]));
        assert_eq!(pod["spec"]["containers"][0]["args"][1], "router");
        assert!(
            pod["metadata"]["annotations"][MODE].is_null() && !pod["metadata"]["annotations"][MARK].is_null()
        );
    }
}
