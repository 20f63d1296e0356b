//! From a pod's manifest to its sockets, by the real plugin: what a runtime executes for ADD, what the agent makes
//! of the pod, and where its connections end.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests panic as tests do")]

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::{Value, json};
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::cni::{Attachment, NetworkList, PluginError, Runtime};
use veer_tests::launch::{Identity, Launch, veer_binary};
use veer_tests::manifest::Manifest;
use veer_tests::mesh::{
    APP, INBOUND, Listeners, Mesh, OUTBOUND, connect, dial, dial_from_world, dual_stack, tcp,
};
use veer_tests::pod::{REMOTE_V4, REMOTE_V6, TestPod, World};
use veer_tests::socket_maker::Maker;

const REMOTES: [IpAddr; 2] = [IpAddr::V4(REMOTE_V4), IpAddr::V6(REMOTE_V6)];

/// A node whose agent has further arguments, and a pod that nobody has told it of.
fn node(arguments: &[&str]) -> Mesh {
    let cgroup = Cgroup::new().unwrap();
    let agent = Agent::start_with(&cgroup, Launch::new(), arguments).unwrap();
    let world = World::new().unwrap();
    let pod = TestPod::new(&world, &cgroup, "pod").unwrap();
    Mesh { agent, pod, world, cgroup }
}

/// What the plugin before veer's has made.
fn previous(pod: &TestPod) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": pod.netns().path()}],
        "ips": [
            {"address": format!("{}/24", pod.v4()), "gateway": "10.77.0.1", "interface": 0},
            {"address": format!("{}/64", pod.v6()), "interface": 0},
        ],
        "dns": {},
    })
}

/// The end of a conflist, where veer's plugin is, with these keys beside its own.
fn network(mesh: &Mesh, keys: &Value) -> NetworkList {
    let mut plugin = json!({
        "type": "veer-cni",
        "runDir": mesh.agent.run_dir(),
        "prevResult": previous(&mesh.pod),
    });
    plugin.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    serde_json::from_value(json!({"cniVersion": "1.0.0", "name": "test", "plugins": [plugin]})).unwrap()
}

/// The pod as the runtime names it.
fn attachment(pod: &TestPod) -> Attachment {
    let arguments = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", "test"),
        ("K8S_POD_NAME", pod.name()),
        ("K8S_POD_INFRA_CONTAINER_ID", pod.netns().name()),
    ];
    Attachment {
        container_id: pod.netns().name().to_owned(),
        netns: pod.netns().path(),
        interface: "eth0".to_owned(),
        arguments: arguments.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
    }
}

fn with_runtime<T>(mesh: &Mesh, act: impl FnOnce(&Runtime<'_>, &Attachment) -> T) -> T {
    let plugin = veer_binary("VEER_CNI_BIN", "veer-cni").unwrap();
    let runtime = Runtime::new(mesh.world.netns(), &[plugin.parent().unwrap()]);
    act(&runtime, &attachment(&mesh.pod))
}

/// ADD of the pod with this manifest, if it has one yet, by the plugin with these keys.
fn add_with(mesh: &Mesh, manifest: Option<&Manifest>, keys: &Value) -> anyhow::Result<()> {
    if let Some(manifest) = manifest {
        mesh.agent.write_manifest(manifest).unwrap();
    }
    let added = with_runtime(mesh, |runtime, attachment| runtime.add(&network(mesh, keys), attachment))?;
    assert_eq!(added.result, previous(&mesh.pod), "what was before is handed on");
    Ok(())
}

fn add(mesh: &Mesh, manifest: &Manifest) -> anyhow::Result<()> {
    add_with(mesh, Some(manifest), &json!({}))
}

/// Names of the pods that are enrolled.
fn enrolled(mesh: &Mesh) -> Vec<String> {
    let pods = mesh.agent.json(&["pods"]).unwrap();
    pods.as_array().unwrap().iter().map(|pod| pod["name"].as_str().unwrap().to_owned()).collect()
}

/// A proxy that this maker makes, an app, and servers outside.
fn listeners(mesh: &Mesh, proxy: &Maker) -> Listeners {
    let mut listeners = Listeners::default();
    for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
        listeners.add("outbound", proxy, (any, OUTBOUND)).unwrap();
        listeners.add("inbound", proxy, (any, INBOUND)).unwrap();
        listeners.add("app", mesh.pod.app(), (any, APP)).unwrap();
    }
    for remote in REMOTES {
        listeners.add_in_world("outside", &mesh.world, (remote, 80)).unwrap();
    }
    listeners
}

