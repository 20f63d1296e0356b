//! Names and directories of this process's guards, and the removal of what a killed process left.
//!
//! Owns: the naming scheme `veer-test-PID-N`, by which everything of the kit is known. Never does:
//! remove anything of a process that still runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use crate::kube::hierarchies;
use crate::{cgroup, netns};

const PREFIX: &str = "veer-test-";

static NEXT: AtomicU32 = AtomicU32::new(0);
static SWEPT: Once = Once::new();

/// A name that no other guard of any process has.
pub fn unique_name() -> String {
    SWEPT.call_once(remove_leftovers);
    format!("{PREFIX}{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A new directory that goes when the guard goes.
pub fn directory() -> Result<TempDir> {
    let prefix = format!("{}-", unique_name());
    // Open to read: the proxy and the app, who are not root, find their files in it.
    let readable = fs::Permissions::from_mode(0o755);
    tempfile::Builder::new()
        .prefix(&prefix)
        .permissions(readable)
        .tempdir()
        .context("make a scratch directory")
}

/// A bpffs of its own, so that nothing pinned in it outlives the test.
#[derive(Debug)]
pub struct BpfFs {
    path: PathBuf,
}

impl BpfFs {
    /// Mounts a bpffs at `path`, which is made if it does not exist.
    pub fn mount(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
        mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount a bpffs at {}", path.display()))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.path, MntFlags::MNT_DETACH) {
            eprintln!("unmount {}: {error}", self.path.display());
        }
    }
}

/// Removes everything named `veer-test-PID-…` of processes that are gone. What cannot be removed is
/// left for the next time: leftovers must not fail a test that has nothing to do with them. Every process
/// that names something does this once; a supervisor does it again after what it supervised.
pub fn remove_leftovers() {
    for name in netns::names().into_iter().filter(|name| is_orphan(name)) {
        report(&name, netns::remove(&name));
    }
    // Those of v2 first: whoever is in one of v1 is in one of them, too.
    let cgroups = [cgroup::names(), hierarchies::names()].into_iter().flat_map(Result::unwrap_or_default);
    for path in cgroups.filter(|path| is_orphan_path(path)) {
        report(&path.display().to_string(), cgroup::remove(&path));
    }
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| is_orphan_path(path)) {
        report(&path.display().to_string(), remove_directory(&path));
    }
}

/// Unmounts what is mounted below `path` and removes it.
pub fn remove_directory(path: &Path) -> Result<()> {
    for mounted in mounts_below(path)? {
        umount2(&mounted, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", mounted.display()))?;
    }
    fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display()))
}

fn mounts_below(path: &Path) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut below: Vec<_> = points.filter(|point| point.starts_with(path)).collect();
    below.reverse();
    Ok(below)
}

fn is_orphan_path(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(is_orphan)
}

fn is_orphan(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
    pid.and_then(|pid| pid.parse::<u32>().ok())
        .is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

fn report(what: &str, removal: Result<()>) {
    match removal {
        Ok(()) => eprintln!("removed {what}, left by an earlier run"),
        Err(error) => eprintln!("{what} of an earlier run stays: {error:#}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_processes_are_orphans() {
        assert!(!is_orphan(&unique_name()));
        assert!(!is_orphan("veer-test-"));
        assert!(!is_orphan("veer-demo-node"));
        assert!(!is_orphan("somebody-elses"));
        // Above the kernel's highest pid, 2^22.
        assert!(is_orphan("veer-test-4194305-0"));
    }
}
