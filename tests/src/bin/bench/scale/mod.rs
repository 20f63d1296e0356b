//! `bench scale`: what a node with very many pods costs, and whether it costs more than one with few.
//!
//! Owns: the order of measuring, and the verdicts on the targets. Two nodes, each with an agent of its own: one
//! is filled with pods that nobody talks to ([`filling`]), the other has a single one; a third is there
//! while the first one is filled, for enrolments where there are few. What a connection costs is
//! measured on both in turns ([`connections`]); what the kernel holds is asked of the kernel ([`kernel`]).

mod connections;
mod filling;
mod kernel;
mod table;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::launch::Launch;
use veer_tests::pinned::Pinned;
use veer_tests::pod::World;
use veer_tests::supervise;

use crate::footprint::{self, Memory};
use crate::order::Cpus;
use crate::progress::Progress;
use crate::report::{Timing, milliseconds};
use crate::run;
use connections::Comparison;
use filling::{Enrolments, Filling};
use kernel::Held;

/// What to measure.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Options {
    /// Pods of the full node
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(2..=4000))]
    pods: u16,
    /// Rounds of connections
    #[arg(long, default_value_t = 41)]
    rounds: usize,
    /// Is the process that measures
    #[arg(long, hide = true)]
    pub(crate) measures: bool,
}

/// Pods that are enrolled in turns on the full node and on one with few.
const TURNS: usize = 100;
/// Restarts of the full agent.
const RESTARTS: usize = 5;

/// What was found. What `scale.json` holds.
#[derive(Debug, Serialize)]
pub(crate) struct Scale {
    pub(crate) pods: u16,
    /// ADDs, in milliseconds: from the request on the agent's socket to its answer.
    pub(crate) enrolments: Enrolments,
    /// The agent's memory: without a pod, and with all.
    pub(crate) empty: Memory,
    pub(crate) full: Memory,
    /// From the start of a process that takes all pods over until it answers, in milliseconds.
    pub(crate) restart: Timing,
    pub(crate) taken_over: Memory,
    pub(crate) kernel_empty: Held,
    pub(crate) kernel_full: Held,
    pub(crate) connections: Vec<Comparison>,
}

/// Measures, prints the table, and writes `scale.json`.
pub(crate) fn run(options: Options, out: &Path) -> Result<ExitCode> {
    supervise::be_supervised()?;
    let progress = Progress::start();
    let world = World::new()?;
    let (many, few) = (Cgroup::new()?, Cgroup::new()?);
    // A cgroup of its own tells what an agent's threads have used, those that have ended included.
    let own = Cgroup::new()?;
    let mut agent = Agent::start_with(&many, Launch::new().in_cgroup(&own), &[])?;
    let other = Agent::start(&few)?;
    progress.say(&format!("writing {} manifests", options.pods));
    let names = footprint::announce(&agent, options.pods.into())?;
    let empty = memory(&agent, 0)?;
    let kernel_empty = Held::by(&Pinned::of(&agent))?;

    let mut filling = Filling::new(&agent, &own);
    let enrolments = fill(&mut filling, &names, &progress)?;
    let pods = filling.into_pods();
    let full = memory(&agent, pods.count())?;
    let kernel_full = Held::by(&Pinned::of(&agent))?;
    let connections = connections::measure(
        &connections::Nodes { world: &world, few: (&other, &few), many: (&agent, &many) },
        Cpus::same()?,
        options.rounds,
        &progress,
    )?;
    progress.say(&format!("restarting the agent {RESTARTS} times"));
    let restarts = (0..RESTARTS).map(|_| restart(&mut agent)).collect::<Result<Vec<_>>>()?;
    let taken_over = memory(&agent, pods.count())?;
    let scale = Scale {
        pods: options.pods,
        enrolments,
        empty,
        full,
        restart: Timing::of(restarts)?,
        taken_over,
        kernel_empty,
        kernel_full,
        connections,
    };
    progress.say("taking it down");
    drop(pods);
    tell(&scale, out, &progress)
}

/// Fills the node: the last pods in turns with the first ones of a node that is there for that alone.
fn fill(filling: &mut Filling<'_>, names: &[String], progress: &Progress) -> Result<Enrolments> {
    let (before, last) = names.split_at(names.len().saturating_sub(TURNS));
    progress.say(&format!("enrolling {} pods, one after the other", before.len()));
    for name in before {
        filling.enrol(name)?;
    }
    progress.say(&format!("enrolling {}, in turns with a node that has no more", last.len()));
    let (cgroup, own) = (Cgroup::new()?, Cgroup::new()?);
    let agent = Agent::start_with(&cgroup, Launch::new().in_cgroup(&own), &[])?;
    let names_of_few = footprint::announce(&agent, last.len())?;
    let mut few = Filling::new(&agent, &own);
    filling.enrol_in_turns(last, &mut few, &names_of_few)?;
    filling.compared_with(&few)
}

fn tell(scale: &Scale, out: &Path, progress: &Progress) -> Result<ExitCode> {
    let targets = table::targets(scale);
    run::write(&table::render(scale, &targets))?;
    fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
    let path = out.join("scale.json");
    fs::write(&path, serde_json::to_string_pretty(scale)?)
        .with_context(|| format!("write {}", path.display()))?;
    progress.say(&format!("wrote {}", path.display()));
    let met = targets.iter().all(|target| target.is_met);
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn memory(agent: &Agent, pods: usize) -> Result<Memory> {
    footprint::memory(agent.process().pid(), pods)
}

/// Milliseconds from the start of the process until it answers.
fn restart(agent: &mut Agent) -> Result<f64> {
    agent.stop()?;
    let start = Instant::now();
    agent.start_again()?;
    Ok(milliseconds(start.elapsed()))
}

/// Microseconds as a duration, as cgroups tell them.
const fn microseconds(count: u64) -> Duration {
    Duration::from_micros(count)
}
