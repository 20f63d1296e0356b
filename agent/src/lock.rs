//! The lock on the run directory: a node has one agent, and no agent while veer is taken off it.
//!
//! Owns: the lock's file, which says who holds it. Never does: wait for it. Called by: `app` and `uninstall`.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::config::Place;

/// Why the lock cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("{path} is locked{}", by(*pid), path = path.display())]
    Held {
        /// The lock.
        path: PathBuf,
        /// By whom, if it says so.
        pid: Option<u32>,
    },
    /// A file or directory.
    #[error("{attempt} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn by(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" by pid {pid}")).unwrap_or_default()
}

/// Makes the run directory and locks it.
///
/// # Errors
/// `Held`, or as the file system says.
pub fn take(place: &Place) -> Result<Flock<File>, LockError> {
    let directory = &place.run_dir;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|source| LockError::File { attempt: "make", path: directory.clone(), source })?;
    let path = place.lock();
    let mut lock = lock(&path, File::options().create(true).truncate(false).write(true))?;
    // For people; the lock is what counts.
    drop(lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())));
    Ok(lock)
}

/// Locks a run directory that is there, and changes nothing in it; `None` where nobody ever locked it.
///
/// # Errors
/// `Held`, or as the file system says.
pub fn take_if_there(place: &Place) -> Result<Option<Flock<File>>, LockError> {
    match lock(&place.lock(), File::options().read(true)) {
        Err(LockError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn lock(path: &Path, how: &fs::OpenOptions) -> Result<Flock<File>, LockError> {
    let failed = |attempt| move |source| LockError::File { attempt, path: path.to_owned(), source };
    let file = how.open(path).map_err(failed("open"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_file, errno)| {
        if errno != Errno::EWOULDBLOCK {
            return failed("lock")(errno.into());
        }
        let pid = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
        LockError::Held { path: path.to_owned(), pid }
    })
}
