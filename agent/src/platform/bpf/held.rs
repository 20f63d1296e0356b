//! What would be lost with its pin: the agent's own descriptors of everything that it has pinned.
//!
//! Owns: the descriptors, and bringing lost pins back. Never does: load a program. Called by: `load`.
//!
//! A link whose only reference is its pin is gone with it, and so is the redirection of all pods: somebody who tidies up
//! the bpffs, or unmounts it, must not do that while an agent runs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::load::CGROUP_PROGRAMS;
use super::pins::Pins;
use super::sys::{self, AttachType};
use super::{BpfError, load};

/// Descriptors of the node's maps, programs and links.
#[derive(Debug)]
pub(super) struct Held {
    objects: Vec<(PathBuf, OwnedFd)>,
    links: Vec<HeldLink>,
    cgroup: OwnedFd,
    cgroup_id: u64,
}

#[derive(Debug)]
struct HeldLink {
    program: &'static str,
    attach_type: AttachType,
    path: PathBuf,
    link: OwnedFd,
}

impl Held {
    /// Opens everything that is pinned.
    ///
    /// # Errors
    /// If one of them is not there.
    pub(super) fn open(pins: &Pins, cgroup: BorrowedFd<'_>, cgroup_id: u64) -> Result<Self, BpfError> {
        let maps = load::SHARED_MAPS.iter().map(|name| pins.map(name));
        let names = CGROUP_PROGRAMS.iter().map(|(name, _)| *name).chain([load::INBOUND_PROGRAM]);
        let paths = maps.chain(names.map(|name| pins.program(name)));
        let objects = paths.map(|path| Ok((path.clone(), open(&path)?))).collect::<Result<_, BpfError>>()?;
        let links = CGROUP_PROGRAMS.iter().map(|(program, attach_type)| {
            let path = pins.link(program);
            let link = open(&path)?;
            Ok(HeldLink { program, attach_type: *attach_type, path, link })
        });
        let links = links.collect::<Result<_, BpfError>>()?;
        let cgroup = cgroup.try_clone_to_owned().map_err(|source| BpfError::Attach {
            program: "any",
            target: "the cgroup".to_owned(),
            source,
        })?;
        Ok(Self { objects, links, cgroup, cgroup_id })
    }

    /// Brings back what is not pinned any more and attaches what was detached; says what that was.
    ///
    /// # Errors
    /// The first thing that cannot be brought back; the rest waits for the next time.
    pub(super) fn heal(&mut self, pins: &Pins) -> Result<Vec<String>, BpfError> {
        let mut healed = Vec::new();
        let objects = self.objects.iter().map(|(path, object)| (path, object));
        let links = self.links.iter().map(|held| (&held.path, &held.link));
        for (path, object) in objects.chain(links) {
            if !is_there(path) {
                pins.create()?;
                repin(path, object.as_fd())?;
                healed.push(format!("the pin {} was gone", path.display()));
            }
        }
        for index in 0..self.links.len() {
            healed.extend(self.attach_again(pins, index)?);
        }
        Ok(healed)
    }

    /// Attaches the program of a link that somebody has detached, which leaves the link but not its hook.
    fn attach_again(&mut self, pins: &Pins, index: usize) -> Result<Option<String>, BpfError> {
        let Some(held) = self.links.get(index) else { return Ok(None) };
        let is_attached = sys::link_target(held.link.as_fd()).is_ok_and(|to| to.object == self.cgroup_id);
        let program = self.objects.iter().find(|(path, _)| path.file_name() == held.path.file_name());
        let Some((_, program)) = program.filter(|_| !is_attached) else { return Ok(None) };
        let refused = |source| BpfError::Attach {
            program: held.program,
            target: format!("the cgroup with id {}", self.cgroup_id),
            source,
        };
        let link =
            sys::link_create(program.as_fd(), self.cgroup.as_fd(), held.attach_type).map_err(refused)?;
        pins.replace(&held.path, link.as_fd())?;
        let said = format!("{} was detached from its cgroup", held.program);
        if let Some(held) = self.links.get_mut(index) {
            held.link = link;
        }
        Ok(Some(said))
    }
}

/// Whether something is pinned there.
pub(super) fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Pins an object where its pin was.
fn repin(path: &Path, object: BorrowedFd<'_>) -> Result<(), BpfError> {
    sys::pin(object, path).map_err(|source| BpfError::Pin { attempt: "pin", path: path.to_owned(), source })
}

fn open(path: &Path) -> Result<OwnedFd, BpfError> {
    sys::get(path).map_err(|source| BpfError::Pin { attempt: "open", path: path.to_owned(), source })
}
