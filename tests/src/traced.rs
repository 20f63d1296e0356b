//! A process that stops before each of its system calls: the test sees them in their order, and can kill it at any.
//!
//! Owns: the tracing of a program without threads. Never does: change a call. Used with:
//! [`Launch::traced`](crate::launch::Launch::traced).

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// A call that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// Its number.
    pub number: i64,
    /// Its arguments.
    pub arguments: [u64; 4],
    /// What it gave back: a value, or an error as a negative number.
    pub outcome: i64,
}

/// A traced process. Only the thread that started it may use it. Dropping it kills it.
#[derive(Debug)]
pub struct Traced {
    pid: Pid,
    ended: Option<i32>,
}

impl Traced {
    /// Starts a command that was made with [`Launch::traced`](crate::launch::Launch::traced); it stops before its
    /// program does anything.
    pub fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("start the program")?;
        let pid = Pid::from_raw(child.id().try_into().context("a pid")?);
        let traced = Self { pid, ended: None };
        let stopped = waitpid(pid, None).context("wait for its first stop")?;
        if stopped != WaitStatus::Stopped(pid, Signal::SIGTRAP) {
            bail!("it has not stopped, but {stopped:?}");
        }
        ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL)
            .context("trace its calls")?;
        Ok(traced)
    }

    /// Lets it go on to its next call, and through that.
    ///
    /// # Errors
    /// If it cannot be traced. `None` when it has ended.
    pub fn call(&mut self) -> Result<Option<Call>> {
        if !self.stop()? {
            return Ok(None);
        }
        // Before the call; what it gives back is known at the second stop.
        let before = ptrace::getregs(self.pid).context("read the call")?;
        let number = before.orig_rax.cast_signed();
        let arguments = [before.rdi, before.rsi, before.rdx, before.r10];
        if !self.stop()? {
            return Ok(None);
        }
        let after = ptrace::getregs(self.pid).context("read what it gave back")?;
        Ok(Some(Call { number, arguments, outcome: after.rax.cast_signed() }))
    }

    /// What it has ended with.
    pub const fn exit_code(&self) -> Option<i32> {
        self.ended
    }

    fn stop(&mut self) -> Result<bool> {
        if self.ended.is_some() {
            return Ok(false);
        }
        ptrace::syscall(self.pid, None).context("let it go on")?;
        loop {
            match waitpid(self.pid, None).context("wait for its next stop")? {
                WaitStatus::PtraceSyscall(_) => return Ok(true),
                WaitStatus::Stopped(_, signal) => {
                    ptrace::syscall(self.pid, signal).context("let it go on")?;
                }
                WaitStatus::Exited(_, code) => self.ended = Some(code),
                WaitStatus::Signaled(..) => self.ended = Some(-1),
                WaitStatus::PtraceEvent(..) | WaitStatus::Continued(_) | WaitStatus::StillAlive => {}
            }
            if self.ended.is_some() {
                return Ok(false);
            }
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let killed = ptrace::kill(self.pid).and_then(|()| waitpid(self.pid, None).map(drop));
            if let Err(error) = killed {
                eprintln!("kill what is traced: {error}");
            }
        }
    }
}
