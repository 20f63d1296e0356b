//! The run: what is measured in which order, and what is left of it.

use std::fs;
use std::io::{ErrorKind, Write, stdout};

use anyhow::{Context, Result};
use nix::sys::utsname::uname;
use rustix::process::setpriority_process;
use veer_tests::supervise;

use crate::order::Cpus;
use crate::progress::Progress;
use crate::report::{Machine, Report};
use crate::scene::Scene;
use crate::{Options, footprint, joining, paths, plot, table};

/// The strongest.
const PRIORITY: i32 = -20;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// Rounds of every workload, direction and case.
    pub(crate) rounds: usize,
    /// Pods that are enrolled over the agent's socket.
    pub(crate) enrolments: usize,
    /// Pods for the whole processes.
    pub(crate) processes: usize,
}

impl Extent {
    const FULL: Self = Self { rounds: 61, enrolments: 50, processes: 40 };
    const QUICK: Self = Self { rounds: 15, enrolments: 50, processes: 10 };
}

/// Measures, prints the table, and writes the files.
pub(crate) fn run(options: &Options) -> Result<()> {
    supervise::be_supervised()?;
    // The ends, the agent and the plugins inherit it: what else the machine does waits for the bench, and
    // not the other way round. It favours none.
    setpriority_process(None, PRIORITY).context("raise the priority")?;
    let extent = if options.quick { Extent::QUICK } else { Extent::FULL };
    let cpus = options.cpus.map_or_else(Cpus::same, Ok)?;
    let progress = Progress::start();
    let load_before = load()?;

    progress.say("setting up three pods and an agent");
    let mut scene = Scene::set(cpus)?;
    let paths = paths::measure(&mut scene, extent, &progress)?;
    drop(scene);
    let (agent_add, footprint) = footprint::measure(extent, &progress)?;
    let joining = joining::measure(agent_add, extent, &progress)?;

    let machine = Machine {
        kernel: uname().context("ask for the kernel's version")?.release().display().to_string(),
        cpus: std::thread::available_parallelism().context("count the CPUs")?.get(),
        ends: cpus,
        load_before,
        load_after: load()?,
    };
    let report = Report::new(machine, paths, joining, footprint);
    write(&table::render(&report))?;
    let directory = &options.out;
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    for (name, text) in
        [("bench.json", serde_json::to_string_pretty(&report)?), ("bench.svg", plot::draw(&report))]
    {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        progress.say(&format!("wrote {}", path.display()));
    }
    Ok(())
}

/// Processes that wanted a CPU in the last minute, on average: how much else was going on.
pub(crate) fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("read /proc/loadavg")?;
    text.split(' ').next().and_then(|load| load.parse().ok()).context("/proc/loadavg has no load")
}

/// To standard output.
pub(crate) fn write(text: &str) -> Result<()> {
    match stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough; the files are still wanted.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("write to standard output"),
    }
}
