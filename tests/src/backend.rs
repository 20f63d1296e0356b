//! The two ways in which veer redirects, for tests that hold for both.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use veer_common::maps::NetnsCookie;

use crate::agent::Agent;
use crate::pinned::{Counts, Pinned};

/// What redirects a pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// Programs on its cgroup and its netns.
    Ebpf,
    /// Rules in its netns.
    Nftables,
}

impl Backend {
    /// Its name, as flags and commands have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Nftables => "nftables",
        }
    }

    /// The argument of an agent that uses it.
    pub fn flag(self) -> String {
        format!("--backend={}", self.name())
    }
}

/// What a node keeps of its pods, and how much of it: entries of maps and links, or records.
#[derive(Clone, Debug)]
pub enum Kept {
    /// What eBPF has pinned.
    Pinned(Pinned),
    /// The directory of what nftables has recorded.
    Records(PathBuf),
}

impl Kept {
    /// By an agent, which need not run.
    pub fn by(agent: &Agent, backend: Backend) -> Self {
        match backend {
            Backend::Ebpf => Self::Pinned(Pinned::of(agent)),
            Backend::Nftables => Self::Records(agent.run_dir().join("nftables")),
        }
    }

    /// Of all pods; what there is none of is not there.
    pub fn counts(&self) -> Result<Counts> {
        match self {
            Self::Pinned(pinned) => pinned.counts(),
            Self::Records(directory) => {
                let entries = fs::read_dir(directory).context("list the records")?;
                Ok(records(entries.count()))
            }
        }
    }

    /// Of one pod.
    pub fn of_pod(&self, cookie: NetnsCookie) -> Result<Counts> {
        match self {
            Self::Pinned(pinned) => pinned.of_pod(cookie),
            Self::Records(directory) => {
                Ok(records(usize::from(directory.join(format!("{cookie}.json")).exists())))
            }
        }
    }
}

fn records(count: usize) -> Counts {
    if count == 0 { Counts::new() } else { Counts::from([("records", count)]) }
}

/// Makes two tests of each function: `ebpf::NAME` and `nftables::NAME`. The functions take the [`Backend`]. One
/// that is not named here is dead code, which the compiler tells.
#[macro_export]
macro_rules! on_each_backend {
    ($($test:ident),+ $(,)?) => {
        mod ebpf {
            $(#[test] fn $test() { super::$test($crate::backend::Backend::Ebpf); })+
        }
        mod nftables {
            $(#[test] fn $test() { super::$test($crate::backend::Backend::Nftables); })+
        }
    };
}
