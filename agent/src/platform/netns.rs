//! Network namespaces: identity, and a thread to enter them with.
//!
//! Owns: the only calls of setns(2) in the agent, on a thread that is kept for it: a namespace is a
//! property of a thread, and an executor's thread must never be found in the wrong one.
//! Never does: hold on to a namespace. A descriptor lives as long as the request that brought it.

#![expect(unsafe_code, reason = "SO_NETNS_COOKIE, SIOCGSKNS and NS_GET_NSTYPE have no safe wrapper")]
#![expect(
    clippy::disallowed_methods,
    reason = "this is the room where namespaces are entered, and made for a trial"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::mpsc;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::fstat;
use veer_common::maps::NetnsCookie;

/// `NS_GET_USERNS`, `_IO(0xb7, 1)`: `include/uapi/linux/nsfs.h`.
const NS_GET_USERNS: libc::c_ulong = 0xb701;
/// `NS_GET_NSTYPE`, `_IO(0xb7, 3)`: `include/uapi/linux/nsfs.h`.
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
/// `SIOCGSKNS`: `include/uapi/linux/sockios.h`.
const SIOCGSKNS: libc::c_ulong = 0x894c;

/// Why a descriptor is no pod's netns, or cannot be entered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// It is some other file.
    #[error("what was given as the pod's netns is not a network namespace")]
    NotANetns,
    /// It is the host's: rules of a pod must never land there.
    #[error("the pod's netns is the node's own: a pod with host networking is never enrolled")]
    HostNetns,
    /// A system call failed.
    #[error("{attempt}: {source}")]
    System {
        /// What was tried.
        attempt: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The thread is gone, because the agent is stopping.
    #[error("the thread that enters namespaces has ended; the agent is stopping")]
    ThreadEnded,
}

impl NetnsError {
    /// As one of the system's.
    pub fn into_io(self) -> io::Error {
        match self {
            Self::System { source, .. } => source,
            other @ (Self::NotANetns | Self::HostNetns | Self::ThreadEnded) => io::Error::other(other),
        }
    }
}

/// Identity of a netns as a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NetnsId {
    /// Device number of nsfs.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

impl NetnsId {
    /// Identity of an open file.
    ///
    /// # Errors
    /// As fstat(2) says.
    pub fn of(file: BorrowedFd<'_>) -> io::Result<Self> {
        let status = fstat(file)?;
        Ok(Self { device: status.st_dev, inode: status.st_ino })
    }
}

type Job = Box<dyn FnOnce(&File) + Send>;

/// The thread that enters namespaces.
#[derive(Debug, Clone)]
pub struct NetnsThread {
    jobs: mpsc::Sender<Job>,
    host: NetnsId,
}

impl NetnsThread {
    /// Starts the thread. The netns of the calling thread is the host's from here on.
    ///
    /// # Errors
    /// As the system says.
    pub fn start() -> Result<Self, NetnsError> {
        let system = |attempt| move |source| NetnsError::System { attempt, source };
        let host_file =
            File::open("/proc/thread-self/ns/net").map_err(system("open the agent's own netns"))?;
        let host = NetnsId::of(host_file.as_fd()).map_err(system("stat the agent's own netns"))?;
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name("netns".to_owned())
            .spawn(move || {
                for job in queue {
                    job(&host_file);
                }
            })
            .map_err(system("start the thread that enters namespaces"))?;
        Ok(Self { jobs, host })
    }

    /// The host's.
    pub const fn host(&self) -> NetnsId {
        self.host
    }

