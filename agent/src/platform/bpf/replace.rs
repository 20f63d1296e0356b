//! The node's programs in the place of another build's: all of them, or none.
//!
//! The verifier has its say about each before anything changes. Then link after link is updated in place, what
//! redirects last; a refusal puts the programs of before back. An agent that is killed in between leaves programs
//! of two builds, which work together ([`ABI_VERSION`]), and a note for the next agent, which does it all again.
//!
//! Owns: that order, and its undo. Never does: touch a pod's netns. Called by: [`load`](super::load).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::Ebpf;
use veer_common::ABI_VERSION;
use veer_common::maps::name;

use super::BpfError;
use super::load::{CGROUP_PROGRAMS, INBOUND_PROGRAM, Origin, SHARED_MAPS, load_program, node_object};
use super::maps::Maps;
use super::pins::{Pins, unpin};
use super::sys::{self, AttachType, LinkTarget};

/// Where the programs hang.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    /// The cgroup.
    pub(super) cgroup: BorrowedFd<'a>,
    /// Its id.
    pub(super) id: u64,
}

/// What was done, as far as it must be undone.
enum Done {
    /// The inbound program; it was this one.
    Inbound(Option<OwnedFd>),
    /// A link has another program than this one.
    Updated { link: OwnedFd, program: OwnedFd },
    /// A program's pin; its name had this one.
    Pinned { name: &'static str, before: Option<OwnedFd> },
    /// A link is new; its name had this one.
    Attached { name: &'static str, before: Option<OwnedFd> },
}

/// The maps, if all that is attached is of this build and in its place.
///
/// # Errors
/// `Abi` for maps of another version.
pub(super) fn found(pins: &Pins, build: u64, target: &Target<'_>) -> Result<Option<Maps>, BpfError> {
    if !SHARED_MAPS.iter().all(|name| pins.map(name).exists()) {
        return Ok(None);
    }
    let mut maps = Maps::open(pins)?;
    maps.claim(pins, ABI_VERSION)?;
    Ok((maps.build()? == build && is_whole(pins, &maps, target)).then_some(maps))
}

/// Whether every program is pinned and every link is pinned, hangs where it belongs, and runs that program.
fn is_whole(pins: &Pins, maps: &Maps, target: &Target<'_>) -> bool {
    let id = |name| sys::get(&pins.program(name)).and_then(|program| sys::program_id(program.as_fd()));
    let is_attached = |name| -> io::Result<bool> {
        let link = sys::link_target(sys::get(&pins.link(name))?.as_fd())?;
        Ok(link == LinkTarget { program_id: id(name)?, object: target.id })
    };
    let inbound = id(INBOUND_PROGRAM).and_then(|id| Ok(maps.inbound()? == id));
    inbound.unwrap_or(false) && CGROUP_PROGRAMS.iter().all(|(name, _)| is_attached(name).unwrap_or(false))
}

/// Loads all programs and attaches them, in place of those that are there.
///
/// # Errors
/// `NotReplaced` if there was an earlier build, which is in its place again.
pub(super) fn node_programs(pins: &Pins, target: &Target<'_>) -> Result<(Maps, Origin), BpfError> {
    let before = Maps::open(pins).and_then(|maps| maps.build()).ok();
    let had_links = CGROUP_PROGRAMS.iter().any(|(name, _)| pins.link(name).exists());
    let origin = if had_links { Origin::Other(before.unwrap_or(0)) } else { Origin::Nobody };
    let mut undone = Vec::new();
    let outcome = attempt(pins, target, before.unwrap_or(0), &mut undone);
    outcome.map(|maps| (maps, origin)).map_err(|source| {
        if had_links { BpfError::NotReplaced { source: Box::new(source), problems: undone } } else { source }
    })
}

fn attempt(
    pins: &Pins,
    target: &Target<'_>,
    before: u64,
    problems: &mut Vec<String>,
) -> Result<Maps, BpfError> {
    let mut ebpf = node_object(pins)?;
    let mut maps = Maps::open(pins)?;
    maps.claim(pins, ABI_VERSION)?;
    let (inbound, programs) = load_all(&mut ebpf)?;
    maps.set_build(0)?;
    let mut done = Vec::new();
    let outcome = attach_all(pins, target, &mut maps, &inbound, &programs, &mut done);
    if let Err(error) = outcome {
        for step in done.into_iter().rev() {
            problems.extend(undo(pins, &mut maps, step).err().map(|problem| problem.to_string()));
        }
        if problems.is_empty() {
            maps.set_build(before)?;
        }
        return Err(error);
    }
    pins.remove_halfway()?;
    Ok(maps)
}

type Loaded = (&'static str, AttachType, OwnedFd);

fn load_all(ebpf: &mut Ebpf) -> Result<(OwnedFd, Vec<Loaded>), BpfError> {
    let inbound = load_program(ebpf, INBOUND_PROGRAM)?;
    let load = |(name, hook)| Ok((name, hook, load_program(ebpf, name)?));
    Ok((inbound, CGROUP_PROGRAMS.into_iter().map(load).collect::<Result<_, BpfError>>()?))
}

fn attach_all(
    pins: &Pins,
    target: &Target<'_>,
    maps: &mut Maps,
    inbound: &OwnedFd,
    programs: &[Loaded],
    done: &mut Vec<Done>,
) -> Result<(), BpfError> {
    // One write, and all pods have the new inbound program.
    let before = if_there(maps.inbound().and_then(sys::program_of)).map_err(|source| BpfError::RawMap {
        attempt: "read",
        map: name::INBOUND,
        source,
    })?;
    maps.set_inbound(inbound.as_fd())?;
    done.push(Done::Inbound(before));
    for (name, hook, program) in programs {
        done.push(attach(pins, target, name, *hook, program.as_fd())?);
    }
    let named = programs.iter().map(|(name, _, program)| (*name, program));
    for (name, program) in named.chain([(INBOUND_PROGRAM, inbound)]) {
        let path = pins.program(name);
        let before = if_there(sys::get(&path)).map_err(|source| BpfError::Pin {
            attempt: "open",
            path: path.clone(),
            source,
        })?;
        pins.replace(&path, program.as_fd())?;
        done.push(Done::Pinned { name, before });
    }
    Ok(())
}

/// Attaches a program where its predecessor hangs, without a moment between.
fn attach(
    pins: &Pins,
    target: &Target<'_>,
    name: &'static str,
    hook: AttachType,
    program: BorrowedFd<'_>,
) -> Result<Done, BpfError> {
    let failed = |source| BpfError::Attach {
        program: name,
        target: format!("the cgroup with id {}", target.id),
        source,
    };
    let pin = pins.link(name);
    let before = if_there(sys::get(&pin)).map_err(failed)?;
    let there = before.as_ref().map(|link| sys::link_target(link.as_fd())).transpose().map_err(failed)?;
    if let (Some(link), Some(there)) = (&before, there)
        && there.object == target.id
    {
        let old = sys::program_of(there.program_id).map_err(failed)?;
        sys::link_update(link.as_fd(), program).map_err(failed)?;
        let link = link.try_clone().map_err(failed)?;
        return Ok(Done::Updated { link, program: old });
    }
    // It hangs elsewhere, or nowhere. The new one is there before the old one goes.
    let link = sys::link_create(program, target.cgroup, hook).map_err(failed)?;
    pins.replace(&pin, link.as_fd())?;
    Ok(Done::Attached { name, before })
}

/// What is not there is nothing; what cannot be looked at must not be taken for nothing.
fn if_there<T>(looked: io::Result<T>) -> io::Result<Option<T>> {
    match looked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn undo(pins: &Pins, maps: &mut Maps, done: Done) -> Result<(), BpfError> {
    match done {
        Done::Inbound(None) => Ok(()),
        Done::Inbound(Some(before)) => maps.set_inbound(before.as_fd()),
        Done::Updated { link, program } => {
            sys::link_update(link.as_fd(), program.as_fd()).map_err(|source| BpfError::Attach {
                program: "of before",
                target: "its link".to_owned(),
                source,
            })
        }
        Done::Pinned { name, before: None } => unpin(&pins.program(name)),
        Done::Pinned { name, before: Some(before) } => pins.replace(&pins.program(name), before.as_fd()),
        Done::Attached { name, before: None } => unpin(&pins.link(name)),
        Done::Attached { name, before: Some(before) } => pins.replace(&pins.link(name), before.as_fd()),
    }
}
