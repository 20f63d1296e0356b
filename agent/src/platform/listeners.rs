//! Sockets of other processes: finds who holds a listener, and borrows a descriptor of it.
//!
//! Owns: the walk through `/proc` and pidfd_getfd(2) (Linux 5.6, CAP_SYS_PTRACE). Never does: keep what it
//! borrows longer than the registration takes. Called by: `enrol`, for listeners older than the agent;
//! where there are none, which is every new pod, it does nothing.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::sockopt::socket_cookie;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::netlink::Listener;

/// A listener, and a descriptor of it.
#[derive(Debug)]
pub struct Borrowed {
    /// Which one.
    pub listener: Listener,
    /// Our descriptor of the same socket.
    pub socket: OwnedFd,
}

/// Borrows as many of the listeners as can be found. `netns_inode` says whose processes are looked at
/// first; the proxy of a whole node lives elsewhere, so all others follow.
///
/// # Errors
/// If `/proc` cannot be read at all; a process that ends meanwhile is no error.
pub fn borrow(wanted: &[Listener], netns_inode: u64) -> io::Result<Vec<Borrowed>> {
    let mut missing: HashMap<u64, Listener> =
        wanted.iter().map(|listener| (listener.inode, *listener)).collect();
    let mut found = Vec::new();
    if missing.is_empty() {
        return Ok(found);
    }
    let own_netns = format!("net:[{netns_inode}]");
    let (inside, outside): (Vec<i32>, Vec<i32>) = processes()?.into_iter().partition(|pid| {
        fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|link| link.as_os_str() == own_netns.as_str())
    });
    for pid in inside.into_iter().chain(outside) {
        if missing.is_empty() {
            break;
        }
        // A process may end or forbid it at any moment; another may hold the same socket.
        let _skipped = borrow_from(pid, &mut missing, &mut found);
    }
    Ok(found)
}

fn processes() -> io::Result<Vec<i32>> {
    Ok(fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

fn borrow_from(pid: i32, missing: &mut HashMap<u64, Listener>, found: &mut Vec<Borrowed>) -> io::Result<()> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let Some(inode) = socket_inode(&entry) else { continue };
        let Some(listener) = missing.get(&inode).copied() else { continue };
        let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Some(process) = Pid::from_raw(pid) else { continue };
        let pidfd = pidfd_open(process, PidfdFlags::empty())?;
        let socket = pidfd_getfd(pidfd.as_fd(), fd, PidfdGetfdFlags::empty())?;
        // The descriptor may have become another socket since the directory was read.
        if socket_cookie(&socket).is_ok_and(|cookie| cookie == listener.cookie) {
            missing.remove(&inode);
            found.push(Borrowed { listener, socket });
        }
    }
    Ok(())
}

/// The inode in a link `socket:[4711]`.
fn socket_inode(entry: &fs::DirEntry) -> Option<u64> {
    let link = fs::read_link(entry.path()).ok()?;
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}
