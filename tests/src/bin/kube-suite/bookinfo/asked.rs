//! Who asks pods without being in the mesh: kubelet, and whoever gathers metrics.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use veer_tests::bookinfo::{PORT, Service, TURN};
use veer_tests::envoy::{AGENT, Direction, Entry, STATUS, TELEMETRY};
use veer_tests::http;
use veer_tests::kube::node::OUTSIDE;
use veer_tests::kube::pods::Running;

use super::{Bookinfo, marked};
use crate::stage::Stage;

/// An app that is unwell leaves its Service and comes back: of details the probes go through the sidecar, of ratings to
/// Istio's agent, which asks the app. Nobody is well to a probe that does not come through.
pub(crate) fn probes(stage: &mut Stage, bookinfo: &Bookinfo) -> Result<String> {
    let (details, ratings) = (bookinfo.pod(Service::Details, "v1")?, bookinfo.pod(Service::Ratings, "v1")?);
    for (service, pod) in [(Service::Details, details), (Service::Ratings, ratings)] {
        turn(stage, pod)?;
        wait_ready(stage, pod, service, false)?;
        turn(stage, pod)?;
        wait_ready(stage, pod, service, true)?;
    }
    let by_kubelet = |pod: &Running| -> Result<Vec<Entry>> {
        let log = pod.access_log(stage.node.directory())?;
        // All other requests have a mark; what has no status is the end of a connection.
        let is_probe = |entry: &Entry| {
            entry.direction == Direction::Inbound && entry.mark.is_none() && entry.status != 0
        };
        Ok(log.into_iter().filter(is_probe).collect())
    };
    let (through, beside) = (by_kubelet(details)?, by_kubelet(ratings)?);
    ensure!(
        !through.is_empty() && beside.is_empty(),
        "through details {through:?}; beside ratings {beside:?}"
    );
    Ok("through the sidecar and by 15020; who is unwell leaves its Service".to_owned())
}

/// Has the app be unwell, or well again.
fn turn(stage: &mut Stage, pod: &Running) -> Result<()> {
    let mark = stage.mark();
    let to = SocketAddr::new(pod.address, PORT);
    let response = stage.node.outside().run(|| http::get_from(to, TURN, &marked(&mark)))??;
    ensure!(response.status == 200, "{to}{TURN} answered {}", response.status);
    Ok(())
}

/// What kubelet finds, and with it the Service.
fn wait_ready(stage: &Stage, pod: &Running, service: Service, is_ready: bool) -> Result<()> {
    let name = service.name();
    let wanted = if is_ready { "True" } else { "False" };
    stage.client().wait(&format!("{name} to be ready: {wanted}"), &pod.path, |pod| {
        let conditions = pod.pointer("/status/conditions")?.as_array()?;
        conditions.iter().find(|one| one["type"] == "Ready" && one["status"] == wanted).map(drop)
    })?;
    let slices = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{name}",
        super::NAMESPACE
    );
    stage.client().wait(&format!("{name}'s Service to know: {wanted}"), &slices, |slices| {
        let endpoints = slices.pointer("/items/0/endpoints")?.as_array()?;
        let is_well = |endpoint: &Value| endpoint.pointer("/conditions/ready") == Some(&is_ready.into());
        endpoints.iter().all(is_well).then_some(())
    })
}

/// As Prometheus asks, from outside of the mesh; what a proxy captured would be in its access log.
pub(crate) fn scraped(stage: &mut Stage, bookinfo: &Bookinfo) -> Result<String> {
    const ASKED: [(u16, &str, &str); 3] = [
        (AGENT, "/stats/prometheus", "envoy_cluster_"),
        (STATUS, "/healthz/ready", ""),
        (TELEMETRY, "/stats/prometheus", "envoy_cluster_"),
    ];
    for workload in &bookinfo.workloads {
        let pod = &workload.pod;
        let mark = stage.mark();
        for (port, path, wanted) in ASKED {
            let to = SocketAddr::new(pod.address, port);
            let response = stage.node.outside().run(|| http::get_from(to, path, &marked(&mark)))??;
            let text = String::from_utf8_lossy(&response.body);
            ensure!(response.status == 200, "{to}{path} answered {}: {text:.200}", response.status);
            ensure!(text.contains(wanted), "{to}{path} has no {wanted}: {text:.200}");
        }
        // The app's port is asked last: once that is in the log, what came before would be.
        let to = SocketAddr::new(pod.address, PORT);
        stage.node.outside().run(|| http::get_from(to, "/", &marked(&mark)))??;
        let seen = stage.entry(pod, Direction::Inbound, &mark)?;
        ensure!(seen.client.map(|client| client.ip()) == Some(OUTSIDE.into()), "{seen:?}");
        let log = pod.access_log(stage.node.directory())?;
        let ports = ASKED.map(|(port, ..)| Some(port));
        let captured = |entry: &&Entry| {
            entry.direction == Direction::Inbound
                && ports.contains(&entry.original_destination.map(|dialled| dialled.port()))
        };
        let captured = log.iter().find(captured);
        ensure!(captured.is_none(), "the proxy of {} captured {captured:?}", pod.path);
    }
    let pods = bookinfo.workloads.len();
    let count = pods.checked_mul(ASKED.len()).context("few pods")?;
    Ok(format!("{count} answers of {pods} pods, none through a proxy"))
}
