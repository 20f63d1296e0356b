//! `veer check` and Istio's own validation, in pods of each kind: as the processes that run there, without a
//! capability.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Output;

use serde_json::Value;
use veer_tests::istio_init;
use veer_tests::launch::{Identity, veer_binary};
use veer_tests::mesh::{Listeners, Mesh, connect, tcp};
use veer_tests::pod::TestPod;

/// Runs `veer check` in a pod, as a process of it.
fn check(pod: &TestPod, identity: Identity, arguments: &[&str]) -> Output {
    let veer = veer_binary("VEER_BIN", "veer").unwrap();
    pod.launch(identity).command(veer).unwrap().arg("check").args(arguments).output().unwrap()
}

#[track_caller]
fn passes(pod: &TestPod, identity: Identity, arguments: &[&str]) -> Value {
    let mut with_json = arguments.to_vec();
    with_json.push("--json");
    let output = check(pod, identity, &with_json);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn fails(output: &Output, code: i32, says: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(code) && text.contains(says), "{output:?}");
}

#[test]
fn in_an_enrolled_pod_the_proxy_and_an_app_find_the_redirection() {
    let mesh = Mesh::new().unwrap();
    for identity in [Identity::proxy(), Identity::app(), Identity::root()] {
        let found = passes(&mesh.pod, identity, &["--dual-stack=true"]);
        let families: Vec<_> = found.as_array().unwrap().iter().map(|finding| &finding["family"]).collect();
        assert_eq!(families, ["IPv4", "IPv6"], "{found}");
    }
    let found = passes(&mesh.pod, Identity::proxy(), &[]);
    assert_eq!(found.as_array().unwrap().len(), 1, "without dual stack Istio leaves IPv6 alone: {found}");
    assert_eq!(found[0]["dialled"], "127.0.0.6:15002");
    assert_eq!(found[0]["listener"], 15006);
}

#[test]
fn the_text_is_a_line_for_each_family() {
    let mesh = Mesh::new().unwrap();
    let output = check(&mesh.pod, Identity::app(), &["--family=both"]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "IPv4  redirected: 192.0.2.1:15002 arrived at port 15001 with its original destination\n\
         IPv6  redirected: [2001:db8::1]:15002 arrived at port 15001 with its original destination\n"
    );
}

#[test]
fn a_proxy_with_a_uid_of_its_own_says_so() {
    let mesh = Mesh::new().unwrap();
    // It is an app here, and what it takes for the proxy's way goes to a loopback address that nobody has.
    let output = check(&mesh.pod, Identity::app(), &["--proxy-uid=1000", "--timeout=1"]);
    fails(&output, 126, "127.0.0.6:15002 is not redirected");
}

#[test]
fn in_a_pod_that_nobody_enrolled_it_is_missing() {
    let mesh = Mesh::not_enrolled().unwrap();
    let output = check(&mesh.pod, Identity::proxy(), &["--timeout=1"]);
    fails(&output, 126, "IPv4: 127.0.0.6:15002 is not redirected");
    let output = check(&mesh.pod, Identity::app(), &["--timeout=1"]);
    fails(&output, 126, "IPv4: 192.0.2.1:15002 is not redirected");
}

#[test]
fn what_goes_elsewhere_is_told_apart() {
    let mesh = Mesh::not_enrolled().unwrap();
    let mut outside = Listeners::default();
    outside.add_in_world("outside", &mesh.world, (Ipv4Addr::new(192, 0, 2, 1), 15002)).unwrap();
    let output = check(&mesh.pod, Identity::app(), &["--timeout=1"]);
    fails(&output, 126, "192.0.2.1:15002 was connected directly");
}

#[test]
fn of_two_families_the_missing_one_is_named() {
    let mesh = Mesh::not_enrolled().unwrap();
    mesh.agent.enrol_as(&mesh.pod, &mesh.pod.manifest()).unwrap();
    let output = check(&mesh.pod, Identity::app(), &["--family=both", "--timeout=1"]);
    fails(&output, 126, "IPv6: [2001:db8::1]:15002 is not redirected");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("IPv4:"), "{output:?}");
}

#[test]
fn beside_a_proxy_it_cannot_be_told() {
    let mesh = Mesh::new().unwrap();
    let _proxy = mesh.proxy_listeners().unwrap();
    fails(&check(&mesh.pod, Identity::proxy(), &["--timeout=1"]), 69, "cannot be listened on");
}

#[test]
fn it_finds_the_rules_of_istio_init_as_well() {
    let mesh = Mesh::not_enrolled().unwrap();
    istio_init::apply(mesh.pod.netns()).unwrap();
    for identity in [Identity::proxy(), Identity::app()] {
        passes(&mesh.pod, identity, &["--family=both"]);
    }
}

#[test]
fn wrong_flags_are_usage() {
    let mesh = Mesh::not_enrolled().unwrap();
    for (flag, says) in [
        ("--family=six", "\"six\" is not auto, ipv4, ipv6 or both"),
        ("--timeout=0", "\"0\" is not a number of seconds 1-300"),
        ("--proxy-uid=envoy", "\"envoy\" is not a uid"),
    ] {
        fails(&check(&mesh.pod, Identity::app(), &[flag]), 64, says);
    }
}

/// What istio-validation does: it listens on localhost as the proxy, long before there is an Envoy, and dials
/// from localhost a loopback address that only the redirection can answer for.
#[test]
fn istio_validation_passes_before_there_is_a_proxy() {
    let mesh = Mesh::new().unwrap();
    for (localhost, passthrough) in [
        (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv4Addr::new(127, 0, 0, 6))),
        (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into()),
    ] {
        let mut listeners = Listeners::default();
        listeners.add("outbound", mesh.pod.proxy(), (localhost, 15001)).unwrap();
        listeners.add("inbound", mesh.pod.proxy(), (localhost, 15006)).unwrap();
        let client = tcp(mesh.pod.proxy(), (localhost, 0)).unwrap();
        client.bind(&SocketAddr::new(localhost, 0).into()).unwrap();
        connect(&client, (passthrough, 15002)).unwrap();
        let (arrival, _accepted) = listeners.accept().unwrap();
        assert_eq!(arrival.original, Some(SocketAddr::new(passthrough, 15002)));
        assert_eq!(arrival.at, "inbound");
    }
}
