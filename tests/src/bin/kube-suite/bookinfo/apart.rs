//! Pods beside Bookinfo that are not to be captured, at each level at which somebody can say so.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use veer_tests::bookinfo::{PORT, Service};
use veer_tests::envoy::Direction;
use veer_tests::kube::client::LIMIT;
use veer_tests::kube::injector::{INJECT, MODE, VALIDATION, wants};
use veer_tests::kube::node::OUTSIDE;
use veer_tests::kube::pods::{Running, Shape, Sidecar};
use veer_tests::wait;

use super::{Bookinfo, NAMESPACE, PASSED_OUT, ask_through, entry, make_namespace, remove_namespace};
use crate::stage::Stage;

/// Neither what it asks nor what it is asked goes through its own proxy, if it has one: by what the apps at the ends see.
fn prove_direct(stage: &mut Stage, bookinfo: &Bookinfo, pod: &Running) -> Result<()> {
    let mark = ask_details(stage, bookinfo, pod, false)?;
    let echo = stage.ask(pod, &mark)?;
    ensure!(echo.peer.ip() == IpAddr::V4(OUTSIDE), "the app of {} was asked by {}", pod.path, echo.peer);
    Ok(())
}

/// Its own proxy sees what comes to it and what it asks.
fn prove_captured(stage: &mut Stage, bookinfo: &Bookinfo, pod: &Running) -> Result<()> {
    let mark = ask_details(stage, bookinfo, pod, true)?;
    stage.entry(pod, Direction::Inbound, &mark)?;
    entry(stage, pod, Direction::Outbound, &mark, bookinfo.address(Service::Details)?).map(drop)
}

fn ask_details(stage: &mut Stage, bookinfo: &Bookinfo, pod: &Running, is_captured: bool) -> Result<String> {
    let mark = stage.mark();
    let service = bookinfo.address(Service::Details)?;
    let answer = ask_through(stage, pod, Service::Details, service, &mark)?;
    ensure!(answer.headers.contains_key(PASSED_OUT) == is_captured, "{} asked {answer:?}", pod.path);
    let details = bookinfo.pod(Service::Details, "v1")?;
    let came = entry(stage, details, Direction::Inbound, &mark, SocketAddr::new(details.address, PORT))?;
    ensure!(came.client.map(|client| client.ip()) == Some(pod.address), "{came:?}");
    Ok(mark)
}

/// In a namespace that Istio leaves alone nobody is injected, and who is not injected is not redirected.
pub(crate) fn by_namespace(stage: &mut Stage, bookinfo: &Bookinfo) -> Result<String> {
    let client = stage.client().clone();
    let plain = make_namespace(&client, "plain", Some("disabled"))?;
    let mesh = client.get(&format!("/api/v1/namespaces/{NAMESPACE}"))?;
    let shape = Shape::new("client", Sidecar::None).in_namespace("plain");
    ensure!(!wants(&plain, &shape.to_json()?), "the injector takes pods of {plain}");
    ensure!(wants(&mesh, &shape.to_json()?), "the injector leaves pods of {mesh} alone");
    let pod = shape.run(&client)?;
    prove_direct(stage, bookinfo, &pod)?;
    ensure!(!stage.enrolled()?.iter().any(|name| name == "client"), "it is enrolled");
    remove_namespace(&client, "plain")?;
    Ok("not injected, not enrolled, direct".to_owned())
}

/// An injected pod whose namespace is excluded on the node: Istio's own validation finds it without redirection.
pub(crate) fn by_policy(stage: &mut Stage, bookinfo: &Bookinfo) -> Result<String> {
    let client = stage.client().clone();
    make_namespace(&client, "legacy", Some("enabled"))?;
    stage.exclude(&["legacy"])?;
    let pod = Shape::new("excluded", Sidecar::Classic).in_namespace("legacy").run(&client)?;
    prove_direct(stage, bookinfo, &pod)?;
    let validated = Shape::new("validated", Sidecar::Classic).in_namespace("legacy").with_validation();
    validated.create(&client)?;
    client.wait("istio-validation to find nothing", &validated.path(), |pod| {
        let init = pod.pointer("/status/initContainerStatuses")?.as_array()?;
        let validation = init.iter().find(|one| one["name"] == VALIDATION)?;
        let ended =
            ["/state", "/lastState"].map(|state| validation.pointer(&format!("{state}/terminated/exitCode")));
        ended.contains(&Some(&126.into())).then_some(())
    })?;
    remove_namespace(&client, "legacy")?;
    stage.exclude(&[])?;
    Ok("direct; istio-validation ends with 126 there".to_owned())
}

