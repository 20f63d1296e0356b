//! What is pinned by one ABI version, this release's or another's, as far as it can be told and taken away without
//! knowing the shape of its maps.
//!
//! All versions have this in common: their directory, with `maps`, `programs`, `links` and `netns` in it; a map
//! PODS with an entry for each enrolled pod; a map `HAND_OFFS` with one for each connection on its way; and pins in
//! `netns` that are links to namespaces. Nothing else of another version is read.
//!
//! Owns: that common part. Never does: decide what is to go. Called by: `uninstall` and `enrol`.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::maps::{MapData, MapInfo};
use veer_common::maps::name;

use super::pins::{NEXT, list, unpin};
use super::{BpfError, sys};

/// What one ABI version has pinned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Generation {
    /// The version.
    pub abi: u32,
    /// Its directory.
    pub root: PathBuf,
}

impl Generation {
    /// All that are below `bpffs`, the oldest first; none where that is not there.
    ///
    /// # Errors
    /// As the file system says.
    pub fn all(bpffs: &Path) -> Result<Vec<Self>, BpfError> {
        let version = |path: PathBuf| {
            let abi = path.file_name()?.to_str()?.strip_prefix('v')?.parse().ok()?;
            path.is_dir().then_some(Self { abi, root: path })
        };
        let mut all: Vec<_> = list(bpffs)?.into_iter().filter_map(version).collect();
        all.sort_unstable_by_key(|generation| generation.abi);
        Ok(all)
    }

    /// Inode numbers of the namespaces that its links still hang on: its pods that are alive.
    ///
    /// # Errors
    /// As the file system and the kernel say; one that cannot be looked at must not be taken for dead.
    pub fn living(&self) -> Result<Vec<u64>, BpfError> {
        let mut inodes = Vec::new();
        for path in self.netns_links()? {
            let failed = |source| BpfError::Pin { attempt: "ask", path: path.clone(), source };
            match sys::get(&path).and_then(|link| sys::link_target(link.as_fd())) {
                Ok(target) => inodes.extend((target.object != 0).then_some(target.object)),
                // It has gone since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(inodes)
    }

    /// Removes all of it, links first, maps last. For one without a pod that is alive.
    ///
    /// # Errors
    /// The first failure, after all was tried.
    pub fn remove(&self) -> Result<(), BpfError> {
        let mut outcome = Ok(());
        for link in self.cgroup_links()?.iter().chain(&self.netns_links()?) {
            outcome = outcome.and(detach(link));
        }
        for pin in self.programs()?.iter().chain(&self.maps()?) {
            outcome = outcome.and(unpin(pin));
        }
        for directory in self.directories() {
            let removed = fs::remove_dir(&directory);
            let failed = |source| BpfError::Pin { attempt: "remove", path: directory.clone(), source };
            outcome = outcome.and(removed.map_err(failed));
        }
        outcome
    }

    /// Links to cgroups, and what an agent that was killed has left halfway.
    ///
    /// # Errors
    /// As the file system says.
    pub fn cgroup_links(&self) -> Result<Vec<PathBuf>, BpfError> {
        let [there, next] = ["links", NEXT].map(|name| list(&self.root.join(name)));
        Ok([there?, next?].concat())
    }

    /// Links to network namespaces, of pods that are gone, too.
    ///
    /// # Errors
    /// As the file system says.
    pub fn netns_links(&self) -> Result<Vec<PathBuf>, BpfError> {
        list(&self.root.join("netns"))
    }

    /// Pinned programs.
    ///
    /// # Errors
    /// As the file system says.
    pub fn programs(&self) -> Result<Vec<PathBuf>, BpfError> {
        list(&self.root.join("programs"))
    }

    /// Pinned maps.
    ///
    /// # Errors
    /// As the file system says.
    pub fn maps(&self) -> Result<Vec<PathBuf>, BpfError> {
        list(&self.root.join("maps"))
    }

    /// Its directories, each after those in it.
    pub fn directories(&self) -> Vec<PathBuf> {
        let below = ["netns", "links", NEXT, "programs", "maps"].map(|name| self.root.join(name));
        below.into_iter().filter(|path| path.is_dir()).chain([self.root.clone()]).collect()
    }

    /// The map whose entries are the enrolled pods.
    pub fn policies(&self) -> PathBuf {
        self.root.join("maps").join(name::PODS)
    }

    /// How many redirected connections have not reached their proxy; 0 without the map.
    pub fn hand_offs(&self) -> usize {
        entries(&self.root.join("maps").join(name::HAND_OFFS)).unwrap_or_default()
    }
}

/// How many entries a pinned map has.
///
/// # Errors
/// As the kernel says.
pub fn entries(map: &Path) -> Result<usize, BpfError> {
    let failed = |source| BpfError::Pin { attempt: "list the keys of", path: map.to_owned(), source };
    let (map, mut key) = open(map)?;
    let mut count = 0;
    let mut known = false;
    while sys::next_key(map.fd().as_fd(), known, &mut key).map_err(failed)? {
        known = true;
        count += 1;
    }
    Ok(count)
}

/// Removes all entries of a pinned map, and tells how many those were.
///
/// # Errors
/// As the kernel says.
pub fn empty(map: &Path) -> Result<usize, BpfError> {
    let failed = |attempt| move |source| BpfError::Pin { attempt, path: map.to_owned(), source };
    let (opened, mut key) = open(map)?;
    let fd = opened.fd().as_fd();
    let mut count = 0;
    while sys::next_key(fd, false, &mut key).map_err(failed("list the keys of"))? {
        match sys::delete(fd, key.as_slice()) {
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(failed("empty"))?,
        }
        count += 1;
    }
    Ok(count)
}

/// A map, and room for one of its keys.
fn open(path: &Path) -> Result<(MapData, Vec<u8>), BpfError> {
    let failed = |error: aya::maps::MapError| BpfError::Pin {
        attempt: "open",
        path: path.to_owned(),
        source: io::Error::other(error),
    };
    let size = MapInfo::from_pin(path).map_err(failed)?.key_size();
    Ok((MapData::from_pin(path).map_err(failed)?, vec![0; size as usize]))
}

/// Takes a pinned link off what it hangs on, now, whoever else holds it, and removes the pin; one that is gone is
/// fine.
///
/// # Errors
/// As the file system says. A kernel without `BPF_LINK_DETACH` (before 5.9) detaches it with its last holder.
pub fn detach(pin: &Path) -> Result<(), BpfError> {
    if let Ok(link) = sys::get(pin) {
        // What is not detached so goes with its pin.
        drop(sys::link_detach(link.as_fd()));
    }
    unpin(pin)
}
