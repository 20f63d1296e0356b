//! Where everything of the demo is: names by which it is found again, and removed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use veer_tests::{cgroup, netns, scratch};

/// Name of the demo's cgroup and directory, and how the names of its namespaces begin.
pub(crate) const NAME: &str = "veer-demo";
/// All files.
pub(crate) const DIRECTORY: &str = "/run/veer-demo";
/// Held while a demo runs.
pub(crate) const LOCK: &str = "/run/veer-demo.lock";

/// Name of a namespace.
pub(crate) fn netns_name(of: &str) -> String {
    format!("{NAME}-{of}")
}

/// A file or directory.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Says that what is up shall stay when the process ends.
pub(crate) fn mark_kept() -> Result<()> {
    fs::write(path("kept"), "").context("mark the demo as kept")
}

/// Whether what is up shall stay.
pub(crate) fn is_kept() -> bool {
    path("kept").exists()
}

/// Removes everything: processes first, because they hold the rest. True if there was something.
pub(crate) fn take_down() -> Result<bool> {
    let mut found = false;
    let processes = cgroup::mount_point()?.join(NAME);
    if processes.exists() {
        found = true;
        cgroup::remove(&processes)?;
    }
    for name in netns::names().into_iter().filter(|name| name.starts_with(&netns_name(""))) {
        found = true;
        netns::remove(&name)?;
    }
    if Path::new(DIRECTORY).exists() {
        found = true;
        scratch::remove_directory(Path::new(DIRECTORY))?;
    }
    Ok(found)
}
