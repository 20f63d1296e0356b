//! A gate that each bpf(2) of a process has to pass: the test lets it go, has it fail, or kills the caller.
//!
//! So the real program meets the real kernel, and still fails at exactly the call that the test chooses. The
//! launcher puts itself under a filter ([`seccomp`]), gives the filter's descriptor to the gate over a socket,
//! and executes the program. Owns: the socket, the plan, and a thread for each process. Used with:
//! [`Launch::before_bpf_gate`](crate::launch::Launch::before_bpf_gate).

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use socket2::SockRef;
use tempfile::TempDir;

use crate::scratch;
use crate::seccomp::{self, Answer, put_bpf_before_listener};

/// What becomes of the call that the test has chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It fails with this error; the kernel does nothing.
    Fail(Errno),
    /// Its caller is killed before the kernel does anything.
    Kill,
}

#[derive(Debug, Default)]
struct Plan {
    /// The commands of the calls since the plan was made.
    commands: Vec<u64>,
    /// Which of them, and what becomes of it.
    chosen: Option<(u64, Fate)>,
    /// With what every one of them fails.
    closed: Option<Errno>,
}

/// The gate. Processes that came through it stay under their filter, which lets all go once the guard is gone
/// only as long as the process that holds the gate lives: end them before.
#[derive(Debug)]
pub struct BpfGate {
    plan: Arc<Mutex<Plan>>,
    listener: UnixListener,
    path: PathBuf,
    _directory: TempDir,
}

impl BpfGate {
    /// Opens one that lets everything go.
    pub fn new() -> Result<Self> {
        let directory = scratch::directory()?;
        let path = directory.path().join("gate.sock");
        let listener = UnixListener::bind(&path).context("listen for launchers")?;
        let plan = Arc::<Mutex<Plan>>::default();
        let (accepting, shared) = (listener.try_clone()?, Arc::clone(&plan));
        thread::spawn(move || {
            while let Ok((launcher, _)) = accepting.accept() {
                match take_in(launcher) {
                    Ok(filter) => drop(thread::spawn({
                        let plan = Arc::clone(&shared);
                        move || keep(&filter, &plan)
                    })),
                    Err(error) => eprintln!("the gate takes nobody in: {error:#}"),
                }
            }
        });
        Ok(Self { plan, listener, path, _directory: directory })
    }

    /// Where launchers come.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Counts from 0 on, and chooses what becomes of the call with this number.
    pub fn choose(&self, number: u64, fate: Fate) {
        *lock(&self.plan) = Plan { chosen: Some((number, fate)), ..Plan::default() };
    }

    /// Has every call fail, as a container's seccomp profile does that has no bpf(2).
    pub fn close(&self, error: Errno) {
        *lock(&self.plan) = Plan { closed: Some(error), ..Plan::default() };
    }

    /// Lets everything go again; gives back how many calls there were since the last choice.
    pub fn open(&self) -> u64 {
        self.commands().len().try_into().unwrap_or(u64::MAX)
    }

    /// The same, and tells the commands (`enum bpf_cmd`) of those calls.
    pub fn commands(&self) -> Vec<u64> {
        std::mem::take(&mut *lock(&self.plan)).commands
    }
}

impl Drop for BpfGate {
    fn drop(&mut self) {
        // Wakes the thread, whose accept() fails from here on.
        if let Err(error) = SockRef::from(&self.listener).shutdown(Shutdown::Both) {
            eprintln!("close the gate: {error}");
        }
    }
}

/// Puts this process before the gate at `path`; what it executes then is there, too.
pub fn go_before(path: &Path) -> Result<()> {
    let mut gate = UnixStream::connect(path).with_context(|| format!("connect to {}", path.display()))?;
    let filter = put_bpf_before_listener().context("put bpf(2) before a listener")?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [filter.as_fd()];
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        bail!("no room for the descriptor");
    }
    sendmsg(&gate, &[IoSlice::new(b"f")], &mut ancillary, SendFlags::empty()).context("send the filter")?;
    gate.read_exact(&mut [0]).context("wait for the gate")
}

/// The launcher's filter; the launcher goes on when it is here.
fn take_in(mut launcher: UnixStream) -> Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(&launcher, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        .context("receive the filter")?;
    let filter = ancillary.drain().find_map(|message| {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message { descriptors.next() } else { None }
    });
    launcher.write_all(b"g").context("let the launcher go on")?;
    filter.context("the launcher sent no filter")
}

/// Answers the calls of a process until it has ended.
fn keep(filter: &OwnedFd, plan: &Mutex<Plan>) {
    loop {
        let mut polled = [PollFd::new(filter.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(error) => return eprintln!("the gate waits for a call: {error}"),
            Ok(_) => {}
        }
        if polled.iter().any(|fd| fd.revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))) {
            return;
        }
        // Whoever was killed in between wants no answer.
        let Ok(call) = seccomp::receive(filter.as_fd()) else { continue };
        let fate = {
            let mut plan = lock(plan);
            let number = plan.commands.len().try_into().unwrap_or(u64::MAX);
            plan.commands.push(call.command);
            let chosen = plan.chosen.filter(|(chosen, _)| *chosen == number).map(|(_, fate)| fate);
            chosen.or(plan.closed.map(Fate::Fail))
        };
        let answer = match fate {
            None => Answer::Go,
            Some(Fate::Fail(errno)) => Answer::Fail(errno),
            Some(Fate::Kill) => {
                if let Err(error) = kill(call.caller, Signal::SIGKILL) {
                    eprintln!("the gate kills who calls: {error}");
                }
                Answer::Fail(Errno::EINTR)
            }
        };
        drop(seccomp::answer(filter.as_fd(), call, answer));
    }
}

fn lock(plan: &Mutex<Plan>) -> MutexGuard<'_, Plan> {
    plan.lock().unwrap_or_else(PoisonError::into_inner)
}
