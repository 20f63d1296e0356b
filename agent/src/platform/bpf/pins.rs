//! Where things are pinned: one directory for each ABI version, because the loader opens an existing map
//! without looking at its shape.
//!
//! ```text
//! /sys/fs/bpf/veer/v2/maps/PODS …            shared by all programs, read by the commands
//!                     programs/veer_connect4 …
//!                     links/veer_connect4 …   what keeps the programs attached without an agent
//!                     netns/4711              the link of the pod whose netns has this cookie
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use veer_common::ABI_VERSION;
use veer_common::maps::NetnsCookie;

use super::BpfError;

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
        for directory in ["maps", "programs", "links", "netns"] {
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
