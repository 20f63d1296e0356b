//! `bench proxy`: a sidecar in each pod, or one Envoy for all pods of a node.
//!
//! Owns: the order of measuring, and the verdicts on the targets. Two nodes on one machine, each with an agent of its
//! own: the pods of one have sidecars, those of the other are served by the node's Envoy ([`side`]). Both are filled to the
//! same number of pods, of which two talk to each other ([`traffic`]), on one node and on the other in turns.

mod side;
mod table;
mod traffic;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use nix::sys::utsname::uname;
use serde::Serialize;
use veer_tests::pod::World;
use veer_tests::supervise;

use crate::order::Cpus;
use crate::progress::Progress;
use crate::report::Timing;
use crate::run;
use side::{Driver, Side, Standing};
use traffic::Comparison;

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Pods of each node: memory, CPU and traffic are measured at each of these numbers
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [2, 50, 250],
          value_parser = clap::value_parser!(u16).range(2..=1000))]
    pods: Vec<u16>,
    /// Rounds of traffic
    #[arg(long, default_value_t = 21)]
    rounds: usize,
    /// Is the process that measures
    #[arg(long, hide = true)]
    pub(crate) measures: bool,
}

/// What was found. What `proxy.json` holds.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) kernel: String,
    pub(crate) cpus: usize,
    pub(crate) load_before: f64,
    pub(crate) load_after: f64,
    pub(crate) rounds: usize,
    pub(crate) stages: Vec<Stage>,
    pub(crate) joining: Joining,
}

/// Both nodes with so many pods.
#[derive(Debug, Serialize)]
pub(crate) struct Stage {
    pub(crate) pods: u16,
    pub(crate) sidecars: Standing,
    pub(crate) node: Standing,
    pub(crate) paths: Vec<Comparison>,
}

/// How long a pod waits for its proxy, over all pods, in milliseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Joining {
    /// ADD over the agent's socket, of a pod with a sidecar.
    pub(crate) sidecar_add: Timing,
    /// From the start of the sidecar until it is ready, which comes after that.
    pub(crate) sidecar_ready: Timing,
    /// ADD over the agent's socket, until the node's Envoy has both listeners.
    pub(crate) node_add: Timing,
}

/// Measures, prints the table, and writes `proxy.json`.
pub(crate) fn run(options: &Options, out: &Path) -> Result<ExitCode> {
    supervise::be_supervised()?;
    let progress = Progress::start();
    let load_before = run::load()?;
    let cpus = Cpus::same()?;
    let most = options.pods.iter().copied().max().unwrap_or_default();
    let world = World::new()?;
    progress.say(&format!("two nodes, and manifests of {most} pods for each"));
    let mut sidecars = Side::start(&world, Driver::Sidecar, most, cpus)?;
    let mut node = Side::start(&world, Driver::Node, most, cpus)?;

    let mut stages = Vec::new();
    let mut counts = options.pods.clone();
    counts.sort_unstable();
    counts.dedup();
    for pods in counts {
        progress.say(&format!("{pods} pods with sidecars"));
        sidecars.fill(pods)?;
        progress.say(&format!("{pods} pods with one Envoy"));
        node.fill(pods)?;
        progress.say("watching them do nothing");
        let standings = (sidecars.standing()?, node.standing()?);
        let paths = traffic::measure(&mut sidecars, &mut node, options.rounds, &progress)?;
        stages.push(Stage { pods, sidecars: standings.0, node: standings.1, paths });
    }
    let joining = Joining {
        sidecar_add: Timing::of(sidecars.adds())?,
        sidecar_ready: Timing::of(sidecars.readies())?,
        node_add: Timing::of(node.adds())?,
    };
    let report = Report {
        kernel: uname().context("ask for the kernel's version")?.release().display().to_string(),
        cpus: std::thread::available_parallelism().context("count the CPUs")?.get(),
        load_before,
        load_after: run::load()?,
        rounds: options.rounds,
        stages,
        joining,
    };
    progress.say("taking it down");
    drop((sidecars, node));
    tell(&report, out, &progress)
}

fn tell(report: &Report, out: &Path, progress: &Progress) -> Result<ExitCode> {
    let targets = table::targets(report);
    run::write(&table::render(report, &targets))?;
    fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
    let path = out.join("proxy.json");
    fs::write(&path, serde_json::to_string_pretty(report)?)
        .with_context(|| format!("write {}", path.display()))?;
    progress.say(&format!("wrote {}", path.display()));
    let met = targets.iter().all(|target| target.is_met);
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
