//! What a user would not expect of a pod that is left alone.
//!
//! Most who are left alone want it so: their namespace is excluded, they have no sidecar, they are a gateway, or an
//! annotation asks for it. Others have a sidecar whose connections they expect to be redirected.

use super::annotation::name;
use super::decision::{PROXY_CONTAINER, PassReason};
use super::manifest::Pod;

/// What is surprising about it, with the way out; `None` if nothing is.
pub fn surprise(reason: PassReason, pod: &Pod) -> Option<&'static str> {
    let is_injected = pod.metadata.annotations.contains_key(name::STATUS);
    let has_proxy = pod.container(PROXY_CONTAINER).is_some();
    match reason {
        PassReason::IstioInitPresent => Some(
            "it still has the container istio-init, which redirects by iptables and needs NET_ADMIN, so veer leaves it alone; \
             tell the injector that a CNI plugin redirects (istiod: pilot.cni.enabled=true) and let the pod be created anew",
        ),
        PassReason::InjectFalse if is_injected && has_proxy => Some(
            "sidecar.istio.io/inject says false, so veer leaves it alone, and yet it has a sidecar, which gets none of its \
             connections; remove the label or annotation to have them redirected, or the sidecar",
        ),
        PassReason::NoProxyContainer => Some(
            "sidecar.istio.io/status says that it was injected, and none of its containers is named istio-proxy, so veer leaves \
             it alone; name the proxy's container so, or remove the annotation",
        ),
        PassReason::HostNetwork
        | PassReason::NamespaceExcluded
        | PassReason::InjectFalse
        | PassReason::NotInjected
        | PassReason::Gateway
        | PassReason::EnvoyDisabled
        | PassReason::ModeNone => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::decision::{Decision, NodeSettings, decide};
    use super::*;

    /// What is said of a pod with these annotations and containers.
    fn said(annotations: &str, containers: &str) -> Option<&'static str> {
        let manifest = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: cart, annotations: {{{annotations}}}}}, spec: {{{containers}}}}}"
        );
        let pod = Pod::from_manifest(manifest.as_bytes()).unwrap();
        match decide(&pod, &NodeSettings::default()).unwrap() {
            Decision::Pass(reason) => surprise(reason, &pod),
            Decision::Capture(_) => panic!("not left alone"),
        }
    }

    const MARK: &str = "sidecar.istio.io/status: '{}'";
    const PROXY: &str = "containers: [{name: app}, {name: istio-proxy}]";

    #[test]
    fn a_sidecar_that_gets_no_connections_is_a_surprise() {
        let told = |annotations: &str, containers: &str| said(annotations, containers).unwrap_or("nothing");
        let with_init = format!("{PROXY}, initContainers: [{{name: istio-init}}]");
        assert!(told(MARK, &with_init).contains("istio-init"));
        assert!(
            told(&format!("{MARK}, sidecar.istio.io/inject: 'false'"), PROXY).contains("inject says false")
        );
        assert!(told(MARK, "containers: [{name: app}]").contains("named istio-proxy"));
    }

    #[test]
    fn who_has_asked_for_it_or_has_no_sidecar_is_none() {
        let off = format!("{MARK}, sidecar.istio.io/interceptionMode: NONE");
        for (annotations, containers) in [
            ("", PROXY),
            ("sidecar.istio.io/inject: 'false'", "containers: [{name: app}]"),
            (off.as_str(), PROXY),
            (MARK, "containers: [{name: istio-proxy, args: [proxy, router]}]"),
            (MARK, "hostNetwork: true, containers: [{name: istio-proxy}]"),
            (MARK, "containers: [{name: istio-proxy, env: [{name: DISABLE_ENVOY, value: 'true'}]}]"),
        ] {
            assert_eq!(said(annotations, containers), None, "{annotations} {containers}");
        }
    }
}
