//! Runs the programs of the plan, each with a limit, and clears away what they leave.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;
use veer_tests::wait;

use crate::plan::{Plan, Program};
use crate::report::{self, Event};

const PLACE: &str = "/veer";

/// `veer doctor --json`, and its exit code.
pub(crate) fn doctor(plan: &Plan) -> Result<(Option<i32>, Value)> {
    let mut command = Command::new(at("veer"));
    let output = command.args(["doctor", "--json"]).envs(&plan.environment).output().context("start veer")?;
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_no_json| Value::String(String::from_utf8_lossy(&output.stderr).into_owned()));
    Ok((output.status.code(), report))
}

/// Runs one and reports it, without the tests whose names begin so, which do not apply. Nothing that it has started
/// outlives it.
pub(crate) fn program(plan: &Plan, suite: &str, program: &Program, inapplicable: &[&str]) -> Result<()> {
    let name = &program.name;
    let wanted = program.test.as_deref().unwrap_or_default();
    let names = tests(name)?.into_iter().filter(|test| test.contains(wanted));
    let (without, tests): (Vec<_>, Vec<_>) =
        names.partition(|test| inapplicable.iter().any(|prefix| test.starts_with(prefix)));
    let count = tests.len();
    report::tell(&Event::Start { suite, program: name, tests: count, without });
    if tests.is_empty() {
        let (exit, late, seconds) = (Some(0), false, 0.0);
        report::tell(&Event::End { suite, program: name, exit, late, seconds });
        return Ok(());
    }
    let mut command = Command::new(at(name));
    command.arg("--exact").args(&program.arguments).args(tests);
    command.envs(&plan.environment).envs(&program.environment);
    command.stdin(Stdio::null()).current_dir(PLACE);
    let started = Instant::now();
    let child = command.spawn().with_context(|| format!("start {name}"))?;
    let pid = Pid::from_raw(i32::try_from(child.id()).context("a pid")?);
    let ended = wait::until_some(name, Duration::from_secs(program.limit), || reap(pid)).ok();
    // To all but oneself, the first process; ESRCH where all have ended by themselves.
    match kill(Pid::from_raw(-1), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => return Err(error).context("end what is left"),
    }
    while waitpid(None, None).is_ok() {}
    let seconds = started.elapsed().as_secs_f64();
    let late = ended.is_none();
    report::tell(&Event::End { suite, program: name, exit: ended.and_then(Ended::code), late, seconds });
    Ok(())
}

/// The names of its tests.
fn tests(name: &str) -> Result<Vec<String>> {
    let mut command = Command::new(at(name));
    let output =
        command.args(["--list", "--format=terse"]).output().with_context(|| format!("start {name}"))?;
    let listing = String::from_utf8(output.stdout).with_context(|| format!("read the tests of {name}"))?;
    let tests: Vec<_> =
        listing.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
    if tests.is_empty() {
        bail!("{name} names no tests: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(tests)
}

/// How a program has ended.
#[derive(Clone, Copy)]
enum Ended {
    Exited(i32),
    BySignal,
}

impl Ended {
    const fn code(self) -> Option<i32> {
        match self {
            Self::Exited(code) => Some(code),
            Self::BySignal => None,
        }
    }
}

/// Takes in all processes that have ended, as the first process must. How `wanted` has, once it has.
fn reap(wanted: Pid) -> Option<Ended> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == wanted => return Some(Ended::Exited(code)),
            Ok(WaitStatus::Signaled(pid, ..)) if pid == wanted => return Some(Ended::BySignal),
            Ok(WaitStatus::StillAlive) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

fn at(name: &str) -> PathBuf {
    Path::new(PLACE).join(name)
}
