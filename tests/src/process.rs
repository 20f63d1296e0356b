//! A process that a guard owns, with its output in a file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// A running process. Dropping it kills it; a panicking test prints what it had to say.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; standard output and error go to `log`, after what is there already.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let open = || File::options().create(true).append(true).open(log);
        let output = open().with_context(|| format!("open {}", log.display()))?;
        let errors = output.try_clone().context("duplicate the log's descriptor")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("start {name}: {}", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it wrote so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| format!("{}: {error}", self.log.display()))
    }

    /// The end of it: enough to see what is wrong.
    pub fn last_words(&self) -> String {
        last_of(&self.log()).to_owned()
    }

    /// Waits until `ready` succeeds.
    ///
    /// # Errors
    /// When it ends before, or takes too long; both with its log.
    pub fn wait_ready<T>(&mut self, mut ready: impl FnMut() -> Result<T>) -> Result<T> {
        let mut ended = None;
        let what = format!("{} to be ready", self.name);
        let outcome = wait::until_ok(&what, wait::LIMIT, || {
            // Asked first: an answer from somebody else's process would be no answer.
            ended = self.child.try_wait().context("ask whether it runs")?;
            if ended.is_some() { Ok(None) } else { ready().map(Some) }
        });
        match (outcome, ended) {
            (Ok(Some(value)), _) => Ok(value),
            (_, Some(status)) => {
                bail!("{} ended with {status}; its log:\n{}", self.name, last_of(&self.log()))
            }
            (Err(late), None) => bail!("{late:#}; its log:\n{}", last_of(&self.log())),
            (Ok(None), None) => bail!("{} ended", self.name),
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).context("a process id is positive")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Asks it to end (SIGTERM) and waits.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait()
    }

    /// Kills it (SIGKILL) and waits.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.wait()
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("ask whether {} runs", self.name))
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        wait::until_some(&what, wait::LIMIT, || self.child.try_wait().transpose())?
            .with_context(|| format!("wait for {}", self.name))
    }
}

/// Enough to see why; an API server's whole log is megabytes.
fn last_of(log: &str) -> &str {
    const LINES: usize = 300;
    let start = log.rmatch_indices('\n').nth(LINES).map_or(0, |(newline, _)| newline + 1);
    log.get(start..).unwrap_or(log)
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- {} said:\n{}---", self.name, last_of(&self.log()));
        }
        // It may have ended already, which is what is wanted here.
        self.child
            .kill()
            .and_then(|()| self.child.wait())
            .map_or_else(|error| eprintln!("kill {}: {error}", self.name), drop);
    }
}
