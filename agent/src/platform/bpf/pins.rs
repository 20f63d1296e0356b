//! Where things are pinned: one directory for each ABI version, because the loader opens an existing map
//! without looking at its shape.
//!
//! ```text
//! /sys/fs/bpf/veer/v2/maps/PODS …            shared by all programs, read by the commands
//!                     programs/veer_connect4 …
//!                     links/veer_connect4 …   what keeps the programs attached without an agent
//!                     netns/4711              the link of the pod whose netns has this cookie
//!                     next/                   what is about to take another pin's name
//! ```

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use veer_common::ABI_VERSION;
use veer_common::maps::NetnsCookie;

use super::{BpfError, sys};

/// Where a pin is made before it takes the name of another: there is no moment without one. (bpffs has no names
/// with a dot.)
pub(super) const NEXT: &str = "next";

/// The pin directory.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The directory of this ABI version below `bpffs` (`/sys/fs/bpf/veer`).
    pub fn new(bpffs: &Path) -> Self {
        Self { root: bpffs.join(format!("v{ABI_VERSION}")) }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the directories.
    ///
    /// # Errors
    /// `NotBpffs` where nothing could be pinned.
    pub fn create(&self) -> Result<(), BpfError> {
        for directory in ["maps", "programs", "links", "netns", NEXT] {
            let path = self.root.join(directory);
            fs::create_dir_all(&path).map_err(|source| match existing_ancestor_is_bpffs(&path) {
                Ok(true) => BpfError::Pin { attempt: "make", path: path.clone(), source },
                Ok(false) | Err(_) => BpfError::NotBpffs { path: path.clone() },
            })?;
            if !existing_ancestor_is_bpffs(&path).unwrap_or(false) {
                return Err(BpfError::NotBpffs { path });
            }
        }
        Ok(())
    }

    /// Pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    /// Pin of a program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.root.join("programs").join(name)
    }

    /// Pin of a program's link to the cgroup.
    pub fn link(&self, program: &str) -> PathBuf {
        self.root.join("links").join(program)
    }

    /// The netns that a link is pinned for.
    ///
    /// # Errors
    /// As the file system says.
    pub fn netns_cookies(&self) -> Result<Vec<NetnsCookie>, BpfError> {
        let path = self.root.join("netns");
        let entries =
            fs::read_dir(&path).map_err(|source| BpfError::Pin { attempt: "list", path, source })?;
        // Nothing else has ever been made there.
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
    }

    /// Pin of the link to a pod's netns.
    pub fn netns(&self, cookie: NetnsCookie) -> PathBuf {
        self.root.join("netns").join(cookie.to_string())
    }
}

fn existing_ancestor_is_bpffs(path: &Path) -> io::Result<bool> {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    Ok(statfs(existing)?.filesystem_type() == BPF_FS_MAGIC)
}

impl Pins {
    /// Pins an object under a name that another one may have, which is let go at that moment. Directories that somebody has
    /// removed are made again.
    ///
    /// # Errors
    /// As the file system says; then the other one is still there.
    pub(super) fn replace(&self, path: &Path, object: BorrowedFd<'_>) -> Result<(), BpfError> {
        // Nearly always they are there, and each would cost two system calls of an ADD.
        self.give(path, object).or_else(|_no_directory| {
            self.create()?;
            self.give(path, object)
        })
    }

    fn give(&self, path: &Path, object: BorrowedFd<'_>) -> Result<(), BpfError> {
        let failed = |attempt| move |source| BpfError::Pin { attempt, path: path.to_owned(), source };
        let next = self.root.join(NEXT).join(path.file_name().unwrap_or_default());
        unpin(&next)?;
        sys::pin(object, &next).map_err(failed("pin"))?;
        fs::rename(&next, path).map_err(failed("give its name to"))
    }

    /// Removes what an agent that was killed has left halfway: by now all has its place.
    ///
    /// # Errors
    /// As the file system says.
    pub(super) fn remove_halfway(&self) -> Result<(), BpfError> {
        list(&self.root.join(NEXT))?.iter().try_for_each(|path| unpin(path))
    }
}

/// What is in a directory, by name; nothing where there is none.
///
/// # Errors
/// As the file system says.
pub(super) fn list(directory: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let failed = |source| BpfError::Pin { attempt: "list", path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    paths.sort_unstable();
    Ok(paths)
}

/// Removes a pin; one that is gone is fine.
///
/// # Errors
/// As the file system says.
pub fn unpin(path: &Path) -> Result<(), BpfError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(BpfError::Pin { attempt: "remove", path: path.to_owned(), source }),
    }
}
