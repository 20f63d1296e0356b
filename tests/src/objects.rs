//! What the kernel holds of an agent: programs, maps and links, pinned or not.
//!
//! Owns: finding them among everybody's. What is an agent's is told by its maps: a program belongs to it that
//! uses one of those that it pins, a map that such a program uses, a link that holds such a program. So what a
//! killed agent has left is found although nobody has a name for it. Never does: change any of it.

use std::collections::BTreeSet;
use std::ffi::c_int;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use aya::maps::MapInfo;
use aya::programs::{ProgramInfo, loaded_programs};
use nix::errno::Errno;

use crate::bpf;
use crate::pinned::Pinned;

const LINK_GET_FD_BY_ID: c_int = 30;
const LINK_GET_NEXT_ID: c_int = 31;

/// Ids of what there is.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Objects {
    /// Programs.
    pub programs: BTreeSet<u32>,
    /// Maps, those of constants included.
    pub maps: BTreeSet<u32>,
    /// Links.
    pub links: BTreeSet<u32>,
}

/// What BPF_LINK_GET_NEXT_ID and BPF_LINK_GET_FD_BY_ID take.
#[repr(C)]
#[derive(Default)]
struct Which {
    this: u32,
    next: u32,
    open_flags: u32,
}

impl Objects {
    /// Those of the agent that pins here.
    pub fn of(pinned: &Pinned) -> Result<Self> {
        let mut objects = Self { maps: pinned_maps(pinned)?, ..Self::default() };
        let shared = objects.maps.clone();
        // Whatever goes while it is looked at is not there.
        for program in loaded_programs().flatten() {
            let maps = program.map_ids().ok().flatten().unwrap_or_default();
            if maps.iter().any(|map| shared.contains(map)) {
                objects.programs.insert(program.id());
                objects.maps.extend(maps);
            }
        }
        for (link, program) in links().context("list the links")? {
            if objects.programs.contains(&program) {
                objects.links.insert(link);
            }
        }
        Ok(objects)
    }

    /// Its programs, as the kernel tells of them.
    pub fn program_infos(&self) -> Vec<ProgramInfo> {
        loaded_programs().flatten().filter(|program| self.programs.contains(&program.id())).collect()
    }
}

fn pinned_maps(pinned: &Pinned) -> Result<BTreeSet<u32>> {
    let directory = pinned.root().join("maps");
    let entries = fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
    let id = |entry: io::Result<fs::DirEntry>| -> Result<u32> {
        let path = entry?.path();
        let info = MapInfo::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
        Ok(info.id())
    };
    entries.map(id).collect()
}

/// All links of the kernel, each with its program.
fn links() -> io::Result<Vec<(u32, u32)>> {
    let mut links = Vec::new();
    let mut after = Which::default();
    loop {
        match bpf::call(LINK_GET_NEXT_ID, &mut after) {
            Ok(_) => after = Which { this: after.next, ..Which::default() },
            Err(error) if is(&error, Errno::ENOENT) => return Ok(links),
            Err(error) => return Err(error),
        }
        match bpf::open(LINK_GET_FD_BY_ID, &mut Which { this: after.this, ..Which::default() }) {
            Ok(link) => links.extend(program_of(&link)?.map(|program| (after.this, program))),
            // It went in between, or goes just now.
            Err(error) if is(&error, Errno::ENOENT) || is(&error, Errno::EAGAIN) => {}
            Err(error) => return Err(error),
        }
    }
}

/// `prog_id` of a link's file in `/proc`; links of some kinds have none.
fn program_of(link: &OwnedFd) -> io::Result<Option<u32>> {
    let text = fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", link.as_raw_fd()))?;
    let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
    Ok(id.and_then(|id| id.trim().parse().ok()))
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}
