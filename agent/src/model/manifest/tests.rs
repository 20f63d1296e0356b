use std::fmt::Write as _;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const YAML: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: cart-0
  namespace: shop
  uid: 7c0c5c1e-0c5e-4d8e-8a39-0d1b7b1f0a11
  labels: {app: cart}
  annotations:
    sidecar.istio.io/status: '{"revision":"default"}'
    traffic.sidecar.istio.io/excludeInboundPorts: 8080
    traffic.sidecar.istio.io/includeInboundPorts:
spec:
  hostUsers: false
  nodeName: somewhere
  volumes: [{name: tmp, emptyDir: {}}]
  initContainers:
  - name: istio-proxy
    image: proxyv2
    restartPolicy: Always
    args: [proxy, sidecar]
    env:
    - {name: ISTIO_META_DNS_CAPTURE, value: "true"}
    - name: POD_NAME
      valueFrom: {fieldRef: {fieldPath: metadata.name}}
    securityContext: {runAsUser: 1337, runAsGroup: 1338, privileged: false}
  containers:
  - name: app
    env:
    args: null
    securityContext:
"#;

fn error(text: &str) -> String {
    Pod::from_manifest(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn a_pod_is_read_from_yaml_and_unknown_fields_are_nothing() {
    let pod = Pod::from_manifest(YAML.as_bytes()).unwrap();
    assert_eq!(pod.full_name(), "shop/cart-0");
    assert_eq!(pod.metadata.uid.as_deref(), Some("7c0c5c1e-0c5e-4d8e-8a39-0d1b7b1f0a11"));
    assert_eq!(pod.metadata.labels.get("app").unwrap(), "cart");
    assert_eq!(pod.metadata.annotations.len(), 3);
    assert_eq!(pod.spec.host_users, Some(false));
    assert!(!pod.spec.host_network);
    let proxy = pod.container("istio-proxy").unwrap();
    assert_eq!(proxy.args, ["proxy", "sidecar"]);
    assert_eq!(proxy.security_context.run_as_user, Some(1337));
    assert_eq!(proxy.security_context.run_as_group, Some(1338));
    let env: Vec<_> = proxy.env.iter().map(|v| (v.name.as_str(), v.value.as_str())).collect();
    assert_eq!(env, [("ISTIO_META_DNS_CAPTURE", "true"), ("POD_NAME", "")]);
    assert_eq!(*pod.container("app").unwrap(), Container { name: "app".into(), ..Container::default() });
    assert_eq!(pod.container("other"), None);
}

#[test]
fn an_annotation_may_be_an_unquoted_number_or_nothing() {
    let pod = Pod::from_manifest(YAML.as_bytes()).unwrap();
    let annotation = |name: &str| pod.metadata.annotations.get(name).map(String::as_str);
    assert_eq!(annotation("traffic.sidecar.istio.io/excludeInboundPorts"), Some("8080"));
    assert_eq!(annotation("traffic.sidecar.istio.io/includeInboundPorts"), Some(""));
}

#[test]
fn json_and_yaml_of_one_pod_are_the_same() {
    let value: serde_json::Value = serde_yaml_ng::from_str(YAML).unwrap();
    let mut json = serde_json::to_string_pretty(&value).unwrap();
    json = json.replace("8080", "\"8080\"").replace("  ", "\t");
    assert_eq!(Pod::from_manifest(json.as_bytes()).unwrap(), Pod::from_manifest(YAML.as_bytes()).unwrap());
}

#[test]
fn json_that_is_no_yaml_and_yaml_that_looks_like_json_are_both_read() {
    let json =
        r#" {"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"smile":"\ud83d\ude00"}}}"#;
    let pod = Pod::from_manifest(json.as_bytes()).unwrap();
    assert_eq!(pod.metadata.labels.get("smile").unwrap(), "😀");
    let flow = "{apiVersion: v1, kind: Pod, metadata: {name: a}}";
    assert_eq!(Pod::from_manifest(flow.as_bytes()).unwrap().full_name(), "default/a");
}

#[test]
fn without_a_namespace_it_is_default() {
    for text in [
        "{apiVersion: v1, kind: Pod, metadata: {name: a}}",
        "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: }}",
        "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: ''}}",
    ] {
        assert_eq!(Pod::from_manifest(text.as_bytes()).unwrap().metadata.namespace, "default", "{text}");
    }
}

#[test]
fn another_kind_of_object_is_named() {
    for (text, says) in [
        ("{apiVersion: apps/v1, kind: Deployment}", r#"apiVersion "apps/v1" and kind "Deployment""#),
        ("{apiVersion: v1, kind: List, items: []}", r#"kind "List""#),
        ("{apiVersion: v2, kind: Pod}", r#"apiVersion "v2""#),
        ("{}", r#"apiVersion "" and kind """#),
    ] {
        let error = error(text);
        assert!(error.contains(says) && error.contains(r#"a pod's are "v1" and "Pod""#), "{error}");
    }
}

#[test]
fn a_name_that_no_pod_has_is_refused() {
    let long = "a".repeat(254);
    for name in ["''", "A", "a_b", "'a/b'", "\"a\\nb\"", "../a", long.as_str()] {
        let error = error(&format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}}}"));
        assert!(error.starts_with("metadata.name "), "{error}");
        assert!(error.len() < 400, "{error}");
    }
    let namespace = "a".repeat(64);
    let error =
        error(&format!("{{apiVersion: v1, kind: Pod, metadata: {{name: a, namespace: {namespace}}}}}"));
    assert!(error.starts_with("metadata.namespace "), "{error}");
}

#[test]
fn what_is_not_a_manifest_is_an_error_and_says_where() {
    for text in [
        "",
        "\0",
        "- a",
        "just text",
        "a: b: c",
        "{\"apiVersion\": \"v1\",",
        "apiVersion: v1\nkind: Pod\nspec: {containers: 7}",
        "apiVersion: v1\nkind: Pod\nmetadata: {annotations: [a]}",
        "apiVersion: v1\nkind: Pod\nspec: {hostNetwork: perhaps}",
        "apiVersion: v1\nkind: Pod\n---\napiVersion: v1\nkind: Pod",
        "apiVersion: v1\nkind: Pod\nkind: Pod",
    ] {
        let error = error(text);
        assert!(error.starts_with("manifest "), "{text:?}: {error}");
    }
    let wrong_type = error("apiVersion: v1\nkind: Pod\nspec: {hostNetwork: perhaps}");
    assert!(wrong_type.contains("hostNetwork") && wrong_type.contains("line 3"), "{wrong_type}");
    assert!(Pod::from_manifest(b"\xff\xfe").is_err());
}

#[test]
fn a_manifest_that_is_too_long_is_not_even_looked_at() {
    let long = vec![b' '; 10 << 20];
    assert!(matches!(Pod::from_manifest(&long), Err(ManifestError::TooLong)));
}

/// Files of the largest size that try to cost time, memory or stack, with the pod's fields and without.
#[test]
fn a_hostile_manifest_is_an_error_in_bounded_time() {
    let mut laughs = String::from("a0: &a0 [lol,lol,lol,lol,lol,lol,lol,lol,lol]\n");
    for level in 1..30 {
        let before = format!("*a{}", level - 1);
        writeln!(laughs, "a{level}: &a{level} [{}]", [before.as_str(); 9].join(",")).unwrap();
    }
    let last = MAX_MANIFEST_BYTES - 200;
    let within =
        |text: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {{containers: {text}");
    let hostile = [
        laughs.clone(),
        format!("{laughs}spec: {{containers: *a29}}\n"),
        "[".repeat(last),
        "{".repeat(last),
        "{a: ".repeat(last / 4),
        "{\"a\":".repeat(last / 5),
        "- ".repeat(last / 2),
        "? ".repeat(last / 2),
        "&a ".repeat(last / 3),
        "!!a ".repeat(last / 4),
        "\"".repeat(last),
        "#".repeat(last),
        "a: b\n ".repeat(last / 6),
        within(&"[".repeat(last)),
        within(&"{a: ".repeat(last / 4)),
        within(&"&a [*a, ".repeat(last / 8)),
        "[".repeat(512) + &"a, ".repeat(last / 3 - 512),
        "[".repeat(500) + &"[a]: ".repeat(last / 5 - 500),
        "a: ".repeat(last / 3),
        " \n".repeat(last / 2),
        "- \n".repeat(last / 3),
        format!("{} a", "- ".repeat(last / 2)),
        (0..700).map(|depth| " ".repeat(depth) + "a:\n").collect(),
        "&a a: *a\n".repeat(last / 9),
        "%TAG ! !\n".repeat(last / 9),
    ];
    for text in hostile {
        let start = Instant::now();
        let result = Pod::from_manifest(text.as_bytes());
        assert!(result.is_err(), "{text:.60}");
        assert!(start.elapsed() < Duration::from_secs(15), "{:?} for {text:.60}", start.elapsed());
    }
}

proptest! {
    #[test]
    fn any_bytes_give_a_pod_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(Pod::from_manifest(&bytes));
    }

    #[test]
    fn any_near_yaml_gives_a_pod_or_an_error(text in "[-?:,{}\\[\\]&*!|>'\"%@ \\nab0~#]{0,80}") {
        drop(Pod::from_manifest(text.as_bytes()));
        let within = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  {text}\n");
        drop(Pod::from_manifest(within.as_bytes()));
    }

    #[test]
    fn every_pod_that_json_can_say_is_read(
        name in "[a-z0-9]{1,20}",
        annotations in proptest::collection::btree_map(".{0,10}", ".{0,20}", 0..4),
        args in proptest::collection::vec(".{0,10}", 0..4),
        uid in proptest::option::of(any::<i64>()),
    ) {
        let json = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"containers": [{"name": "x", "args": args, "securityContext": {"runAsUser": uid}}]},
        });
        let pod = Pod::from_manifest(json.to_string().as_bytes()).unwrap();
        prop_assert_eq!(&pod.metadata.name, &name);
        prop_assert_eq!(&pod.metadata.annotations, &annotations);
        let container = pod.container("x").unwrap();
        prop_assert_eq!(&container.args, &args);
        prop_assert_eq!(container.security_context.run_as_user, uid);
    }
}

#[test]
fn of_a_pod_that_the_api_server_tells_of_only_what_decides_is_kept() {
    let manifest = r#"{"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "cart", "annotations": {
            "sidecar.istio.io/status": "{}", "istio.io/reroute-virtual-interfaces": "net1", "veer.dev/a": "b",
            "kubectl.kubernetes.io/last-applied-configuration": "all of it", "notistio.io/c": "d", "bare": "e"}},
        "spec": {"containers": [
            {"name": "app", "args": ["--all"], "env": [{"name": "SECRET", "value": "s"}], "securityContext": {"runAsUser": 7}},
            {"name": "istio-proxy", "args": ["proxy", "sidecar"], "env": [{"name": "A", "value": "1"}]}],
          "initContainers": [{"name": "istio-init", "args": ["-p"]}]}}"#;
    let all = Pod::from_manifest(manifest.as_bytes()).unwrap();
    let kept = Pod::observed(all.metadata.clone(), all.spec.clone());
    let annotations: Vec<&str> = kept.metadata.annotations.keys().map(String::as_str).collect();
    assert_eq!(annotations, ["istio.io/reroute-virtual-interfaces", "sidecar.istio.io/status", "veer.dev/a"]);
    let named = |name: &str| Container { name: name.to_owned(), ..Container::default() };
    assert_eq!(kept.container("app"), Some(&named("app")));
    assert_eq!(kept.container("istio-init"), Some(&named("istio-init")));
    assert_eq!(kept.container("istio-proxy"), all.container("istio-proxy"));
}

#[test]
fn what_cannot_name_a_pod_becomes_no_part_of_a_path() {
    assert!(could_name_a_pod("shop", "cart-7d4.x"));
    for (namespace, name) in
        [("shop", "../nodes"), ("shop", ""), ("", "cart"), ("a/b", "cart"), ("shop", "a?b")]
    {
        assert!(!could_name_a_pod(namespace, name), "{namespace} {name}");
    }
}

#[test]
fn a_namespaces_manifest_is_its_name_and_what_it_asks_for() {
    let read = |text: &str| Manifest::read(text.as_bytes()).map_err(|error| error.to_string());
    let labels = NamespaceLabels { node_proxy: true, ambient: false };
    let text = "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {veer.dev/proxy: node, a: b}}, \
                spec: {finalizers: [kubernetes]}, status: {phase: Active}}";
    assert_eq!(read(text), Ok(Manifest::Namespace("shop".to_owned(), labels)));
    let none = read("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}");
    assert_eq!(none, Ok(Manifest::Namespace("shop".to_owned(), NamespaceLabels::default())));
    for (text, problem) in [
        ("{apiVersion: v1, kind: Namespace}", "metadata.name \"\" is not 1 to 63"),
        ("{apiVersion: v2, kind: Namespace, metadata: {name: a}}", "manifest has apiVersion \"v2\""),
        (
            "{apiVersion: v1, kind: Node, metadata: {name: a}}",
            "manifest has apiVersion \"v1\" and kind \"Node\"",
        ),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.starts_with(problem), "{error}");
    }
    assert!(matches!(read("{apiVersion: v1, kind: Pod, metadata: {name: a}}"), Ok(Manifest::Pod(_))));
}
