//! What the kernel holds for the pods: programs and maps, as the kernel accounts for them.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use aya::maps::MapInfo;
use serde::Serialize;
use veer_tests::objects::Objects;
use veer_tests::pinned::Pinned;

/// What is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Held {
    pub(crate) programs: usize,
    pub(crate) maps: usize,
    pub(crate) links: usize,
    /// Of programs, in bytes: what `bpf_prog_info` calls for.
    pub(crate) programs_bytes: u64,
    /// Of maps, in bytes: `memlock` of a map's descriptor.
    pub(crate) maps_bytes: u64,
}

impl Held {
    /// By an agent's programs.
    pub(crate) fn by(pinned: &Pinned) -> Result<Self> {
        let objects = Objects::of(pinned)?;
        let programs = objects.program_infos();
        let of_programs = programs.iter().map(|program| program.memory_locked().map(u64::from));
        let of_maps = objects.maps.iter().map(|id| memory_of_map(*id));
        Ok(Self {
            programs: objects.programs.len(),
            maps: objects.maps.len(),
            links: objects.links.len(),
            programs_bytes: of_programs.sum::<Result<u64, _>>().context("ask for a program's memory")?,
            maps_bytes: of_maps.sum::<Result<u64>>()?,
        })
    }

    /// All of it.
    pub(crate) const fn bytes(self) -> u64 {
        self.programs_bytes + self.maps_bytes
    }
}

fn memory_of_map(id: u32) -> Result<u64> {
    let map = MapInfo::from_id(id).and_then(|info| info.fd()).with_context(|| format!("open map {id}"))?;
    let path = format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
    bytes.with_context(|| format!("{path} has no memlock"))
}
