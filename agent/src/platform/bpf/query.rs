//! Whose programs are at a hook of a cgroup, and in which order they run.
//!
//! Owns: the question (`BPF_PROG_QUERY`) and the names to its answer. Never does: judge what it finds, or change
//! it. Called by: [`order`](super::order).

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::sys::{self, AttachType, Programs};

/// A program at a hook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attached {
    /// The program's id, as `bpftool prog` shows it.
    pub id: u32,
    /// Its name, 15 characters at the most; empty if it has none, or if it was gone before it could be asked.
    pub name: String,
    /// The cgroup that it hangs on: the one that was asked about, or one above it. `None` if that is above
    /// what this mount shows.
    pub cgroup: Option<PathBuf>,
}

/// The programs that run at a hook for the processes in a cgroup, in the order of their running: the kernel's own
/// order, in which a cgroup's programs come before those of the cgroups above it, unless they asked for
/// another place (`BPF_F_PREORDER`, `BPF_F_BEFORE`).
///
/// # Errors
/// As the kernel says: EINVAL for a hook that it does not have, EPERM without CAP_NET_ADMIN.
pub fn in_order(cgroup: &Path, hook: AttachType) -> io::Result<Vec<Attached>> {
    let ids = sys::programs_at(File::open(cgroup)?.as_fd(), hook, Programs::Effective)?;
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let names = names();
    let mut places = places(cgroup, hook)?;
    Ok(ids
        .into_iter()
        .map(|id| Attached {
            id,
            name: names.get(&id).cloned().unwrap_or_default(),
            cgroup: places.iter().position(|(other, _)| *other == id).map(|index| places.remove(index).1),
        })
        .collect())
}

/// What hangs on the cgroup and on each above it, from it upwards.
fn places(cgroup: &Path, hook: AttachType) -> io::Result<Vec<(u32, PathBuf)>> {
    let mut places = Vec::new();
    for path in cgroup.ancestors().take_while(|path| is_cgroup(path)) {
        let ids = sys::programs_at(File::open(path)?.as_fd(), hook, Programs::Own)?;
        places.extend(ids.into_iter().map(|id| (id, path.to_owned())));
    }
    Ok(places)
}

fn is_cgroup(path: &Path) -> bool {
    statfs(path).is_ok_and(|statfs| statfs.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// The names of all programs in the kernel; those that cannot be read are left out.
fn names() -> HashMap<u32, String> {
    let named = |program: aya::programs::ProgramInfo| {
        (program.id(), String::from_utf8_lossy(program.name()).into_owned())
    };
    aya::programs::loaded_programs().flatten().map(named).collect()
}
