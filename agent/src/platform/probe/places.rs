//! Whether the agent's directories can be used.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::{AccessFlags, eaccess};
use veer_common::ABI_VERSION;

use super::Where;
use crate::doctor::facts::{PinsProblem, Places, Problem};
use crate::platform::cgroup;

/// The file systems.
pub fn places(place: &Where) -> Places {
    Places {
        pins: place.bpffs.display().to_string(),
        bpffs_mounts: cgroup::mounts("bpf"),
        pins_usable: pins_usable(&place.bpffs),
        versions: versions(&place.bpffs),
        our_version: format!("v{ABI_VERSION}"),
        run_dir: place.run_dir.display().to_string(),
        run_dir_usable: writable(&existing(&place.run_dir)).map_err(Problem::from),
    }
}

fn pins_usable(directory: &Path) -> Result<(), PinsProblem> {
    let existing = existing(directory);
    match statfs(&existing) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => {
            writable(&existing).map_err(|error| PinsProblem::Unusable(error.into()))
        }
        Ok(_other) => Err(PinsProblem::NotBpffs),
        Err(errno) => Err(PinsProblem::Unusable(io::Error::from(errno).into())),
    }
}

/// The directory, or the nearest above it that is there.
fn existing(directory: &Path) -> PathBuf {
    let found = directory.ancestors().find(|path| fs::symlink_metadata(path).is_ok());
    found.unwrap_or(Path::new("/")).to_owned()
}

fn writable(path: &Path) -> io::Result<()> {
    if !fs::metadata(path)?.is_dir() {
        return Err(io::Error::other(format!("{} is no directory", path.display())));
    }
    Ok(eaccess(path, AccessFlags::W_OK | AccessFlags::X_OK)?)
}

/// `v2` and its like below the directory of pins.
fn versions(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let is_version =
        |name: &String| name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok());
    let mut versions: Vec<String> = names.filter(is_version).collect();
    versions.sort();
    versions
}
