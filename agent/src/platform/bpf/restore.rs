//! Maps whose pins somebody removed while no agent ran: the attached programs hold them, and the pods are redirected by
//! what is in them. They get their names back, so that the next agent goes on with them and not with empty ones.
//!
//! Owns: finding them by the programs of our own links. Never does: restore what no program holds: `ENROLMENTS` and
//! `INTERFACE_NAMES` are the agent's alone, and go with their pins; so does a link. Called by: `load`, first of all.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;

use aya::maps::MapInfo;
use aya::programs::loaded_programs;

use super::BpfError;
use super::load::SHARED_MAPS;
use super::pins::{Pins, list};
use super::sys;

/// Pins the maps again that are not, and that a program of ours uses; says which.
///
/// # Errors
/// As the file system and the kernel say. What cannot be told must not be taken for lost: the next agent would begin
/// with an empty map, and the pods would not be redirected.
pub(super) fn lost_maps(pins: &Pins) -> Result<Vec<&'static str>, BpfError> {
    let lost: Vec<_> = SHARED_MAPS.into_iter().filter(|name| !pins.map(name).exists()).collect();
    let programs = if lost.is_empty() { BTreeSet::new() } else { attached(pins)? };
    if programs.is_empty() {
        return Ok(Vec::new());
    }
    let mut restored = Vec::new();
    for id in maps_of(&programs)? {
        // One that has gone in between is none that a program of ours holds.
        let Ok(map) = MapInfo::from_id(id) else { continue };
        let Some(name) = lost.iter().find(|name| map.name_as_str() == Some(**name)) else { continue };
        let path = pins.map(name);
        let failed = |attempt| {
            let path = path.clone();
            move |source| BpfError::Pin { attempt, path, source }
        };
        let fd = map.fd().map_err(|error| failed("open the map of")(io::Error::other(error)))?;
        sys::pin(fd.as_fd(), &path).map_err(failed("pin"))?;
        restored.push(*name);
    }
    Ok(restored)
}

/// Ids of the programs that our links run.
fn attached(pins: &Pins) -> Result<BTreeSet<u32>, BpfError> {
    let mut programs = BTreeSet::new();
    for path in ["links", "netns"].map(|directory| list(&pins.root().join(directory))) {
        for path in path? {
            let target = sys::get(&path).and_then(|link| sys::link_target(link.as_fd()));
            let failed = |source| BpfError::Pin { attempt: "ask", path: path.clone(), source };
            programs.insert(target.map_err(failed)?.program_id);
        }
    }
    Ok(programs)
}

/// Ids of the maps that these programs use.
fn maps_of(programs: &BTreeSet<u32>) -> Result<BTreeSet<u32>, BpfError> {
    let mut maps = BTreeSet::new();
    for program in loaded_programs().flatten().filter(|program| programs.contains(&program.id())) {
        let refused = |source| BpfError::Program { program: program.id().to_string(), source };
        maps.extend(program.map_ids().map_err(refused)?.unwrap_or_default());
    }
    Ok(maps)
}
