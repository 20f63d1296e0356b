//! Whether something has changed in a directory. What, the one who asked looks for himself.
//!
//! Owns: the kernel's watches. Never does: read an event; one may stand for many, and many may be lost, so an event means
//! "look again", and no more. Called by: `installer`, `proxy::supervise`.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe::Receiver;

/// Watches.
#[derive(Debug)]
pub struct Changes {
    inotify: Inotify,
    /// The same descriptor under another number. Its bytes are read as a pipe's are, and not looked into.
    events: Receiver,
}

impl Changes {
    /// Of nothing, so far.
    ///
    /// # Errors
    /// The kernel has no room, or there is no runtime.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let events = Receiver::from_owned_fd_unchecked(inotify.as_fd().try_clone_to_owned()?)?;
        Ok(Self { inotify, events })
    }

    /// Watches these directories as well. One that is not there, or is another one by now, has to be named again: a
    /// watch is of the directory and not of its name, and naming it twice is one watch.
    pub fn watch(&self, directories: &[PathBuf]) {
        let what = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        for directory in directories {
            if let Err(error) = self.inotify.add_watch(directory, what) {
                tracing::debug!(directory = %directory.display(), %error, "not watched");
            }
        }
    }

    /// Watches what is written into the files of a directory.
    pub fn watch_written(&self, directory: &Path) {
        let what = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_ONLYDIR;
        if let Err(error) = self.inotify.add_watch(directory, what) {
            tracing::debug!(directory = %directory.display(), %error, "not watched");
        }
    }

    /// Waits until something has changed since the last time.
    pub async fn next(&mut self) {
        let mut events = [0; 4096];
        loop {
            if self.events.readable().await.is_err() {
                return std::future::pending().await;
            }
            let mut heard = false;
            // Whatever has piled up is one change.
            while self.events.try_read(&mut events).is_ok_and(|length| length > 0) {
                heard = true;
            }
            if heard {
                return;
            }
        }
    }
}