/// Where the app's connections end, the network's, and the proxy's to its own pod, for each family.
#[track_caller]
fn ends(mesh: &Mesh, proxy: &Maker, listeners: &Listeners) -> [[&'static str; 3]; 2] {
    let own = [IpAddr::from(mesh.pod.v4()), mesh.pod.v6().into()];
    [0, 1].map(|family| {
        let own = SocketAddr::new(own[family], APP);
        let out = dial(mesh.pod.app(), (REMOTES[family], 80), listeners).unwrap().0.at;
        let into = dial_from_world(&mesh.world, own, listeners).unwrap().0.at;
        let within = dial(proxy, own, listeners).unwrap().0.at;
        assert_eq!(dial(proxy, (REMOTES[family], 80), listeners).unwrap().0.at, "outside");
        [out, into, within]
    })
}

const CAPTURED: [[&str; 3]; 2] = [["outbound", "inbound", "inbound"]; 2];
const UNTOUCHED: [[&str; 3]; 2] = [["outside", "app", "app"]; 2];

/// ADD succeeds, and the pod is as if veer was not there.
#[track_caller]
fn assert_left_alone(change: impl FnOnce(Manifest) -> Manifest, reason: &str) {
    let mesh = node(&[]);
    add(&mesh, &change(dual_stack(&mesh.pod))).unwrap();
    let proxy = mesh.pod.proxy();
    assert_eq!(ends(&mesh, proxy, &listeners(&mesh, proxy)), UNTOUCHED);
    assert!(enrolled(&mesh).is_empty());
    let explained = mesh.agent.json(&["explain", "test/pod", "--to=192.0.2.1:80"]).unwrap();
    assert_eq!(explained["reason"], reason, "{explained}");
    // A runtime detaches it like any other.
    with_runtime(&mesh, |runtime, attachment| {
        runtime.del(&network(&mesh, &json!({})), attachment, Some(&previous(&mesh.pod)))
    })
    .unwrap();
}

#[test]
fn a_pod_of_the_mesh_is_captured_from_add_to_del() {
    let mesh = node(&[]);
    let proxy = mesh.pod.proxy();
    let listeners = listeners(&mesh, proxy);
    assert_eq!(ends(&mesh, proxy, &listeners), UNTOUCHED);
    add(&mesh, &dual_stack(&mesh.pod)).unwrap();
    assert_eq!(ends(&mesh, proxy, &listeners), CAPTURED);
    let (network, result) = (network(&mesh, &json!({})), previous(&mesh.pod));
    with_runtime(&mesh, |runtime, attachment| {
        runtime.check(&network, attachment, &result).unwrap();
        runtime.del(&network, attachment, Some(&result)).unwrap();
    });
    assert_eq!(ends(&mesh, proxy, &listeners), UNTOUCHED);
    assert!(enrolled(&mesh).is_empty());
}

#[test]
fn a_native_sidecar_is_captured_and_is_who_its_init_container_says() {
    let mesh = node(&[]);
    let manifest = dual_stack(&mesh.pod).with_init_container("istio-validation").with_native_sidecar();
    add(&mesh, &manifest.with_proxy_user(2102)).unwrap();
    // What runs before the sidecar is captured, too, and so is refused.
    let to = SocketAddr::new(REMOTES[0], 80);
    let before = connect(&tcp(mesh.pod.root(), to).unwrap(), to).unwrap_err();
    assert_eq!(before.kind(), ErrorKind::ConnectionRefused);

    let proxy = mesh.pod.maker(Identity::new(2102, 1337)).unwrap();
    let listeners = listeners(&mesh, &proxy);
    assert_eq!(ends(&mesh, &proxy, &listeners), CAPTURED);
    // A further init container, after the sidecar: root, as most are, or with what is Istio's default uid.
    let usual = mesh.pod.maker(Identity::new(1337, 1000)).unwrap();
    for later in [mesh.pod.root(), &usual] {
        assert_eq!(dial(later, to, &listeners).unwrap().0.at, "outbound");
    }
}

#[test]
fn a_native_sidecar_is_the_proxy_by_its_container_before_any_app_runs() {
    let mesh = node(&["--proxy-identity=container", "--backend=ebpf"]);
    add(&mesh, &dual_stack(&mesh.pod).with_native_sidecar()).unwrap();
    let containers = ["istio-proxy", "app"].map(|name| mesh.pod.cgroup().child(name).unwrap());
    let [proxy, app] =
        [0, 1].map(|n| Maker::start(mesh.pod.netns(), &containers[n], Identity::proxy()).unwrap());
    let listeners = listeners(&mesh, &proxy);
    assert_eq!(ends(&mesh, &proxy, &listeners), CAPTURED);
    for remote in REMOTES {
        assert_eq!(dial(&app, (remote, 80), &listeners).unwrap().0.at, "outbound");
    }
}

#[test]
fn a_gateway_is_left_alone() {
    assert_left_alone(|manifest| manifest.with_proxy_args(&["proxy", "router", "--domain"]), "gateway");
    assert_left_alone(
        |manifest| manifest.with_proxy_args(&["proxy", "router"]).with_native_sidecar(),
        "gateway",
    );
}

#[test]
fn a_proxy_whose_arguments_are_a_wrappers_is_a_sidecar() {
    let mesh = node(&[]);
    add(&mesh, &dual_stack(&mesh.pod).with_proxy_args(&["/start.sh", "proxy", "router"])).unwrap();
    let proxy = mesh.pod.proxy();
    assert_eq!(ends(&mesh, proxy, &listeners(&mesh, proxy)), CAPTURED);
}

#[test]
fn a_proxyless_pod_is_left_alone() {
    for value in ["true", "1", "T"] {
        assert_left_alone(|manifest| manifest.with_proxy_env("DISABLE_ENVOY", value), "envoy-disabled");
    }
}

#[test]
fn a_disable_envoy_that_is_no_boolean_counts_as_false_and_is_said() {
    let mesh = node(&[]);
    add(&mesh, &dual_stack(&mesh.pod).with_proxy_env("DISABLE_ENVOY", "yes")).unwrap();
    let proxy = mesh.pod.proxy();
    assert_eq!(ends(&mesh, proxy, &listeners(&mesh, proxy)), CAPTURED);
    let log = mesh.agent.log();
    assert!(log.contains("DISABLE_ENVOY") && log.contains("yes"), "{log}");
}

#[test]
fn mode_none_is_left_alone() {
    let mode = "sidecar.istio.io/interceptionMode";
    assert_left_alone(|manifest| manifest.with_annotation(mode, "NONE"), "mode-none");
}

#[test]
fn who_is_not_in_the_mesh_is_left_alone() {
    let status = "sidecar.istio.io/status";
    assert_left_alone(|manifest| manifest.without_annotation(status), "not-injected");
    assert_left_alone(|manifest| manifest.with_label("sidecar.istio.io/inject", "false"), "inject-false");
}

#[test]
fn a_pod_that_istio_init_redirects_is_left_to_it() {
    assert_left_alone(|manifest| manifest.with_init_container("istio-init"), "istio-init-present");
}

#[test]
fn a_pod_that_the_agent_does_not_know_yet_is_tried_again() {
    let mesh = node(&[]);
    let error = add_with(&mesh, None, &json!({})).unwrap_err();
    let told = error.downcast_ref::<PluginError>().unwrap();
    assert!(told.code == 11 && told.msg.contains("pod test/pod is not known"), "{told}");
    add(&mesh, &dual_stack(&mesh.pod)).unwrap();
    let proxy = mesh.pod.proxy();
    assert_eq!(ends(&mesh, proxy, &listeners(&mesh, proxy)), CAPTURED);
}

#[test]
fn an_excluded_namespace_is_left_alone_whether_agent_or_plugin_excludes_it() {
    let by_plugin = json!({"excludeNamespaces": ["test"]});
    for (arguments, keys) in [(&["--exclude-namespaces=test"][..], &json!({})), (&[], &by_plugin)] {
        let mesh = node(arguments);
        // Nobody need know the pod for that.
        add_with(&mesh, None, keys).unwrap();
        let proxy = mesh.pod.proxy();
        assert_eq!(ends(&mesh, proxy, &listeners(&mesh, proxy)), UNTOUCHED);
        assert!(enrolled(&mesh).is_empty());
    }
}

#[test]
fn a_wrong_annotation_fails_add_with_its_name_its_value_and_what_would_be_right() {
    let mesh = node(&[]);
    let manifest = dual_stack(&mesh.pod).with_traffic("excludeOutboundPorts", "80,http");
    let error = add(&mesh, &manifest).unwrap_err();
    let told = error.downcast_ref::<PluginError>().unwrap();
    assert_eq!(told.code, 100, "{told}");
    for part in ["pod test/pod", "traffic.sidecar.istio.io/excludeOutboundPorts", "\"http\"", "80,http"] {
        assert!(told.msg.contains(part), "{part}: {told}");
    }
    assert!(enrolled(&mesh).is_empty());
    // And when the annotation is right, the runtime's next try succeeds.
    add(&mesh, &dual_stack(&mesh.pod).with_traffic("excludeOutboundPorts", "81")).unwrap();
    let proxy = mesh.pod.proxy();
    assert_eq!(ends(&mesh, proxy, &listeners(&mesh, proxy)), CAPTURED);
}
