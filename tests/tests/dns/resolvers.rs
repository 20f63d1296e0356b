//! A real resolver: the C library's, with a resolv.conf of the pod's own.
//!
//! What the others do that are met in pods is done by hand in the modules beside this one: Go's and c-ares' connect a
//! socket for each question, musl's asks all resolvers on one socket and compares the senders.

use std::process::Command;

use veer_tests::dns::{ANSWER_V4, ANSWER_V6};
use veer_tests::launch::Identity;
use veer_tests::scratch;

use super::{Scene, all};

/// Puts a file in the place of resolv.conf, and becomes the rest.
const BEHIND: &str = "mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"";

/// What getent finds, for an app in the pod whose resolv.conf this is.
fn getent(scene: &Scene, resolv_conf: &str) -> Vec<String> {
    let directory = scratch::directory().unwrap();
    let file = directory.path().join("resolv.conf");
    std::fs::write(&file, resolv_conf).unwrap();
    let inner = scene.pod().launch(Identity::app()).command("getent").unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", BEHIND, "sh"]).arg(&file);
    command.arg(inner.get_program()).args(inner.get_args());
    // Not by way of /etc/hosts or a daemon of the machine's.
    command.args(["-s", "hosts:dns", "ahosts", "who.asks"]);
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}, {resolv_conf:?}: {} {errors}", scene.by, output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    let mut addresses: Vec<_> =
        text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

#[test]
fn the_c_librarys_resolver_is_answered_by_the_proxy() {
    let expected = [ANSWER_V6.to_string(), ANSWER_V4.to_string()];
    let files = [
        "nameserver 10.96.0.10\n",
        "nameserver 127.0.0.53\n",
        "nameserver fd00:96::10\n",
        "nameserver 10.96.0.10\nnameserver 10.96.0.11\noptions rotate\n",
        // A socket for each question; both questions one after the other; TCP.
        "nameserver 10.96.0.10\noptions single-request-reopen\n",
        "nameserver 10.96.0.10\noptions single-request edns0\n",
        "nameserver 10.96.0.10\noptions use-vc\n",
        "nameserver 127.0.0.53\noptions use-vc\n",
        "nameserver fd00:96::10\noptions use-vc\n",
    ];
    for scene in all() {
        for file in files {
            assert_eq!(getent(&scene, file), expected, "{:?}, {file:?}", scene.by);
        }
        assert_eq!(scene.world.asked(), 0, "{:?}", scene.by);
    }
}
