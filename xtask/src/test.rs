//! `cargo xtask test`: the tests by cost, cheap ones first.
//!
//! All of it is built once, in the dev profile: whether a test is on sockets or not, it runs with the
//! same dependencies, and the `veer` that it starts has its assertions. The release binaries are what
//! `demo` and `bench` run. Measured cold, in processor time: 300 s for all of the dev profile, tests
//! included; 370 s for the release binaries alone; and the unit tests take seconds even unoptimized. Nothing is skipped: who lacks a privilege is told before anything is built.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::build::{self, Profile};
use crate::exec::{self, say};
use crate::{FAILED, Unavailable, kube, setup, stage, workspace};

/// What to test.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// `unit` (needs no root), `netns` (whole programs, on sockets), `faults` (the fault suite in full, minutes),
    /// `kube` (in a real Kubernetes, which `setup --kube` installs; no part of all tests), or a part of a test's name
    #[arg(value_name = "unit|netns|faults|kube|NAME")]
    part: Option<String>,
    /// A part of a test's name
    name: Option<String>,
    /// Makes up 200 further policies for the matrix of connections, and does ten times as much in the fault suite,
    /// which takes minutes
    #[arg(long)]
    long: bool,
}

/// The selection that the arguments make.
struct Selection {
    unit: bool,
    netns: bool,
    name: Option<String>,
}

impl Options {
    fn selection(&self) -> Selection {
        match (self.part.as_deref(), &self.name) {
            (Some("unit"), name) => Selection { unit: true, netns: false, name: name.clone() },
            (Some("netns"), name) => Selection { unit: false, netns: true, name: name.clone() },
            (part, _) => Selection { unit: true, netns: true, name: part.map(str::to_owned) },
        }
    }
}

/// The fault suite, which in full takes too long to be part of all tests: asked for by this name, it is.
const FAULTS: &str = "faults";

impl Selection {
    /// Whether something of it upgrades an agent to another build.
    fn upgrades(&self) -> bool {
        let is_asked = |name: &String| {
            FAULTS.contains(name.as_str())
                || "agent upgraded".contains(name.as_str())
                || name.contains("build")
        };
        self.netns && self.name.as_ref().is_none_or(is_asked)
    }
}

/// The suite in a real Kubernetes.
const KUBE: &str = "kube";

/// The verb.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.part.as_deref() == Some(KUBE) {
        return kube::run(options.name.as_deref());
    }
    let started = Instant::now();
    let selection = options.selection();
    let root = workspace::root()?;
    if selection.netns && !setup::is_root() {
        let text = "the tests on sockets make network namespaces, load eBPF and attach it to a cgroup: run them \
                    as root\n  without root: cargo xtask test unit";
        return Err(Unavailable(text.to_owned()).into());
    }
    let tools = setup::ensure()?;
    let other = if selection.upgrades() { Some(build::other_build(&root)?) } else { None };
    let binaries = build::executables(&root, Profile::Dev, &["--bins"])?.of_a_node()?;

    let mut total = Count::default();
    let mut failed = Vec::new();
    for run in RUNS.iter().filter(|run| if run.needs_root { selection.netns } else { selection.unit }) {
        say(&format!("\n== {}", run.what));
        let mut command = workspace::cargo(&root);
        command
            .args(["test", "--workspace", "--exclude", workspace::KERNEL_CRATE, "--no-fail-fast"])
            .args(run.targets);
        command.args(["--"]).args(&selection.name);
        command.envs(stage::variables(&binaries, &tools));
        command.envs(other.iter().map(|other| ("VEER_OTHER_BIN", other)));
        if options.long || selection.name.as_deref() == Some(FAULTS) {
            command.env("VEER_LONG", "1");
        }
        let mut count = Count::default();
        let status = exec::watch(&mut command, |line| count.add(line))?;
        total = total.plus(count);
        if !status.success() {
            failed.push(format!("{} failed; to run it alone:\n  {}", run.what, exec::shell_line(&command)));
        }
    }
    summarize(total, &failed, started, selection.name.as_deref())
}

fn summarize(total: Count, failed: &[String], started: Instant, name: Option<&str>) -> Result<ExitCode> {
    for text in failed {
        say(&format!("\n{text}"));
    }
    let ignored = if total.ignored > 0 { format!(", {} ignored", total.ignored) } else { String::new() };
    let seconds = started.elapsed().as_secs();
    exec::print(&format!("\n{} passed, {} failed{ignored} in {seconds} s", total.passed, total.failed))?;
    let nothing_ran = total.passed + total.failed == 0;
    if let (true, Some(name)) = (nothing_ran, name) {
        say(&format!("no test has `{name}` in its name"));
    }
    Ok(ExitCode::from(if failed.is_empty() && !nothing_ran { 0 } else { FAILED }))
}

/// One call of cargo.
struct Run {
    what: &'static str,
    targets: &'static [&'static str],
    needs_root: bool,
}

/// The rule of the house: what is in `src` needs no privilege, what is in `tests` starts programs in
/// network namespaces. In each call the packages are the whole workspace, so that features, and with them
/// the compiled dependencies, are the same in all; the targets select.
const RUNS: [Run; 3] = [
    Run { what: "unit tests", targets: &["--lib", "--bins"], needs_root: false },
    Run { what: "examples of the documentation", targets: &["--doc"], needs_root: false },
    Run { what: "golden tests and tests on sockets", targets: &["--test", "*"], needs_root: true },
];

/// Tests of one or more runs.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) ignored: u32,
}

impl Count {
    /// `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s`
    pub(crate) fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.split_once("test result: ").and_then(|(_, rest)| rest.split_once(". "))
        else {
            return;
        };
        for part in counts.split(';') {
            let Some((number, what)) = part.trim().split_once(' ') else { continue };
            let number: u32 = number.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_runs_are_summed() {
        let mut count = Count::default();
        count.add("running 3 tests");
        count.add(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.02s",
        );
        count.add("test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s");
        assert_eq!(count, Count { passed: 17, failed: 2, ignored: 1 });
        assert_eq!(count.plus(count), Count { passed: 34, failed: 4, ignored: 2 });
    }

    #[test]
    fn a_part_or_a_name_selects() {
        let select = |part: Option<&str>, name: Option<&str>| {
            let options =
                Options { part: part.map(str::to_owned), name: name.map(str::to_owned), long: false };
            let selection = options.selection();
            (selection.unit, selection.netns, selection.name)
        };
        assert_eq!(select(None, None), (true, true, None));
        assert_eq!(select(Some("unit"), None), (true, false, None));
        assert_eq!(select(Some("netns"), Some("reuseport")), (false, true, Some("reuseport".to_owned())));
        assert_eq!(select(Some("reuseport"), None), (true, true, Some("reuseport".to_owned())));
    }

    #[test]
    fn the_other_build_is_built_for_who_upgrades() {
        let upgrades = |netns, name: Option<&str>| {
            Selection { unit: true, netns, name: name.map(str::to_owned) }.upgrades()
        };
        assert!(upgrades(true, None) && upgrades(true, Some("faults")) && upgrades(true, Some("upgraded")));
        assert!(!upgrades(false, None) && !upgrades(true, Some("reuseport")));
    }
}
