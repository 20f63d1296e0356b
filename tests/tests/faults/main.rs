//! The fault suite: what breaks on a node breaks here, under a steady load of requests through real Envoys.
//!
//! Nothing may get lost, no pod may be left in a wrong state, and nothing may leak. A program of its own rather
//! than tests, because its table is for people. It takes a part of a fault's name, as a test does, and ends
//! like one. With `VEER_LONG` set (`cargo xtask test faults`) it does ten times as much; `VEER_SEED` chooses
//! the same moments again, as far as the machine lets it.

mod agents;
mod bpf;
mod census;
mod load;
mod node;
mod plugins;
mod request;
mod scene;
mod stage;
mod stream;
mod table;

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::wait;

use census::Census;
use load::Load;
use scene::Scene;
use stage::{Extent, Stage, Told};
use table::Row;

/// One line on stdout. Whoever closes it early does not want the rest.
macro_rules! say {
    ($($text:tt)*) => { drop(writeln!(io::stdout(), $($text)*)) };
}

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
    match perform() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("faults: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // What the usual harness is asked by tools that list tests.
    if arguments.iter().any(|argument| argument == "--list") {
        return Ok(true);
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let is_asked = |fault: &&Fault| {
        filter.is_none_or(|part| "faults".contains(part.as_str()) || fault.name.contains(part.as_str()))
    };
    let faults: Vec<&Fault> = FAULTS.iter().filter(is_asked).collect();
    let started = Instant::now();
    say!("\nrunning {} faults", faults.len());
    let rows = if faults.is_empty() { Vec::new() } else { run(&faults)? };
    let failed = rows.iter().filter(|row| !row.is_well()).count();
    if !rows.is_empty() {
        say!("\n{}", table::render(&rows));
    }
    say!(
        "\ntest result: {}. {} passed; {failed} failed; 0 ignored; 0 measured; {} filtered out; \
         finished in {:.2}s\n",
        if failed == 0 { "ok" } else { "FAILED" },
        rows.len() - failed,
        FAULTS.len() - rows.len(),
        started.elapsed().as_secs_f64()
    );
    Ok(failed == 0)
}

fn seed() -> Result<u64> {
    match std::env::var("VEER_SEED") {
        Ok(seed) => seed.parse().context("VEER_SEED is not a number"),
        Err(_not_set) => Ok(fastrand::u64(..)),
    }
}

fn run(faults: &[&Fault]) -> Result<Vec<Row>> {
    let extent = if std::env::var_os("VEER_LONG").is_some() { Extent::FULL } else { Extent::LEAN };
    let seed = seed()?;
    say!("the same moments again: VEER_SEED={seed}");
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
        let row = |fault: &&Fault| {
            let row = endure(fault, &mut stage, &before)?;
            say!("  {}", table::progress(&row));
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
