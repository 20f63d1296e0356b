//! Faults of plugins: many at once, in any order, and killed in the middle.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use veer_common::cni::{Reply, Verb};
use veer_tests::bare_pod::BarePod;

use super::agents::up_to;
use super::stage::{Stage, Told};

/// Plugins that run at once.
const AT_ONCE: u64 = 16;
/// Pods that they are for.
const PODS: u16 = 64;

/// Whether the last that was done for a pod was an ADD. A runtime does one thing at a time for a pod, so
/// whoever has the lock is the only one.
type Enrolled = Mutex<bool>;

/// ADDs and DELs in random order from 16 plugins at once; each must succeed, and the agent must know to the
/// end who is there.
pub(crate) fn storm(stage: &mut Stage<'_>) -> Result<Told> {
    let operations = stage.extent.operations;
    let enrolled = storm_of(stage, operations)?;
    Ok(Told { times: operations, seen: format!("{enrolled} of {PODS} pods were enrolled at the end") })
}

/// So many operations, after which nobody is left; how many were enrolled at last.
pub(crate) fn storm_of(stage: &mut Stage<'_>, operations: u64) -> Result<usize> {
    let pods = stage.bare_pods("storm", PODS)?;
    let states: Vec<Enrolled> = pods.iter().map(|_| Mutex::new(false)).collect();
    let next = AtomicU64::new(0);
    let seeds: Vec<u64> = (0..AT_ONCE).map(|_| stage.random.u64(..)).collect();
    let shared: &Stage<'_> = stage;
    let outcomes: Vec<Result<()>> = thread::scope(|scope| {
        let plugin = |seed| {
            let (pods, states, next) = (&pods, &states, &next);
            move || {
                let mut random = fastrand::Rng::with_seed(seed);
                while next.fetch_add(1, Ordering::SeqCst) < operations {
                    step(shared, pods, states, &mut random)?;
                }
                Ok(())
            }
        };
        let threads: Vec<_> = seeds.into_iter().map(|seed| scope.spawn(plugin(seed))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bail!("a plugin's thread panicked")))
            .collect()
    });
    outcomes.into_iter().collect::<Result<()>>()?;
    let enrolled = known_to_both(stage, &pods, &states)?;
    pods.iter().try_for_each(|pod| stage.del(pod))?;
    stage.forget(&pods)?;
    Ok(enrolled)
}

fn step(stage: &Stage<'_>, pods: &[BarePod], states: &[Enrolled], random: &mut fastrand::Rng) -> Result<()> {
    let index = random.usize(..pods.len());
    let (Some(pod), Some(state)) = (pods.get(index), states.get(index)) else { return Ok(()) };
    let mut enrolled = state.lock().unwrap_or_else(PoisonError::into_inner);
    *enrolled = random.bool();
    if *enrolled { stage.add(pod) } else { stage.del(pod) }
}

/// Whether the agent's list is that of the plugins; how many are on it.
fn known_to_both(stage: &Stage<'_>, pods: &[BarePod], states: &[Enrolled]) -> Result<usize> {
    let mut count = 0;
    for (pod, enrolled) in pods.iter().zip(states) {
        let enrolled = *enrolled.lock().unwrap_or_else(PoisonError::into_inner);
        let checked = stage.agent.ask(Verb::Check(pod.attachment()))? == Reply::Done;
        ensure!(
            checked == enrolled,
            "{}: the plugins left it enrolled: {enrolled}, CHECK: {checked}",
            pod.name()
        );
        count += usize::from(enrolled);
    }
    Ok(count)
}

/// An ADD takes a plugin no longer than this.
const LONGEST: Duration = Duration::from_millis(12);

/// SIGKILL of a plugin somewhere in its ADD, and then DEL, as a runtime does it.
pub(crate) fn killed(stage: &mut Stage<'_>) -> Result<Told> {
    let pods = stage.bare_pods("broken", 4)?;
    let times = stage.extent.plugins;
    for (pod, _) in pods.iter().cycle().zip(0..times) {
        let moment = up_to(&mut stage.random, LONGEST);
        stage.plugin.start("ADD", &pod.attachment(), pod.v4())?.kill_after(moment)?;
        stage.del(pod)?;
        // Whatever the dead plugin has asked for, nothing may come of it after its DEL.
        stage.agent.ask(Verb::Status)?;
        let left = stage.agent.ask(Verb::Check(pod.attachment()))?;
        ensure!(left != Reply::Done, "{} is enrolled after its DEL", pod.name());
    }
    stage.forget(&pods)?;
    Ok(Told { times, seen: "DEL afterwards; nobody stays".to_owned() })
}
