//! What a node can, where things are on it, and who else is there: facts for `veer doctor`.
//!
//! Owns: the looking. One room for each thing: [`process`] (who looks, and the kernel's settings), [`cgroups`],
//! [`places`], [`cni`], [`namespaces`]; the datapath's trial is [`bpf::trial`](super::bpf::trial), that of nf_tables
//! the agent's own rules by [`nft`]. Never does: judge, or leave anything behind.
//! Called by: `commands::doctor`.

pub mod cgroups;
pub mod cni;
pub mod libcni;
pub mod namespaces;
pub mod places;
pub mod process;

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::bpf::load::CGROUP_PROGRAMS;
use super::bpf::{order, pins::Pins, query, sys, trial};
use super::netns::{self, NetnsThread};
use super::nft;
use crate::doctor;
use crate::doctor::facts::{Ebpf, Hook, HookProgram, Problem, Tried};

/// The directories that are looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Where {
    /// `--run-dir`
    pub run_dir: PathBuf,
    /// `--bpffs`
    pub bpffs: PathBuf,
    /// `--cni-conf-dir`; `None` finds it.
    pub cni_conf_dir: Option<PathBuf>,
    /// `--cni-bin-dir`; `None` finds it.
    pub cni_bin_dir: Option<PathBuf>,
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self { denied: error.kind() == io::ErrorKind::PermissionDenied, words: error.to_string() }
    }
}

/// Tries the datapath below `cgroup`, and nf_tables, each in a netns made for it.
pub fn kernel(cgroup: Option<&Path>, thread: &Result<NetnsThread, String>) -> (Ebpf, Vec<Tried>) {
    let scratch = netns::scratch().map_err(|error| format!("make a netns to try it in: {error}"));
    let netns = scratch.as_ref().map(AsFd::as_fd).map_err(String::as_str);
    let ebpf = trial::run(cgroup, thread, netns);
    let inside = thread.as_ref().map_err(String::as_str).and_then(|thread| Ok((thread, netns?)));
    let families = [("ip", false), ("ip6", true)].map(|(name, captures_v6)| {
        let ruleset = doctor::trial::ruleset(captures_v6);
        let outcome = inside.map_err(str::to_owned).and_then(|(thread, netns)| {
            let tried = thread.run(netns, move || nft::apply(&ruleset)).map_err(|error| error.to_string())?;
            tried.map_err(|error| error.to_string())
        });
        Tried { name: name.to_owned(), outcome }
    });
    (ebpf, families.to_vec())
}

/// Whose programs are at the hooks of a cgroup, ours known by their pins.
pub fn hooks(cgroup: &Path, pins: &Pins) -> Vec<Hook> {
    let hook = |(name, hook): (&str, sys::AttachType)| {
        let ours = sys::get(&pins.link(name)).and_then(|link| sys::link_target(link.as_fd()));
        let ours = ours.map_or(0, |target| target.program_id);
        let program = |program: query::Attached| HookProgram {
            ours: program.id == ours,
            id: program.id,
            name: program.name,
            cgroup: program.cgroup.map(|path| path.display().to_string()),
        };
        Hook {
            name: hook.name().to_owned(),
            rewrites: order::rewrites(hook).is_some(),
            programs: query::in_order(cgroup, hook)
                .map(|programs| programs.into_iter().map(program).collect())
                .map_err(|error| error.to_string()),
        }
    };
    CGROUP_PROGRAMS.into_iter().map(hook).collect()
}
