use proptest::prelude::*;

use super::super::decision::{Decision, PassReason, decide};
use super::super::origin::{Origin, Origins, Setting};
use super::*;

const NODE: &str = "veer.dev/proxy: node";
const NODE_NONE: &str = "veer.dev/proxy: none";
const AMBIENT_LABEL: &str = "istio.io/dataplane-mode: ambient";
const AMBIENT_NONE: &str = "istio.io/dataplane-mode: none";

fn pod_with(labels: &[&str], metadata: &str, spec: &str, namespace: &[&str]) -> Pod {
    let labels = labels.join(", ");
    let text = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: cart, namespace: shop, labels: {{{labels}}}{metadata}}}, \
         spec: {{containers: [{{name: app}}]{spec}}}}}"
    );
    let mut pod = Pod::from_manifest(text.as_bytes()).unwrap();
    let of = |wanted: &str| namespace.contains(&wanted);
    pod.namespace_labels = NamespaceLabels { node_proxy: of(NODE), ambient: of(AMBIENT_LABEL) };
    pod
}

fn pod(labels: &[&str], namespace: &[&str]) -> Pod {
    pod_with(labels, "", "", namespace)
}

fn with_ztunnel() -> NodeSettings {
    NodeSettings { ztunnel: true, ..NodeSettings::default() }
}

