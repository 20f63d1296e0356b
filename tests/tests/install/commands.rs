//! `veer install-cni` and `veer uninstall-cni`.

use std::os::unix::fs::{PermissionsExt, chown};

use super::*;

#[test]
fn a_list_gets_the_plugin_keeps_mode_and_owner_and_is_the_same_again_in_the_end() {
    let node = Node::new([("10-calico.conflist", CALICO)]);
    let path = node.conf("10-calico.conflist");
    chown(&path, Some(1234), Some(1234)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let before = node.files();

    let done = node.done("install-cni", &[]);
    assert_eq!(done["mode"], "chained");
    assert_eq!(done["changed"].as_array().unwrap().len(), 2, "{done}");
    assert_eq!(types(&node.read("10-calico.conflist")), ["calico", "portmap", "veer-cni"]);
    let list: Value = serde_json::from_str(&node.read("10-calico.conflist")).unwrap();
    assert_eq!(list["plugins"][2]["runDir"], node.path("run").to_str().unwrap());
    let (_, mode, owner) = node.files()["10-calico.conflist"];
    assert_eq!((mode & 0o7777, owner), (0o640, 1234));
    assert_eq!(fs::read(node.plugin()).unwrap(), fs::read(plugin()).unwrap());

    assert_eq!(node.done("install-cni", &[])["changed"], Value::Array(Vec::new()), "the second time");
    let other = node.done("install-cni", &["--exclude-namespaces=a,b", "--log-level=debug"]);
    assert_eq!(other["changed"].as_array().unwrap().len(), 1);
    assert!(node.read("10-calico.conflist").contains(r#""logLevel":"debug","excludeNamespaces":["a","b"]"#));

    let removal = node.done("uninstall-cni", &[]);
    assert_eq!(removal["pluginRemoved"], true);
    assert_eq!(node.files(), before);
    assert!(!node.plugin().exists());
    let text = String::from_utf8(node.run("uninstall-cni", &[]).stdout).unwrap();
    assert!(text.starts_with("veer-cni is neither in "), "{text}");
}

#[test]
fn one_plugin_becomes_a_list_that_is_called_first_and_comes_back_as_it_was() {
    for (mode, file) in [("auto", "00-00-veer.conflist"), ("chained", "00-multus.conflist")] {
        let node = Node::new([("00-multus.conf", TKE), ("10-other.conflist", CALICO)]);
        fs::set_permissions(node.conf("00-multus.conf"), fs::Permissions::from_mode(0o600)).unwrap();
        let before = node.files();
        node.done("install-cni", &[&format!("--cni-install={mode}")]);
        let (list, mode, _) = node.files()[file].clone();
        assert_eq!(mode & 0o7777, 0o600, "as closed as the vendor's");
        let list: Value = serde_json::from_slice(&list).unwrap();
        assert_eq!((&list["name"], &list["cniVersion"]), (&"multus-cni".into(), &"0.3.1".into()));
        assert_eq!(types(&list.to_string()), ["multus", "veer-cni"]);
        node.done("uninstall-cni", &[]);
        assert_eq!(node.files(), before);
    }
}

#[test]
fn libcnis_directory_is_made_and_goes() {
    let node = Node::new([("10-calico.conflist", CALICO)]);
    let before = node.files();
    let done = node.done("install-cni", &["--cni-install=dropin"]);
    assert_eq!(done["file"], "k8s-pod-network/90-veer.conf");
    assert!(node.read("k8s-pod-network/90-veer.conf").contains("veer-cni"));
    assert_eq!(node.files(), before);
    node.done("uninstall-cni", &[]);
    assert!(!node.conf("k8s-pod-network").exists());
}

#[test]
fn what_is_not_there_yet_is_69_and_what_cannot_be_is_70() {
    let code = |node: &Node, more: &[&str]| {
        let output = node.run("install-cni", more);
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (empty, says) = code(&Node::new([]), &[]);
    assert!(empty == 69 && says.contains("no network to be chained to yet"), "{says}");
    let half = Node::new([("10-calico.conflist", &CALICO[..40])]);
    assert_eq!(code(&half, &[]).0, 69);
    assert_eq!(half.read("10-calico.conflist"), CALICO[..40]);
    let old = Node::new([("1.conflist", &CALICO.replace("0.3.1", "0.2.0"))]);
    let (refused, says) = code(&old, &[]);
    assert!(refused == 70 && says.contains("is of CNI version 0.2.0"), "{says}");
    let (wrong, says) = code(&old, &["--cni-install=off", "--cni-primary=a/b"]);
    assert!(wrong == 64 && says.contains("--cni-install") && says.contains("--cni-primary"), "{says}");
    let missing = Node::new([("10-calico.conflist", CALICO)]);
    let (refused, says) = code(&missing, &["--cni-plugin=/nowhere/veer-cni"]);
    assert!(refused == 70 && says.contains("/nowhere/veer-cni"), "{says}");
    assert_eq!(missing.read("10-calico.conflist"), CALICO, "nothing calls a plugin that is not there");
}

#[test]
fn a_dry_run_changes_nothing() {
    let node = Node::new([("10-calico.conflist", CALICO)]);
    let done = node.done("install-cni", &["--dry-run"]);
    assert_eq!(done["changed"], serde_json::json!(["10-calico.conflist"]));
    assert_eq!(node.read("10-calico.conflist"), CALICO);
    assert!(!node.plugin().exists());
    node.done("install-cni", &[]);
    let installed = node.files();
    let removal = node.done("uninstall-cni", &["--dry-run"]);
    assert_eq!((&removal["restored"], &removal["pluginRemoved"]), (&done["changed"], &true.into()));
    assert_eq!(node.files(), installed);
}

#[test]
fn the_plugin_stays_until_the_last_pod_is_gone_that_was_attached_with_it() {
    let node = Node::new([("10-calico.conflist", CALICO)]);
    node.done("install-cni", &[]);
    // libcni's note of an attachment, with the list as it was.
    let list = base64(node.read("10-calico.conflist").as_bytes());
    let note = node.path("cache/results/k8s-pod-network-c0ffee-eth0");
    fs::create_dir(node.path("cache/results")).unwrap();
    let arguments = r#"[["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","cart"]]"#;
    fs::write(&note, format!(r#"{{"kind":"cniCacheV1","containerId":"c0ffee","config":"{list}","ifName":"eth0","networkName":"k8s-pod-network","cniArgs":{arguments}}}"#)).unwrap();
    let removal = node.done("uninstall-cni", &[]);
    assert_eq!(removal["pluginRemoved"], false);
    assert!(removal["pluginStays"].as_str().unwrap().contains("shop/cart"), "{removal}");
    assert_eq!(node.read("10-calico.conflist"), CALICO);
    // What a runtime does when the pod goes: without an agent it succeeds.
    assert!(del(&node).status.success());
    fs::remove_file(&note).unwrap();
    assert_eq!(node.done("uninstall-cni", &[])["pluginRemoved"], true);
    assert!(!node.plugin().exists());
}

/// DEL of the plugin that is left, as a runtime calls it.
fn del(node: &Node) -> Output {
    let configuration = format!(
        r#"{{"cniVersion":"0.3.1","name":"k8s-pod-network","type":"veer-cni","runDir":"{}"}}"#,
        node.path("run").display()
    );
    let input = node.path("stdin");
    fs::write(&input, configuration).unwrap();
    let mut command = Command::new(node.plugin());
    command.env("CNI_COMMAND", "DEL").env("CNI_CONTAINERID", "c0ffee").env("CNI_IFNAME", "eth0");
    command.env("CNI_PATH", node.path("bin")).stdin(fs::File::open(input).unwrap());
    command.output().unwrap()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let number = three.iter().fold(0_usize, |number, byte| number << 8 | usize::from(*byte))
            << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = char::from(DIGITS[number >> (18 - 6 * place) & 63]);
            text.push(if place > three.len() { '=' } else { digit });
        }
    }
    text
}
