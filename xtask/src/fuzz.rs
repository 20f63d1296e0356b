//! `cargo xtask fuzz`: libFuzzer on everything that comes from outside.
//!
//! The targets are in `fuzz/`; their bodies stand with the tests of the crates, which run them over the
//! committed corpus each time. What a run finds interesting is kept below the build's directory; what it adds
//! to the coverage goes into the corpus with `--keep`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::exec::{print, quiet, run as run_command, say, step};
use crate::{FAILED, workspace};

/// What is fuzzed; each has a target and a corpus of its name.
const TARGETS: [&str; 7] =
    ["annotations", "manifest", "cni_message", "monitor_line", "plugin", "conflist", "zds"];
const FUZZER_VERSION: &str = "0.13.2";
/// Nothing that these parsers take becomes more interesting by being longer.
const LONGEST_INPUT: usize = 1024;
const BUILD_LIMIT: Duration = Duration::from_mins(20);
/// Merging runs each input a few times.
const MERGE_LIMIT: Duration = Duration::from_mins(10);

/// What to fuzz.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// One target; all of them, one after the other, if absent
    #[arg(value_parser = TARGETS)]
    target: Option<String>,
    /// How long each
    #[arg(long, value_name = "MINUTES", default_value_t = 10)]
    minutes: u64,
    /// Take what adds to the coverage into the corpus of the repository
    #[arg(long)]
    keep: bool,
}

/// The verb.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let root = workspace::root()?;
    install()?;
    step("building the fuzz targets", cargo_fuzz(&root).args(["build", "--sanitizer", "none"]), BUILD_LIMIT)?;
    let mut failed = Vec::new();
    for target in TARGETS.iter().filter(|target| options.target.as_deref().is_none_or(|one| one == **target))
    {
        say(&format!("\n== {target}, {} min", options.minutes));
        let found = found(&root, target)?;
        if let Err(error) = run_command(&mut fuzz(&root, target, &found, options.minutes)) {
            say(&format!("{error:#}"));
            failed.push(*target);
        } else if options.keep {
            step(
                &format!("merging into fuzz/corpus/{target}"),
                &mut merge(&root, target, &found),
                MERGE_LIMIT,
            )?;
        }
    }
    if failed.is_empty() {
        print("nothing found")?;
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!("found something: {}; the inputs are in fuzz/artifacts", failed.join(", ")));
    Ok(ExitCode::from(FAILED))
}

/// cargo-fuzz, if it is not there.
fn install() -> Result<()> {
    if quiet(Command::new("cargo").args(["fuzz", "--version"]).env("PATH", workspace::search_path()))
        .is_some()
    {
        return Ok(());
    }
    let mut command = Command::new("cargo");
    command.args(["install", "cargo-fuzz", "--locked", "--version", FUZZER_VERSION]).current_dir("/");
    step("building cargo-fuzz (one minute)", &mut command, BUILD_LIMIT)
}

/// Where inputs go that are interesting for now.
fn found(root: &Path, target: &str) -> Result<PathBuf> {
    let directory = root.join("fuzz/found").join(target);
    std::fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    Ok(directory)
}

fn fuzz(root: &Path, target: &str, found: &Path, minutes: u64) -> Command {
    let mut command = cargo_fuzz(root);
    command.args(["run", "--sanitizer", "none", target]).arg(found).arg(corpus(root, target));
    command.args(["--", "-print_final_stats=1", &format!("-max_len={LONGEST_INPUT}")]);
    command.arg(format!("-max_total_time={}", minutes * 60));
    command
}

fn merge(root: &Path, target: &str, found: &Path) -> Command {
    let mut command = cargo_fuzz(root);
    command.args(["run", "--sanitizer", "none", target]).arg(corpus(root, target)).arg(found);
    command.args(["--", "-merge=1", &format!("-max_len={LONGEST_INPUT}")]);
    command
}

fn corpus(root: &Path, target: &str) -> PathBuf {
    root.join("fuzz/corpus").join(target)
}

/// The fuzzer's instrumentation is an unstable option of the compiler; the eBPF programs are not needed.
fn cargo_fuzz(root: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.arg("fuzz").current_dir(root.join("fuzz")).env("PATH", workspace::search_path());
    command.env("RUSTC_BOOTSTRAP", "1").env("AYA_BUILD_SKIP", "1");
    command
}
