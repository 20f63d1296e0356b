//! The process that is started: it makes room, runs the demo, and cleans up, however the demo ends.
//!
//! Cleaning up in the process that panics, is killed or is interrupted would be cleaning up most of the
//! time. Here nothing runs but waiting.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::geteuid;

use crate::place;

/// What a shell says of a process that was interrupted: 128 and the signal.
const INTERRUPTED: u8 = 128;

/// Runs the demo and takes everything down after it, unless it is to be kept.
pub(crate) fn supervise() -> Result<ExitCode> {
    let _lock = be_the_only_one()?;
    if place::take_down().context("take down an earlier demo")? {
        eprintln!("demo: took down what an earlier demo left");
    }
    // Blocked before the demo starts, so that none is missed; the demo starts with none blocked.
    let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("block signals")?;
    let mut command = Command::new(std::env::current_exe().context("find the running executable")?);
    let mut demo =
        command.args(std::env::args_os().skip(1)).arg("--on-stage").spawn().context("start the demo")?;
    let outcome = wait(&mut demo, &signals);
    if place::is_kept() {
        return outcome;
    }
    place::take_down().context("take down the demo")?;
    outcome
}

/// Takes down what an earlier demo kept.
pub(crate) fn take_down() -> Result<ExitCode> {
    let _lock = be_the_only_one()?;
    let found = place::take_down()?;
    eprintln!("demo: {}", if found { "taken down" } else { "nothing is up" });
    Ok(ExitCode::SUCCESS)
}

fn be_the_only_one() -> Result<Flock<File>> {
    if !geteuid().is_root() {
        bail!("needs root: it makes network namespaces and attaches eBPF programs; run it with sudo");
    }
    let file = File::create(place::LOCK).with_context(|| format!("create {}", place::LOCK))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::Error::EWOULDBLOCK)) => bail!("another demo is running ({} is locked)", place::LOCK),
        Err((_, error)) => Err(error).with_context(|| format!("lock {}", place::LOCK)),
    }
}

fn wait(demo: &mut Child, signals: &SigSet) -> Result<ExitCode> {
    loop {
        if let Some(status) = demo.try_wait().context("wait for the demo")? {
            return Ok(exit_code(status));
        }
        let signal = signals.wait().context("wait for a signal")?;
        if signal != Signal::SIGCHLD {
            eprintln!("demo: {signal}, taking everything down");
            demo.kill().context("kill the demo")?;
            demo.wait().context("wait for the demo")?;
            return Ok(ExitCode::from(INTERRUPTED + signal as u8));
        }
    }
}

/// The demo's own, or a failure that names what ended it.
fn exit_code(status: ExitStatus) -> ExitCode {
    if let Some(signal) = status.signal() {
        eprintln!("demo: it was ended by signal {signal}");
    }
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