    /// Checks that a descriptor is a network namespace other than the host's.
    ///
    /// # Errors
    /// If it is not.
    pub fn identify(&self, netns: BorrowedFd<'_>) -> Result<NetnsId, NetnsError> {
        // SAFETY: the descriptor is live; the ioctl takes no argument and fails on any other file.
        let kind = unsafe { libc::ioctl(netns.as_raw_fd(), NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            return Err(NetnsError::NotANetns);
        }
        let id = NetnsId::of(netns)
            .map_err(|source| NetnsError::System { attempt: "stat the pod's netns", source })?;
        if id == self.host { Err(NetnsError::HostNetns) } else { Ok(id) }
    }

    /// Runs `work` inside of the netns and waits for it. `work` must not block on anything but the kernel.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    pub fn run<T: Send + 'static>(
        &self,
        netns: BorrowedFd<'_>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NetnsError> {
        let netns = netns
            .try_clone_to_owned()
            .map_err(|source| NetnsError::System { attempt: "keep the pod's netns", source })?;
        let (answer, result) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |host| {
            if let Err(errno) = setns(&netns, CloneFlags::CLONE_NEWNET) {
                // It is where it was.
                drop(answer.send(Err(errno)));
                return;
            }
            let worked = work();
            // A thread that cannot go back is in the wrong place for every later pod. The datapath goes on
            // without the agent, and the next agent has a thread that is in the right place.
            if let Err(errno) = setns(host, CloneFlags::CLONE_NEWNET) {
                tracing::error!(%errno, "cannot return to the host's netns, ending");
                std::process::abort();
            }
            // Whoever asked may have given up.
            drop(answer.send(Ok(worked)));
        });
        self.jobs.send(job).map_err(|_closed| NetnsError::ThreadEnded)?;
        result
            .recv()
            .map_err(|_closed| NetnsError::ThreadEnded)?
            .map_err(|errno| NetnsError::System { attempt: "enter the pod's netns", source: errno.into() })
    }
}

/// The user namespace that owns a netns.
///
/// # Errors
/// As the kernel says: EPERM if it is none of ours or below.
pub fn owner(netns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is live; the ioctl takes no argument and returns a new descriptor or -1.
    let owner = unsafe { libc::ioctl(netns.as_raw_fd(), NS_GET_USERNS) };
    if owner < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(owner) })
}

/// The netns that a unix socket's peer has made his own socket in, which is where he runs, or ran then. No process need be looked
/// for, so none can be mistaken for another one: the kernel makes the accepted socket in the netns of the one that dials
/// (`unix_stream_connect`, <https://github.com/torvalds/linux/blob/v6.12/net/unix/af_unix.c>), and that socket keeps it alive.
///
/// # Errors
/// As the kernel says: EPERM without CAP_NET_ADMIN over it.
pub fn of_peer(accepted: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is live; the ioctl takes no argument and returns a new descriptor or -1.
    let netns = unsafe { libc::ioctl(accepted.as_raw_fd(), SIOCGSKNS) };
    if netns < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(netns) })
}

/// A new netns with nothing in it, for a trial. It is gone when its descriptor is closed.
///
/// # Errors
/// As the kernel says: EPERM without CAP_SYS_ADMIN.
pub fn scratch() -> io::Result<File> {
    let unshared = || -> io::Result<File> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        File::open("/proc/thread-self/ns/net")
    };
    // The thread ends in the new namespace; nobody else is ever in it.
    let thread = thread::Builder::new().name("scratch-netns".to_owned()).spawn(unshared)?;
    thread.join().map_err(|_panic| io::Error::other("the thread that makes it panicked"))?
}

/// Makes the calling process one of a user namespace. It must have a single thread, and it cannot go back.
///
/// # Errors
/// As the kernel says.
pub fn join_user_namespace(userns: BorrowedFd<'_>) -> io::Result<()> {
    Ok(setns(userns, CloneFlags::CLONE_NEWUSER)?)
}

/// Cookie of the netns that the calling thread is in (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
/// As the kernel says.
pub fn current_cookie() -> io::Result<NetnsCookie> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None)?;
    let mut cookie: NetnsCookie = 0;
    let mut length: libc::socklen_t = size_of::<NetnsCookie>().try_into().unwrap_or(0);
    // SAFETY: the buffer is a live u64 and the length is its size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
