//! The cookie of a netns, on kernels that tell it to programs alone (`SO_NETNS_COOKIE` came with Linux 5.14,
//! `bpf_get_netns_cookie` with 5.7).
//!
//! Owns: a program that hangs on the root of cgroup v2 for the moment of a question. A socket of a rare protocol is
//! made in the netns, the program writes the cookie into the socket's storage, and there it is read.
//! Never does: run where the kernel answers. Called by: `load` and `trial`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use veer_common::maps::{NetnsCookie, SocketRecord};

use super::sys::{self, AttachType};
use crate::platform::cgroup;
use crate::platform::netns::{self, NetnsError, NetnsThread};

/// The program that writes it.
pub(super) const COOKIE_PROGRAM: &str = "veer_cookie";
/// `IPPROTO_UDPLITE`.
const UDPLITE: i32 = 136;

/// Whether the kernel tells a cookie to whoever asks.
pub fn kernel_tells() -> bool {
    !matches!(netns::current_cookie(), Err(error) if is_unknown(&error))
}

/// Whether an error says that the kernel does not know the question.
pub fn is_unknown(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENOPROTOOPT as i32)
}

/// The program, and where it hangs while it is asked.
#[derive(Debug)]
pub struct CookieProgram {
    program: OwnedFd,
    root: File,
}

impl CookieProgram {
    /// With a loaded [`COOKIE_PROGRAM`]. It hangs on the root because that is above the agent wherever it is.
    ///
    /// # Errors
    /// Without a cgroup v2.
    pub(super) fn new(program: OwnedFd) -> io::Result<Self> {
        let root = cgroup::mount_point().ok_or_else(|| io::Error::other("no cgroup v2 is mounted"))?;
        Ok(Self { program, root: File::open(root)? })
    }

    /// The cookie of a netns. `record` reads what the program has written.
    ///
    /// # Errors
    /// As the kernel says, or if the program has written nothing.
    pub(super) fn read(
        &self,
        thread: &NetnsThread,
        netns: BorrowedFd<'_>,
        record: impl FnOnce(BorrowedFd<'_>) -> Option<SocketRecord>,
    ) -> io::Result<NetnsCookie> {
        let link = sys::link_create(self.program.as_fd(), self.root.as_fd(), AttachType::SockCreate)?;
        let socket = || Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::from(UDPLITE)));
        let socket = thread.run(netns, socket).map_err(NetnsError::into_io)??;
        drop(link);
        match record(socket.as_fd()) {
            Some(record) if record.cookie != 0 => Ok(record.cookie),
            Some(_) | None => Err(io::Error::other("the program that is to tell it has seen no socket")),
        }
    }
}