fn driver(pod: &Pod) -> Option<Driver> {
    match decide(pod, &with_ztunnel()) {
        Ok(Decision::Capture(capture)) => Some(capture.driver),
        Ok(Decision::Pass(PassReason::NotInjected)) => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn of_a_namespaces_labels_two_are_read_and_no_other_value_of_them() {
    let of = |labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        NamespaceLabels::of(&labels.collect())
    };
    assert_eq!(of(&[]), NamespaceLabels::default());
    assert_eq!(of(&[("veer.dev/proxy", "Node"), ("istio.io/dataplane-mode", "none")]), of(&[]));
    assert_eq!(of(&[("istio.io/rev", "ambient"), ("proxy", "node")]), of(&[]));
    let both = NamespaceLabels { node_proxy: true, ambient: true };
    assert_eq!(of(&[("veer.dev/proxy", "node"), ("istio.io/dataplane-mode", "ambient")]), both);
}

#[test]
fn a_namespace_asks_for_its_pods_and_each_pods_own_word_comes_first() {
    let (node, ztunnel) = (Some(Driver::Node), Some(Driver::Ztunnel));
    for (of_pod, of_namespace, wanted) in [
        (&[][..], &[][..], None),
        (&[], &[NODE], node),
        (&[], &[AMBIENT_LABEL], ztunnel),
        (&[], &[NODE, AMBIENT_LABEL], node),
        (&[NODE], &[AMBIENT_LABEL], node),
        (&[AMBIENT_LABEL], &[NODE], ztunnel),
        (&[NODE, AMBIENT_LABEL], &[], node),
        // Out of the one is not out of the other.
        (&[NODE_NONE], &[NODE], None),
        (&[AMBIENT_NONE], &[AMBIENT_LABEL], None),
        (&[NODE_NONE], &[AMBIENT_LABEL], ztunnel),
        (&[AMBIENT_NONE], &[NODE], node),
        (&[NODE_NONE], &[NODE, AMBIENT_LABEL], ztunnel),
        (&[NODE_NONE, AMBIENT_NONE], &[NODE, AMBIENT_LABEL], None),
        // As with Istio's selectors, which know one word.
        (&["veer.dev/proxy: off"], &[NODE], node),
        (&["istio.io/dataplane-mode: ''"], &[AMBIENT_LABEL], ztunnel),
    ] {
        assert_eq!(driver(&pod(of_pod, of_namespace)), wanted, "{of_pod:?} in {of_namespace:?}");
    }
}

#[test]
fn a_sidecar_keeps_a_pod_out_of_both_whatever_its_namespace_asks_for() {
    let both = [NODE, AMBIENT_LABEL];
    let injected = ", annotations: {sidecar.istio.io/status: '{}'}";
    let sidecar = ", initContainers: [{name: istio-proxy, args: [proxy, sidecar]}]";
    assert_eq!(driver(&pod_with(&[], injected, sidecar, &both)), Some(Driver::Sidecar));
    let gateway = ", initContainers: [{name: istio-proxy, args: [proxy, router]}]";
    let passed = decide(&pod_with(&[], injected, gateway, &both), &with_ztunnel());
    assert_eq!(passed, Ok(Decision::Pass(PassReason::Gateway)));
    // Injected with something that is none.
    let passed = decide(&pod_with(&[], injected, "", &[AMBIENT_LABEL]), &with_ztunnel());
    assert_eq!(passed, Ok(Decision::Pass(PassReason::NoProxyContainer)));
}

#[test]
fn a_namespace_of_ambient_mode_asks_nothing_of_a_node_without_ztunnel() {
    let node = NodeSettings::default();
    let passed = decide(&pod(&[], &[AMBIENT_LABEL]), &node);
    assert_eq!(passed, Ok(Decision::Pass(PassReason::NotInjected)));
    let excluded = NodeSettings { excluded_namespaces: ["shop".to_owned()].into(), ..with_ztunnel() };
    let passed = decide(&pod(&[], &[AMBIENT_LABEL]), &excluded);
    assert_eq!(passed, Ok(Decision::Pass(PassReason::NamespaceExcluded)));
}

#[test]
fn it_is_told_whose_label_it_was() {
    let told = |pod: &Pod, setting| Origins::of(pod, &with_ztunnel()).get(setting).map(Origin::to_string);
    let told = |pod: &Pod, setting| told(pod, setting).unwrap();
    let by_namespace = pod(&[], &[AMBIENT_LABEL]);
    for setting in [Setting::IncludedRanges, Setting::DualStack] {
        let wanted = "label istio.io/dataplane-mode=\"ambient\" of namespace shop";
        assert_eq!(told(&by_namespace, setting), wanted);
    }
    let own = pod(&[AMBIENT_LABEL], &[NODE]);
    assert_eq!(told(&own, Setting::IncludedRanges), "label istio.io/dataplane-mode=\"ambient\"");
    let node = pod(&[], &[NODE]);
    assert_eq!(told(&node, Setting::DualStack), "label veer.dev/proxy=\"node\" of namespace shop");
    assert_eq!(told(&pod(&[NODE], &[]), Setting::Driver), "label veer.dev/proxy=\"node\"");
}

fn label(name: &'static str) -> impl Strategy<Value = Option<String>> {
    let values = prop_oneof![Just("node"), Just("ambient"), Just("none"), Just("sidecar"), Just("")];
    proptest::option::of(values.prop_map(move |value| format!("{name}: '{value}'")))
}

proptest! {
    /// What a source may decide without knowing the namespace is decided the same in any.
    #[test]
    fn a_pod_that_does_not_depend_on_its_namespace_is_the_same_in_any(
        labels in [label("veer.dev/proxy"), label("istio.io/dataplane-mode")],
        has_sidecar: bool, is_injected: bool, uses_host: bool, ztunnel: bool,
    ) {
        let labels: Vec<&str> = labels.iter().flatten().map(String::as_str).collect();
        let metadata = if is_injected { ", annotations: {sidecar.istio.io/status: '{}'}" } else { "" };
        let sidecar = if has_sidecar { ", initContainers: [{name: istio-proxy}]" } else { "" };
        let spec = format!("{sidecar}, hostNetwork: {uses_host}");
        let node = NodeSettings { ztunnel, ..NodeSettings::default() };
        let in_each = [&[][..], &[NODE], &[AMBIENT_LABEL], &[NODE, AMBIENT_LABEL]].map(|namespace| {
            let pod = pod_with(&labels, metadata, &spec, namespace);
            let decided = decide(&pod, &node);
            let captured = matches!(decided, Ok(Decision::Capture(_)));
            (pod.depends_on_its_namespace(), decided, captured.then(|| Origins::of(&pod, &node)))
        });
        let [(depends, first, origins), others @ ..] = in_each;
        for (other, decided, told) in others {
            prop_assert_eq!(other, depends, "it is the pod's to depend");
            if !depends {
                prop_assert_eq!(&decided, &first);
                prop_assert_eq!(&told, &origins);
            }
        }
        // And it asks for nothing that it does not need.
        let plain = labels.is_empty() && !has_sidecar && !uses_host;
        prop_assert!(depends || !plain);
    }
}
