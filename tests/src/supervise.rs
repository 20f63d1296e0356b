//! Two processes instead of one, for programs whose guards may not get to run: one works, the other waits, and cleans
//! up, however that one ends.
//!
//! A release build aborts where it panics, and a signal ends it as it is. In the process that was started nothing
//! runs but waiting. Owns: the lock, the signals, and the exit code. Never does: clean up itself; that is its caller's.
//! Called by: the demo and the benchmarks.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::geteuid;
use rustix::process::{self, set_parent_process_death_signal};

/// What a shell says of a process that was interrupted: 128 and the signal.
const INTERRUPTED: u8 = 128;

/// Held as long as a program runs that must be the only one of its kind.
#[derive(Debug)]
pub struct TheOnlyOne {
    name: &'static str,
    _lock: Flock<File>,
}

impl TheOnlyOne {
    /// Of the programs called `name`, by a lock on this file.
    ///
    /// # Errors
    /// Where another one runs, and without root, which all of them need.
    pub fn of(name: &'static str, lock: &str) -> Result<Self> {
        if !geteuid().is_root() {
            bail!("needs root: it makes network namespaces and attaches eBPF programs; run it with sudo");
        }
        let file = File::create(lock).with_context(|| format!("create {lock}"))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { name, _lock: lock }),
            Err((_, nix::Error::EWOULDBLOCK)) => bail!("another {name} is running ({lock} is locked)"),
            Err((_, error)) => Err(error).with_context(|| format!("lock {lock}")),
        }
    }

    /// Starts this program once more, with its arguments and `role`, by which it knows that it is to work, and waits
    /// for it. A signal that would end a program ends that one.
    pub fn supervise(&self, role: impl AsRef<OsStr>) -> Result<ExitCode> {
        // Blocked before the other one starts, so that none is missed.
        let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        signals.thread_block().context("block signals")?;
        let mut command = Command::new(std::env::current_exe().context("find the running executable")?);
        let mut worker = command
            .args(std::env::args_os().skip(1))
            .arg(role)
            .spawn()
            .with_context(|| format!("start the {}", self.name))?;
        self.wait(&mut worker, &signals)
    }

    fn wait(&self, worker: &mut Child, signals: &SigSet) -> Result<ExitCode> {
        loop {
            if let Some(status) = worker.try_wait().with_context(|| format!("wait for the {}", self.name))? {
                return Ok(self.exit_code(status));
            }
            let signal = signals.wait().context("wait for a signal")?;
            if signal != Signal::SIGCHLD {
                eprintln!("{}: {signal}, cleaning up", self.name);
                worker.kill().with_context(|| format!("kill the {}", self.name))?;
                worker.wait().with_context(|| format!("wait for the {}", self.name))?;
                return Ok(ExitCode::from(INTERRUPTED + signal as u8));
            }
        }
    }

    /// The other one's own, or a failure that names what ended it.
    fn exit_code(&self, status: ExitStatus) -> ExitCode {
        if let Some(signal) = status.signal() {
            eprintln!("{}: it was ended by signal {signal}", self.name);
        }
        status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
    }
}

/// For the process that works, before all else: it ends with the one that waits, and does not inherit that signals are
/// blocked, nor do those that it starts. An agent would not hear that it is to end.
pub fn be_supervised() -> Result<()> {
    set_parent_process_death_signal(Some(process::Signal::KILL)).context("ask to die with the supervisor")?;
    SigSet::empty().thread_set_mask().context("unblock signals")
}
