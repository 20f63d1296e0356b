//! Debian's packages, unpacked and not installed: for programs of packages whose services nobody wants to run here.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::exec::step;

/// A slow mirror, and apt's own attempts.
const LIMIT: Duration = Duration::from_mins(30);

/// Fetches packages of the machine's own suite, and unpacks them into a directory, which is empty before. apt checks the
/// signatures, and nothing is executed.
pub(super) fn unpack(packages: &[&str], directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("remove {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let mut download = Command::new("apt-get");
    // Its own user could not write into a directory of ours.
    download.args(["-o", "APT::Sandbox::User=", "download"]).args(packages).current_dir(directory);
    let what = format!("fetching Debian's {} (unpacked, not installed)", packages.join(" and "));
    // Whether the lists are fresh enough is found by trying.
    if step(&what, &mut download, LIMIT).is_err() {
        let mut update = Command::new("apt-get");
        step("reading Debian's package lists", update.arg("update"), LIMIT)?;
        step(&what, &mut download, LIMIT)?;
    }
    unpack_all(directory)
}

/// Unpacks the packages that are in a directory into it, and removes them.
pub(super) fn unpack_all(directory: &Path) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    let packages = entries.flatten().map(|entry| entry.path());
    for package in packages.filter(|path| path.extension().is_some_and(|extension| extension == "deb")) {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").args([package.as_path(), directory]);
        step(&format!("unpacking {}", package.display()), &mut unpack, LIMIT)?;
        fs::remove_file(&package).with_context(|| format!("remove {}", package.display()))?;
    }
    Ok(())
}
