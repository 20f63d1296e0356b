//! A cgroup of one name in every hierarchy of cgroup v1, for nodes that have them beside v2.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cgroup;

/// Goes with the guard, and so does what is below; whoever is in it must have ended before.
#[derive(Debug)]
pub struct Hierarchies {
    paths: Vec<PathBuf>,
}

impl Hierarchies {
    /// Makes it; a machine without v1 has none to make.
    pub fn new(name: &str) -> Result<Self> {
        let mut made = Self { paths: Vec::new() };
        for mounted in mounted()? {
            let path = mounted.join(name);
            fs::create_dir(&path).with_context(|| format!("make cgroup {}", path.display()))?;
            made.paths.push(path.clone());
            // A set of processors that is empty takes no process.
            for set in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(value) = fs::read(mounted.join(set)) {
                    fs::write(path.join(set), value)
                        .with_context(|| format!("set {set} of {}", path.display()))?;
                }
            }
        }
        Ok(made)
    }
}

/// All cgroups of v1 directly below the roots.
pub fn names() -> Result<Vec<PathBuf>> {
    let roots = mounted()?;
    let below = roots.iter().filter_map(|root| fs::read_dir(root).ok());
    Ok(below
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(|path| path.is_dir())
        .collect())
}

impl Drop for Hierarchies {
    fn drop(&mut self) {
        for path in &self.paths {
            if let Err(error) = cgroup::remove(path) {
                eprintln!("{error:#}");
            }
        }
    }
}

/// Where v1 is mounted, once for each hierarchy.
fn mounted() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let fields = mounts.lines().map(|line| line.split(' ').skip(1));
    Ok(fields
        .filter_map(|mut fields| match (fields.next(), fields.next()) {
            (Some(point), Some("cgroup")) => Some(PathBuf::from(point)),
            _ => None,
        })
        .collect())
}