/// Wholly, and in parts.
pub(crate) fn by_annotation(stage: &mut Stage, bookinfo: &Bookinfo) -> Result<String> {
    let client = stage.client().clone();
    let traffic = |name: &str| format!("traffic.sidecar.istio.io/{name}");
    let shape = |name: &str, sidecar| Shape::new(name, sidecar).in_namespace(NAMESPACE);
    let nothing = shape("captures-nothing", Sidecar::Classic);
    let nothing = nothing.with_annotation(&traffic("includeOutboundIPRanges"), "");
    let direct = [
        shape("by-annotation", Sidecar::Classic).with_annotation(INJECT, "false"),
        shape("by-label", Sidecar::Native).with_label(INJECT, "false"),
        shape("by-mode", Sidecar::Classic).with_annotation(MODE, "NONE"),
        nothing.with_annotation(&traffic("includeInboundPorts"), ""),
    ];
    for shape in &direct {
        let pod = shape.run(&client)?;
        prove_direct(stage, bookinfo, &pod)?;
        pod.delete(&client)?;
    }
    // One Service of two.
    let details = bookinfo.address(Service::Details)?;
    let but = shape("but-details", Sidecar::Classic);
    let but = but
        .with_annotation(&traffic("excludeOutboundIPRanges"), &format!("{}/32", details.ip()))
        .run(&client)?;
    let mark = ask_details(stage, bookinfo, &but, false)?;
    stage.entry(&but, Direction::Inbound, &mark)?;
    let (mark, ratings) = (stage.mark(), bookinfo.address(Service::Ratings)?);
    ask_through(stage, &but, Service::Ratings, ratings, &mark)?;
    entry(stage, &but, Direction::Outbound, &mark, ratings)?;
    but.delete(&client)?;
    Ok(format!("{} ways wholly; of one pod one Service of two", direct.len()))
}

/// Pods stay what they are for as long as they live, as with istio-init; who comes later is left alone.
pub(crate) fn later(stage: &mut Stage, bookinfo: &Bookinfo) -> Result<String> {
    let client = stage.client().clone();
    make_namespace(&client, "leaving", Some("enabled"))?;
    let shape = Shape::new("leaving", Sidecar::Classic).in_namespace("leaving").with_validation();
    let pod = shape.run(&client)?;
    prove_captured(stage, bookinfo, &pod)?;
    stage.exclude(&["leaving"])?;
    prove_captured(stage, bookinfo, &pod)?;
    let new = Shape::new("new", Sidecar::Classic).in_namespace("leaving").run(&client)?;
    prove_direct(stage, bookinfo, &new)?;
    pod.delete(&client)?;
    let again = Shape::new("leaving", Sidecar::Classic).in_namespace("leaving").run(&client)?;
    prove_direct(stage, bookinfo, &again)?;
    // The one before is forgotten a moment after the API server has.
    wait::until("nobody of the namespace to be enrolled", LIMIT, || {
        stage.enrolled().is_ok_and(|names| !names.iter().any(|name| name == "leaving"))
    })?;
    remove_namespace(&client, "leaving")?;
    stage.exclude(&[])?;
    Ok("who runs stays redirected; who is made anew is direct".to_owned())
}

/// As the API server tells it of all pods, and the kernel of all their processes.
pub(crate) fn privileges(stage: &mut Stage, _bookinfo: &Bookinfo) -> Result<String> {
    let pods = stage.client().get("/api/v1/pods")?;
    let pods = pods.get("items").and_then(Value::as_array).context("a list of pods")?;
    let mut containers = 0;
    for pod in pods {
        for list in ["initContainers", "containers", "ephemeralContainers"] {
            for container in
                pod.pointer(&format!("/spec/{list}")).and_then(Value::as_array).into_iter().flatten()
            {
                is_plain(container).with_context(|| name(pod))?;
                containers += 1;
            }
        }
        let is_hosts = |name: &str| pod.pointer(&format!("/spec/{name}")) == Some(&json!(true));
        let found = ["hostNetwork", "hostPID", "hostIPC"].into_iter().find(|name| is_hosts(name));
        ensure!(found.is_none(), "{} has {found:?}", name(pod));
    }
    let processes = powerless(stage.node.pods_cgroup())?;
    ensure!(containers > 0 && processes > containers, "{containers} containers and {processes} processes");
    Ok(format!("{} pods, {containers} containers, {processes} processes", pods.len()))
}

fn name(pod: &Value) -> String {
    pod.pointer("/metadata/name").map_or_else(String::new, Value::to_string)
}

fn is_plain(container: &Value) -> Result<()> {
    let context = &container["securityContext"];
    ensure!(context["privileged"] != true, "{} is privileged", container["name"]);
    let added =
        context.pointer("/capabilities/add").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    ensure!(!added, "{} has {}", container["name"], context["capabilities"]);
    Ok(())
}

/// Counts the processes of a cgroup and below: none of them has, or can get, what changes a network or a machine.
fn powerless(cgroup: &Path) -> Result<usize> {
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_ADMIN: u64 = 1 << 21;
    let mut count = 0;
    let file = cgroup.join("cgroup.procs");
    let processes = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    for process in processes.lines() {
        // It may have ended meanwhile.
        let Ok(status) = fs::read_to_string(format!("/proc/{process}/status")) else { continue };
        for set in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            let line = status.lines().find_map(|line| line.strip_prefix(set)?.strip_prefix(":\t"));
            let bits = line.and_then(|bits| u64::from_str_radix(bits, 16).ok());
            match bits.with_context(|| format!("process {process} has no {set}"))? & (NET_ADMIN | SYS_ADMIN) {
                0 => {}
                bits => bail!("process {process} has {bits:#x} in {set}: {status}"),
            }
        }
        count += 1;
    }
    let below = fs::read_dir(cgroup).with_context(|| format!("list {}", cgroup.display()))?;
    for entry in below.flatten().filter(|entry| entry.path().is_dir()) {
        count += powerless(&entry.path())?;
    }
    Ok(count)
}
