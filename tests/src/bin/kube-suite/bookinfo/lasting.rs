//! What visitors notice of a node in trouble: nothing.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use veer_tests::bookinfo::Service;
use veer_tests::envoy::Direction;
use veer_tests::kube::client::LIMIT;
use veer_tests::kube::node;
use veer_tests::kube::pods::{Running, Shape, Sidecar};
use veer_tests::wait;

use super::stream::Stream;
use super::{Bookinfo, ask_through, entry};
use crate::stage::Stage;

/// As long as the issue of a control plane's upgrade.
const OUTAGE: Duration = Duration::from_mins(1);

/// Killed, away for a while, and started again.
pub(crate) fn agent(stage: &mut Stage, bookinfo: &Bookinfo) -> Result<String> {
    let stream = Stream::start(stage, bookinfo)?;
    stream.wait_for(20)?;
    for _ in 0..3 {
        stage.kill_agent()?;
        stream.wait_for(50)?;
        stage.start_agent()?;
        stream.wait_for(50)?;
    }
    Ok(format!("{} pages while it was killed and started three times", stream.stop()?))
}

/// Static pods come and go by files: one that is known is enrolled again, one that nobody knows is not let in before
/// the API server can tell of it.
pub(crate) fn api_server(stage: &mut Stage, bookinfo: &Bookinfo) -> Result<String> {
    let known = StaticPod::new(stage, "known")?;
    let pod = known.wait_ready(stage)?;
    prove(stage, bookinfo, &pod)?;
    let stream = Stream::start(stage, bookinfo)?;
    let started = Instant::now();
    stage.node.control_plane_mut().stop_api_server()?;
    known.remove()?;
    let is_gone = || stage.enrolled().is_ok_and(|enrolled| !enrolled.contains(&known.name));
    wait::until("a static pod to go in an outage", LIMIT, is_gone)?;
    known.write()?;
    let address = stage.wait_new_sandbox(&known.name)?;
    prove(stage, bookinfo, &Running { address, ..pod.clone() })?;
    let late = StaticPod::new(stage, "late")?;
    wait::until("the outage to go on", LIMIT, || started.elapsed() > OUTAGE)?;
    ensure!(!stage.enrolled()?.contains(&late.name), "a pod was enrolled that nobody knows");
    stage.node.control_plane_mut().start_api_server()?;
    let lasted = started.elapsed();
    let pod = late.wait_ready(stage)?;
    prove(stage, bookinfo, &pod)?;
    let pages = stream.stop()?;
    for pod in [known, late] {
        pod.remove()?;
        let is_gone = || stage.enrolled().is_ok_and(|enrolled| !enrolled.contains(&pod.name));
        wait::until("a static pod to go", LIMIT, is_gone)?;
        stage.client().wait_gone(&pod.path())?;
    }
    Ok(format!("{pages} pages in {} s; a pod went and came, an unknown one waited", lasted.as_secs()))
}

/// It asks details through its own sidecar.
fn prove(stage: &mut Stage, bookinfo: &Bookinfo, pod: &Running) -> Result<()> {
    let (mark, details) = (stage.mark(), bookinfo.address(Service::Details)?);
    ask_through(stage, pod, Service::Details, details, &mark)?;
    stage.entry(pod, Direction::Inbound, &mark)?;
    entry(stage, pod, Direction::Outbound, &mark, details).map(drop)
}

/// A pod that kubelet has from a file.
struct StaticPod {
    file: PathBuf,
    shape: Shape,
    /// Its name in the cluster: with the node's.
    name: String,
}

impl StaticPod {
    fn new(stage: &Stage, name: &str) -> Result<Self> {
        let file = stage.node.static_pods().join(format!("{name}.json"));
        let shape = Shape::new(name, Sidecar::Classic).with_validation();
        let pod = Self { file, shape, name: format!("{name}-{}", node::NAME) };
        pod.write()?;
        Ok(pod)
    }

    fn write(&self) -> Result<()> {
        // kubelet leaves files alone whose names begin with a dot, and may read any other at any time.
        let draft = self.file.with_file_name(".draft");
        fs::write(&draft, self.shape.to_json()?.to_string()).context("write a manifest")?;
        fs::rename(&draft, &self.file).with_context(|| format!("publish {}", self.file.display()))
    }

    fn remove(&self) -> Result<()> {
        fs::remove_file(&self.file).with_context(|| format!("remove {}", self.file.display()))
    }

    fn path(&self) -> String {
        format!("/api/v1/namespaces/default/pods/{}", self.name)
    }

    /// Its uid is kubelet's own, as its volumes have it; the API server's mirror of it has another.
    fn wait_ready(&self, stage: &Stage) -> Result<Running> {
        let path = self.path();
        stage.client().wait(&format!("{} to be ready", self.name), &path, |pod| {
            let conditions = pod.pointer("/status/conditions")?.as_array()?;
            conditions.iter().find(|one| one["type"] == "Ready" && one["status"] == "True")?;
            let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str);
            Some(Running {
                path: path.clone(),
                address: text("/status/podIP")?.parse().ok()?,
                uid: text("/metadata/annotations/kubernetes.io~1config.hash")?.to_owned(),
            })
        })
    }
}
