//! The fault suite: what breaks on a node breaks here, under a steady load of requests through real Envoys.
//!
//! Nothing may get lost, no pod may be left in a wrong state, and nothing may leak; that the suite would see it if it
//! did is tried first ([`counting`]). With `VEER_LONG` set (`cargo xtask test faults`) it does ten times as much;
//! `VEER_SEED` chooses the same moments again, as far as the machine lets it.

mod agents;
mod bpf;
mod census;
mod counting;
mod load;
mod node;
mod plugins;
mod request;
mod scene;
mod stage;
mod stream;
mod table;

use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::harness::{self, Harness, Outcome, say};
use veer_tests::wait;

use census::Census;
use load::Load;
use scene::Scene;
use stage::{Extent, Stage, Told};
use table::Row;

/// Something that breaks.
struct Fault {
    name: &'static str,
    happen: fn(&mut Stage<'_>) -> Result<Told>,
}

const FAULTS: [Fault; 13] = [
    Fault { name: "agent killed", happen: agents::killed },
    Fault { name: "agent upgraded and back", happen: agents::upgraded },
    Fault { name: "two agents at once", happen: agents::started_twice },
    Fault { name: "ADD and DEL, 16 at once", happen: plugins::storm },
    Fault { name: "plugin killed in ADD", happen: plugins::killed },
    Fault { name: "bpf(2) refused in ADD", happen: bpf::refused },
    Fault { name: "bpf(2) refused in DEL", happen: bpf::refused_in_del },
    Fault { name: "bpf(2) refused at start", happen: bpf::refused_at_start },
    Fault { name: "agent dies at a bpf(2)", happen: bpf::died },
    Fault { name: "disk full, read-only", happen: node::disk },
    Fault { name: "bpffs unmounted", happen: node::bpffs_unmounted },
    Fault { name: "clocks jump", happen: node::clocks },
    Fault { name: "a map is full", happen: node::full_maps },
];

fn main() -> ExitCode {
    harness::run("faults", perform)
}

fn perform(harness: &Harness) -> Result<Outcome> {
    let faults = harness.choose(FAULTS.iter().collect(), |fault| fault.name);
    say(&format!("\nrunning {} faults", faults.len()));
    let rows = if faults.is_empty() { Vec::new() } else { run(&faults)? };
    if !rows.is_empty() {
        say(&format!("\n{}", table::render(&rows)));
    }
    let failed = rows.iter().filter(|row| !row.is_well()).count();
    let filtered_out = FAULTS.len() - rows.len();
    Ok(Outcome { passed: rows.len() - failed, failed, filtered_out, is_complete: true })
}

fn run(faults: &[&Fault]) -> Result<Vec<Row>> {
    let extent = if harness::is_long() { Extent::FULL } else { Extent::LEAN };
    let seed = harness::seed()?;
    say(&format!("the same moments again: VEER_SEED={seed}"));
    let cgroup = Cgroup::new()?;
    let mut agent = Agent::start(&cgroup)?;
    let scene = Scene::set(&agent, &cgroup)?;
    // As all later ones do, this one has found the pods.
    agent.stop()?;
    agent.start_again()?;
    let load = Load::default();
    let (requests, streams) = (scene.requests()?, scene.streams()?);
    let mut stage = Stage::set(agent, &scene, &load, extent, fastrand::Rng::with_seed(seed))?;
    thread::scope(|scope| {
        let _stop = load.start(scope, requests, streams);
        load.wait_for(100)?;
        // An agent that has done something keeps pages that a fresh one has not.
        plugins::storm_of(&mut stage, extent.operations / 2)?;
        let wrong = stage.wrong_pods();
        anyhow::ensure!(wrong.is_empty(), "before the first fault: {}", wrong.join("; "));
        let before = count(&stage)?;
        say(&format!("  {}", counting::try_out(&mut stage, &before)?));
        let row = |fault: &&Fault| {
            let row = endure(fault, &mut stage, &before)?;
            say(&format!("  {}", table::progress(&row)));
            Ok(row)
        };
        faults.iter().map(row).collect()
    })
}

/// A census of a moment in which nothing is on its way.
fn count(stage: &Stage<'_>) -> Result<Census> {
    let _paused = stage.load.pause();
    let mut census = Census::take(&stage.agent)?;
    wait::until("no connection to be on its way", wait::LIMIT, || {
        Census::take(&stage.agent).is_ok_and(|now| {
            census = now;
            census.is_quiet()
        })
    })?;
    Ok(census)
}

/// One fault, and what was left of everything.
fn endure(fault: &Fault, stage: &mut Stage<'_>, before: &Census) -> Result<Row> {
    let (mark, started) = (stage.load.mark(), Instant::now());
    let told = (fault.happen)(stage);
    stage.restore().with_context(|| format!("restore the agent after the fault `{}`", fault.name))?;
    // Whatever is broken now meets somebody.
    stage.load.wait_for(100)?;
    let wrong = stage.wrong_pods();
    let since = stage.load.since(mark);
    let _paused = stage.load.pause();
    let (after, leak) = Census::settle(&stage.agent, before)?;
    let differs = if leak.is_none() { String::new() } else { after.tell(before) };
    Ok(Row { name: fault.name, told, since, wrong, leak, differs, took: started.elapsed() })
}
