//! Pods of Istio's ambient mode: how one is captured.
//!
//! Owns: the annotations of `ambient.istio.io`. None of a sidecar's counts. Never does: choose the pods, which `asked`
//! does, or know whether a ztunnel is there. Called by: `decision`.

use std::collections::BTreeSet;

use ipnet::Ipv4Net;

use super::annotation::{self, name};
use super::capture::{
    BeforeProxy, Capture, Driver, IdSpace, InboundPorts, InterceptionMode, OutboundRanges, OwnerGroups,
    ProxyIdentity,
};
use super::decision::{DEFAULT_PROXY_ID, PodError, Reader};

/// How such a pod is captured. ztunnel is known by the mark of its sockets; the ids are those that Istio runs it as,
/// by which its listeners have room of their own.
pub(super) fn capture(reader: &mut Reader<'_>) -> Capture {
    let bypasses_inbound = reader.one(name::AMBIENT_BYPASS_INBOUND, annotation::boolean).unwrap_or(false);
    let rerouted = super::decision::reroute_annotation(reader.annotations);
    if reader.list(rerouted, annotation::interfaces).is_some_and(|interfaces| !interfaces.is_empty()) {
        reader.errors.push(PodError::RerouteByZtunnel { annotation: rerouted });
    }
    Capture {
        proxy_uid: DEFAULT_PROXY_ID,
        proxy_gid: DEFAULT_PROXY_ID,
        // It is a process of the node's, whosever users the pod's are.
        ids: IdSpace::Node,
        mode: InterceptionMode::Redirect,
        inbound: if bypasses_inbound {
            InboundPorts::Only(BTreeSet::new())
        } else {
            InboundPorts::All { excluded: BTreeSet::new() }
        },
        outbound: OutboundRanges::All,
        excluded_ranges: BTreeSet::new(),
        included_outbound_ports: BTreeSet::new(),
        excluded_outbound_ports: BTreeSet::new(),
        excluded_interfaces: BTreeSet::new(),
        rerouted_interfaces: BTreeSet::new(),
        dns_capture: reader.one(name::AMBIENT_DNS_CAPTURE, annotation::boolean).unwrap_or(true),
        dual_stack: true,
        drop_invalid: false,
        owner_groups: OwnerGroups::AllExcept(BTreeSet::new()),
        loopback: Ipv4Net::from(std::net::Ipv4Addr::LOCALHOST),
        proxy_identity: ProxyIdentity::Uid,
        // Its ADD is answered when ztunnel listens.
        before_proxy: BeforeProxy::Refuse,
        driver: Driver::Ztunnel,
        presence: super::capture::Presence::Full,
        warnings: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::decision::{Decision, NodeSettings, PassReason, decide};
    use super::super::manifest::Pod;
    use super::*;

    fn pod(metadata: &str, spec: &str) -> Pod {
        let text =
            format!("{{apiVersion: v1, kind: Pod, metadata: {{name: cart, {metadata}}}, spec: {{{spec}}}}}");
        Pod::from_manifest(text.as_bytes()).unwrap()
    }

    fn with_ztunnel() -> NodeSettings {
        NodeSettings { ztunnel: true, ..NodeSettings::default() }
    }

    const LABEL: &str = "labels: {istio.io/dataplane-mode: ambient}";
    const APP: &str = "containers: [{name: app}]";

    fn captured(annotations: &str) -> Capture {
        let pod = pod(&format!("{LABEL}, annotations: {{{annotations}}}"), APP);
        match decide(&pod, &with_ztunnel()) {
            Ok(Decision::Capture(capture)) => *capture,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_label_is_for_ztunnel_where_the_node_has_one_and_the_pod_no_sidecar() {
        assert_eq!(captured("").driver, Driver::Ztunnel);
        let passed =
            |metadata: &str, spec: &str, node: &NodeSettings| match decide(&pod(metadata, spec), node) {
                Ok(Decision::Pass(reason)) => reason,
                other => panic!("{metadata} {spec}: {other:?}"),
            };
        assert_eq!(passed(LABEL, APP, &NodeSettings::default()), PassReason::NotInjected);
        let none = "labels: {istio.io/dataplane-mode: none}";
        assert_eq!(passed(none, APP, &with_ztunnel()), PassReason::NotInjected);
        let host = format!("hostNetwork: true, {APP}");
        assert_eq!(passed(LABEL, &host, &with_ztunnel()), PassReason::HostNetwork);
        let init = format!("initContainers: [{{name: istio-init}}], {APP}");
        assert_eq!(passed(LABEL, &init, &with_ztunnel()), PassReason::IstioInitPresent);
        let injected = format!("{LABEL}, annotations: {{sidecar.istio.io/status: '{{}}'}}");
        assert_eq!(passed(&injected, APP, &with_ztunnel()), PassReason::NoProxyContainer);
    }

    #[test]
    fn the_two_annotations_are_read_and_no_sidecars() {
        let capture = captured("traffic.sidecar.istio.io/excludeOutboundPorts: 'x'");
        assert_eq!(capture.inbound, InboundPorts::All { excluded: BTreeSet::new() });
        assert!(capture.dns_capture && capture.dual_stack && capture.excluded_outbound_ports.is_empty());
        let off = "ambient.istio.io/bypass-inbound-capture: 'true', ambient.istio.io/dns-capture: 'false'";
        let capture = captured(off);
        assert_eq!(capture.inbound, InboundPorts::Only(BTreeSet::new()));
        assert!(!capture.dns_capture);
    }

    #[test]
    fn what_is_wrong_is_named_all_at_once() {
        let wrong = "ambient.istio.io/bypass-inbound-capture: 'yes', ambient.istio.io/dns-capture: '2', \
                     istio.io/reroute-virtual-interfaces: 'net1'";
        let pod = pod(&format!("{LABEL}, annotations: {{{wrong}}}"), APP);
        let told = decide(&pod, &with_ztunnel()).unwrap_err().to_string();
        for part in [
            "annotation ambient.istio.io/bypass-inbound-capture: \"yes\" is not true or false",
            "annotation ambient.istio.io/dns-capture: \"2\" is not true or false",
            "annotation istio.io/reroute-virtual-interfaces",
        ] {
            assert!(told.contains(part), "{told}");
        }
    }
}
