//! One question to the node's agent, and its answer.
//!
//! Owns: the unix socket, the deadline over the whole exchange, and the pod's netns as `SCM_RIGHTS` on the
//! first byte. Never does: decide what the absence of an answer means, or try twice (the runtime does).
//! Used by: [`crate::plugin`]. The messages are [`veer_common::cni`]'s.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use thiserror::Error;
use veer_common::cni::{PROTOCOL_VERSION, Reply, Request, SOCKET_NAME, Verb, encode, read_message};

/// Why there is no answer of the agent.
#[derive(Debug, Error)]
pub(crate) enum AgentError {
    /// No agent, or one that hangs.
    #[error("veer agent does not answer on {}: {}", .socket.display(), reason(.source, *.timeout))]
    NoAnswer { socket: PathBuf, timeout: Duration, source: io::Error },
    /// Someone answers, but not in these messages.
    #[error("veer agent's answer on {} makes no sense to this plugin: {source}", .socket.display())]
    Unreadable { socket: PathBuf, source: io::Error },
    /// The runtime gave us more than a message holds.
    #[error("request to the veer agent: {0}")]
    TooLong(#[source] io::Error),
}

/// The agent of this node.
pub(crate) struct Agent {
    socket: PathBuf,
    timeout: Duration,
}

impl Agent {
    /// The agent with that run directory; `timeout` bounds each question as a whole.
    pub(crate) fn new(run_dir: &Path, timeout: Duration) -> Self {
        Self { socket: run_dir.join(SOCKET_NAME), timeout }
    }

    /// Asks, and waits for the answer.
    pub(crate) fn ask(&self, verb: Verb, netns: Option<BorrowedFd<'_>>) -> Result<Reply, AgentError> {
        let request = encode(&Request { version: PROTOCOL_VERSION, verb }).map_err(AgentError::TooLong)?;
        let mut stream = self.send(&request, netns).map_err(|source| self.no_answer(source))?;
        read_message(&mut stream).map_err(|source| {
            if source.kind() == ErrorKind::InvalidData {
                return AgentError::Unreadable { socket: self.socket.clone(), source };
            }
            self.no_answer(source)
        })
    }

    fn send(&self, request: &[u8], netns: Option<BorrowedFd<'_>>) -> io::Result<BoundedStream> {
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        // Before connect, which waits in the queue of an agent that does not accept.
        let milliseconds = i64::try_from(self.timeout.as_millis()).unwrap_or(i64::MAX);
        setsockopt(&fd, sockopt::SendTimeout, &TimeVal::milliseconds(milliseconds))?;
        let mut stream = BoundedStream::new(UnixStream::from(fd), self.timeout);
        connect(stream.inner.as_raw_fd(), &UnixAddr::new(&self.socket)?)?;
        let rights = netns.map(|fd| [fd.as_raw_fd()]);
        let control: Vec<_> = rights.iter().map(|fds| ControlMessage::ScmRights(fds)).collect();
        let sent = sendmsg::<UnixAddr>(
            stream.inner.as_raw_fd(),
            &[IoSlice::new(request)],
            &control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        stream.write_all(request.get(sent..).unwrap_or_default())?;
        Ok(stream)
    }

    fn no_answer(&self, source: io::Error) -> AgentError {
        AgentError::NoAnswer { socket: self.socket.clone(), timeout: self.timeout, source }
    }
}

/// What an operator can act on, in the fewest words.
fn reason(error: &io::Error, timeout: Duration) -> String {
    const CLOSED: &str = "the connection was closed before the answer";
    const REASONS: [(ErrorKind, &str); 6] = [
        (ErrorKind::NotFound, "no such file"),
        (ErrorKind::ConnectionRefused, "connection refused"),
        (ErrorKind::PermissionDenied, "permission denied"),
        (ErrorKind::UnexpectedEof, CLOSED),
        (ErrorKind::ConnectionReset, CLOSED),
        (ErrorKind::BrokenPipe, CLOSED),
    ];
    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) {
        return format!("no answer within {} s", timeout.as_secs());
    }
    let known = REASONS.iter().find(|(kind, _)| *kind == error.kind());
    known.map_or_else(|| error.to_string(), |(_, reason)| (*reason).to_owned())
}

/// A stream of which all reads and writes together end at one deadline, however slowly bytes trickle.
struct BoundedStream {
    inner: UnixStream,
    deadline: Instant,
}

impl BoundedStream {
    fn new(inner: UnixStream, timeout: Duration) -> Self {
        Self { inner, deadline: Instant::now() + timeout }
    }

    fn remaining(&self) -> io::Result<Option<Duration>> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            remaining => Ok(Some(remaining)),
        }
    }
}

impl Read for BoundedStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.set_read_timeout(self.remaining()?)?;
        self.inner.read(buffer)
    }
}

impl Write for BoundedStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.set_write_timeout(self.remaining()?)?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
