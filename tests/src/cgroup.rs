//! Cgroups of the v2 hierarchy, wherever it is mounted.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{scratch, wait};

/// A cgroup that goes with its guard, together with the cgroups and processes in it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes one with a unique name below the root.
    pub fn new() -> Result<Self> {
        Self::named(&scratch::unique_name())
    }

    /// Makes one with this name below the root.
    pub fn named(name: &str) -> Result<Self> {
        Self::make(mount_point()?.join(name))
    }

    /// Makes one below this one.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::make(self.path.join(name))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The processes in it, those of cgroups below not counted.
    pub fn processes(&self) -> Result<Vec<u32>> {
        Ok(processes(&self.path)?.into_iter().filter_map(|pid| u32::try_from(pid.as_raw()).ok()).collect())
    }

    fn make(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("make cgroup {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("{error:#}");
        }
    }
}

/// Where cgroup v2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside v1.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        if let (Some(point), Some("cgroup2")) = (fields.next(), fields.next()) {
            return Ok(point.into());
        }
    }
    bail!("no cgroup2 is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup")
}

/// All cgroups directly below the root.
pub fn names() -> Result<Vec<PathBuf>> {
    children(&mount_point()?)
}

/// Removes a cgroup, those below it, and the processes in them. One that is gone is removed.
pub fn remove(path: &Path) -> Result<()> {
    for child in children(path)? {
        remove(&child)?;
    }
    let what = format!("cgroup {} to be empty", path.display());
    wait::until_ok(&what, wait::LIMIT, || {
        for pid in processes(path)? {
            // Gone in between is what we want; anything else shows as EBUSY below.
            kill(pid, Signal::SIGKILL).ok();
        }
        match fs::remove_dir(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(anyhow::Error::from(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    })
}

/// Kills what is in it and in those below, and waits until nothing is; the cgroups stay.
pub fn empty(path: &Path) -> Result<()> {
    for child in children(path)? {
        empty(&child)?;
    }
    wait::until_ok(&format!("cgroup {} to be empty", path.display()), wait::LIMIT, || {
        let processes = processes(path)?;
        for pid in &processes {
            // Gone in between is what we want.
            kill(*pid, Signal::SIGKILL).ok();
        }
        if processes.is_empty() { Ok(()) } else { bail!("{} processes", processes.len()) }
    })
}

fn processes(path: &Path) -> Result<Vec<Pid>> {
    let file = path.join("cgroup.procs");
    match fs::read_to_string(&file) {
        Ok(pids) => {
            // 0 stands for a process of another pid namespace; killing it would be killing ourselves.
            let pids = pids.lines().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid > 0);
            Ok(pids.map(Pid::from_raw).collect())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
    }
}

fn children(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("list cgroup {}", path.display()))?,
    };
    Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}
