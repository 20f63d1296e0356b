//! New connections without a pause, and pods that come meanwhile, while something happens to the agent.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use veer_tests::envoy::Direction;
use veer_tests::kube::pods::{PORT, Running, Shape, Sidecar};
use veer_tests::load::{self, Progress};
use veer_tests::wait;

use super::Deployed;
use crate::stage::Stage;

/// Connections before and after what happens.
const BEFORE: u64 = 50;

/// What was carried.
pub(super) struct Carried {
    /// Requests, each of which has come to a proxy and left through it on connections of its own.
    pub(super) requests: u64,
    /// Pods that came meanwhile, all redirected.
    pub(super) pods: usize,
    /// What `meanwhile` took.
    pub(super) took: Duration,
}

impl Carried {
    pub(super) fn told(&self) -> String {
        format!(
            "{} requests through two proxies and {} new pods in {:.0} s, none lost",
            self.requests,
            self.pods,
            self.took.as_secs_f64()
        )
    }
}

/// Asks one pod to ask the other, over and over, while `meanwhile` runs and pods come.
pub(super) fn under_load(
    deployed: &mut Deployed,
    name: &str,
    meanwhile: impl FnOnce(&Deployed) -> Result<()>,
) -> Result<Carried> {
    let client = deployed.client().clone();
    let shapes = [("classic", Sidecar::Classic), ("native", Sidecar::Native)];
    let pods = shapes.map(|(kind, sidecar)| Shape::new(&format!("{name}-{kind}"), sidecar));
    let pods = [pods[0].run(&client)?, pods[1].run(&client)?];
    let late = [0, 1, 2].map(|number| Shape::new(&format!("{name}-late-{number}"), Sidecar::Classic));
    let marks = Mutex::new(Vec::new());
    let mut outcome = Err(anyhow!("nothing has happened"));
    let mut took = Duration::ZERO;
    let shared: &Deployed = deployed;
    let work =
        |(from, to): &(usize, usize), turn| ask(&shared.stage, name, &pods, (*from, *to), turn, &marks);
    let requests = load::during(&[(0, 1), (1, 0)], work, |progress| {
        let started = Instant::now();
        outcome = happen(shared, progress, &late, meanwhile);
        took = started.elapsed();
    })?;
    outcome?;
    let marks = marks.into_inner().map_err(|_panicked| anyhow!("a thread of the load panicked"))?;
    for (number, pod) in pods.iter().enumerate() {
        let own: BTreeSet<&String> =
            marks.iter().filter(|(from, _)| *from == number).map(|(_, mark)| mark).collect();
        seen_by_proxy(deployed, pod, &own)?;
    }
    let [one, other] = &pods;
    for shape in &late {
        let pod = shape.wait_ready(&client)?;
        deployed.stage.prove_redirected(&pod, one)?;
        pod.delete(&client)?;
    }
    one.delete(&client)?;
    other.delete(&client)?;
    deployed.stage.wait_nobody_enrolled()?;
    Ok(Carried { requests, pods: late.len(), took })
}

/// What happens, with the load before and after it; pods are made at its beginning.
fn happen(
    deployed: &Deployed,
    progress: &Progress,
    late: &[Shape],
    meanwhile: impl FnOnce(&Deployed) -> Result<()>,
) -> Result<()> {
    progress.wait_for(BEFORE)?;
    for shape in late {
        shape.create(deployed.client())?;
    }
    meanwhile(deployed)?;
    for shape in late {
        shape.wait_ready(deployed.client())?;
    }
    progress.wait_for(BEFORE)
}

fn ask(
    stage: &Stage,
    name: &str,
    pods: &[Running; 2],
    (from, to): (usize, usize),
    turn: u64,
    marks: &Mutex<Vec<(usize, String)>>,
) -> Result<()> {
    let mark = format!("{name}-{from}-{turn}");
    let [from_pod, to_pod] = [from, to].map(|number| pods.get(number).context("there are two pods"));
    stage.ask_through(from_pod?, to_pod?.address, PORT, &mark)?;
    marks.lock().map_err(|_panicked| anyhow!("a thread of the load panicked"))?.push((from, mark));
    Ok(())
}

/// Each of these requests came to the pod's proxy, and left the pod through it.
fn seen_by_proxy(deployed: &Deployed, pod: &Running, marks: &BTreeSet<&String>) -> Result<()> {
    for direction in [Direction::Inbound, Direction::Outbound] {
        // Written within 100 ms.
        wait::until_ok("the proxy's entries", wait::LIMIT, || {
            let log = pod.access_log(deployed.stage.node.directory())?;
            let of_it = log.iter().filter(|entry| entry.direction == direction);
            let seen: BTreeSet<&String> = of_it.filter_map(|entry| entry.mark.as_ref()).collect();
            let past: Vec<_> = marks.difference(&seen).collect();
            ensure!(past.is_empty(), "{} requests went past the {direction} proxy: {past:?}", past.len());
            Ok::<_, anyhow::Error>(())
        })?;
    }
    Ok(())
}
