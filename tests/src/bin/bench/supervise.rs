//! The process that is started: it runs the one that measures, and cleans up, however that one ends.
//!
//! A release build aborts where it panics, and a signal ends it as it is: guards do not help then. Here
//! nothing runs but waiting.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::geteuid;
use rustix::process::{self, set_parent_process_death_signal};
use veer_tests::scratch;

/// Held while a bench runs: two would measure each other.
const LOCK: &str = "/run/veer-bench.lock";
/// What a shell says of a process that was interrupted: 128 and the signal.
const INTERRUPTED: u8 = 128;

/// Runs the bench and removes what it leaves. `measures` is the argument that has the process measure.
pub(crate) fn supervise(measures: &str) -> Result<ExitCode> {
    let _lock = be_the_only_one()?;
    // Blocked before the bench starts, so that none is missed.
    let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("block signals")?;
    let mut command = Command::new(std::env::current_exe().context("find the running executable")?);
    let mut bench =
        command.args(std::env::args_os().skip(1)).arg(measures).spawn().context("start the bench")?;
    let outcome = wait(&mut bench, &signals);
    scratch::remove_leftovers();
    outcome
}

/// For the process that measures: it ends with the one that waits, and does not inherit that signals are blocked,
/// nor do those that it starts. An agent would not hear that it is to end.
pub(crate) fn be_supervised() -> Result<()> {
    set_parent_process_death_signal(Some(process::Signal::KILL)).context("ask to die with the supervisor")?;
    SigSet::empty().thread_set_mask().context("unblock signals")
}

fn be_the_only_one() -> Result<Flock<File>> {
    if !geteuid().is_root() {
        bail!("needs root: it makes network namespaces and attaches eBPF programs; run it with sudo");
    }
    let file = File::create(LOCK).with_context(|| format!("create {LOCK}"))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::Error::EWOULDBLOCK)) => bail!("another bench is running ({LOCK} is locked)"),
        Err((_, error)) => Err(error).with_context(|| format!("lock {LOCK}")),
    }
}

fn wait(bench: &mut Child, signals: &SigSet) -> Result<ExitCode> {
    loop {
        if let Some(status) = bench.try_wait().context("wait for the bench")? {
            return Ok(exit_code(status));
        }
        let signal = signals.wait().context("wait for a signal")?;
        if signal != Signal::SIGCHLD {
            eprintln!("bench: {signal}, cleaning up");
            bench.kill().context("kill the bench")?;
            bench.wait().context("wait for the bench")?;
            return Ok(ExitCode::from(INTERRUPTED + signal as u8));
        }
    }
}

/// The bench's own, or a failure that names what ended it.
fn exit_code(status: ExitStatus) -> ExitCode {
    if let Some(signal) = status.signal() {
        eprintln!("bench: it was ended by signal {signal}");
    }
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
