//! What is told of such pods, and what is refused.

use veer_tests::ambient;
use veer_tests::launch::Launch;
use veer_tests::mesh::Mesh;
use veer_tests::scratch;

use super::{Scene, failed};

#[test]
fn the_commands_tell_who_drives_it_and_by_which_rule() {
    let scene = Scene::new();
    let pod = scene.agent.json(&["pods", "test/pod"]).unwrap();
    assert_eq!(pod.get("driver").and_then(|driver| driver.as_str()), Some("ztunnel"), "{pod}");
    let explained = |question: &[&str]| {
        let report = scene.agent.json(&[&["explain", "test/pod"], question].concat()).unwrap();
        let text = |key| report.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
        (text("rule"), text("action"))
    };
    for (question, rule, action) in [
        (["--to", "192.0.2.1:80"].as_slice(), "all-outbound", "to-outbound"),
        (&["--to", "192.0.2.1:80", "--mark", "0x539"], "proxy-mark", "direct"),
        (&["--to", "192.0.2.1:80", "--as", "1337:1337"], "all-outbound", "to-outbound"),
        (&["--to", "192.0.2.1:53", "--protocol", "udp"], "dns", "to-dns"),
        (&["--to", "127.0.0.1:53", "--protocol", "udp"], "over-loopback", "direct"),
        (&["--from", "192.0.2.9", "--port", "15021"], "all-inbound", "to-inbound"),
        (&["--from", "192.0.2.9", "--port", "15008"], "tunnel-port", "direct"),
        (&["--from", "10.77.0.1", "--port", "8080"], "from-node", "direct"),
    ] {
        assert_eq!(explained(question), (rule.to_owned(), action.to_owned()), "{question:?}");
    }
}

#[test]
fn an_annotation_that_is_no_boolean_is_named() {
    let scene = Scene::new();
    let manifest = ambient::manifest(&scene.client).with_annotation("ambient.istio.io/dns-capture", "yes");
    scene.agent.write_manifest(&manifest).unwrap();
    let told = failed(scene.agent.add(&scene.client).unwrap());
    assert!(told.contains("annotation ambient.istio.io/dns-capture: \"yes\" is not true or false"), "{told}");
}

#[test]
fn rules_of_nftables_do_not_do_it_and_say_so() {
    let directory = scratch::directory().unwrap();
    let socket = format!("--ztunnel-socket={}", directory.path().join("ztunnel.sock").display());
    let mesh = Mesh::on_node(Launch::new(), &["--backend=nftables", &socket]).unwrap();
    mesh.agent.write_manifest(&ambient::manifest(&mesh.pod)).unwrap();
    let told = failed(mesh.agent.add(&mesh.pod).unwrap());
    assert!(told.contains("istio.io/dataplane-mode") && told.contains("eBPF"), "{told}");
}
