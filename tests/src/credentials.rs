//! Who a process is and what it may do, as the kernel tells in `/proc/PID/status`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// A process's credentials.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Credentials {
    /// Process id.
    pub pid: u32,
    /// File name of what it executes.
    pub program: String,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// What it may do.
    pub capabilities: Capabilities,
    /// Whether executing a program can give it more.
    pub no_new_privs: bool,
}

/// The five sets, as hexadecimal numbers of 64 bits.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Capabilities {
    /// Inheritable.
    pub inheritable: String,
    /// Permitted.
    pub permitted: String,
    /// Effective.
    pub effective: String,
    /// Bounding.
    pub bounding: String,
    /// Ambient.
    pub ambient: String,
}

impl Capabilities {
    /// Whether all five sets are empty.
    pub fn none(&self) -> bool {
        let sets = [&self.inheritable, &self.permitted, &self.effective, &self.bounding, &self.ambient];
        sets.into_iter().all(|set| u64::from_str_radix(set, 16) == Ok(0))
    }
}

impl Credentials {
    /// Those of a running process.
    pub fn of(pid: u32) -> Result<Self> {
        let directory = Path::new("/proc").join(pid.to_string());
        let status = fs::read_to_string(directory.join("status"))
            .with_context(|| format!("read the status of process {pid}"))?;
        let program =
            fs::read_link(directory.join("exe")).with_context(|| format!("find the program of {pid}"))?;
        let program = program.file_name().unwrap_or_default().display().to_string();
        Self::parse(pid, program, &status)
            .with_context(|| format!("the status of process {pid} lacks a field"))
    }

    fn parse(pid: u32, program: String, status: &str) -> Option<Self> {
        let field = |name: &str| {
            let fields = status.lines().filter_map(|line| line.split_once(':'));
            fields.into_iter().find(|(known, _)| *known == name).map(|(_, value)| value.trim())
        };
        // Real, effective, saved and of the file system.
        let effective = |name| field(name)?.split_whitespace().nth(1)?.parse().ok();
        let set = |name| field(name).map(ToOwned::to_owned);
        Some(Self {
            pid,
            program,
            uid: effective("Uid")?,
            gid: effective("Gid")?,
            groups: field("Groups")?.split_whitespace().filter_map(|group| group.parse().ok()).collect(),
            capabilities: Capabilities {
                inheritable: set("CapInh")?,
                permitted: set("CapPrm")?,
                effective: set("CapEff")?,
                bounding: set("CapBnd")?,
                ambient: set("CapAmb")?,
            },
            no_new_privs: field("NoNewPrivs")? == "1",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tenvoy\nUid:\t0\t1337\t0\t0\nGid:\t0\t1338\t0\t0\nGroups:\t4 5 \n\
        CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
        CapBnd:\t0000000000000400\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\n";

    #[test]
    fn a_bounding_set_alone_is_a_capability() {
        let bound = Credentials::parse(7, "envoy".into(), STATUS).unwrap();
        assert_eq!((bound.uid, bound.gid, bound.groups.as_slice()), (1337, 1338, &[4, 5][..]));
        assert!(bound.no_new_privs && !bound.capabilities.none());
        let free = Credentials::parse(7, "envoy".into(), &STATUS.replace("0400", "0000")).unwrap();
        assert!(free.capabilities.none());
    }

    #[test]
    fn a_status_without_a_set_is_none_at_all() {
        assert_eq!(Credentials::parse(7, "envoy".into(), &STATUS.replace("CapAmb", "CapXyz")), None);
    }
}
