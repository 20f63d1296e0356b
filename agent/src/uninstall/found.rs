//! What there is of veer on a node, in the order of its removal. Changes nothing.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Removed;
use super::kind::Kind;
use crate::config::Place;
use crate::enrol::{Enrolled, Nftables, loopback, steps};
use crate::platform::bpf::BpfError;
use crate::platform::bpf::generation::{self, Generation};
use crate::platform::bpf::maps::{ListEntries, Maps};
use crate::platform::bpf::pins::Pins;
use crate::platform::netlink;
use crate::platform::netns::NetnsThread;

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// In the order of removal.
    pub(super) items: Vec<Item>,
    /// What is pinned, by ABI version.
    pub(super) generations: Vec<Generation>,
    /// What could not be looked at.
    pub(super) problems: Vec<String>,
}

/// One thing.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) kind: Kind,
    /// As the report names it.
    pub(super) name: String,
    pub(super) action: Action,
}

/// How it goes.
#[derive(Debug)]
pub(super) enum Action {
    /// All entries out of a pinned map.
    Empty(PathBuf),
    /// A pinned link.
    Detach(PathBuf),
    /// A pinned program or map.
    Unpin(PathBuf),
    /// The rules and the record of a pod.
    TakeRules(Box<Enrolled>),
    /// The address of a pod.
    TakePassthrough(Box<Enrolled>),
    /// The way of marked packets of a pod.
    TakeWay(Box<Enrolled>),
    /// A file that is none of a bpffs.
    RemoveFile(PathBuf),
    /// A directory that is empty by then.
    RemoveDirectory(PathBuf),
}

impl Item {
    pub(super) fn removed(&self) -> Removed {
        Removed { kind: self.kind, name: self.name.clone() }
    }
}

/// Looks.
pub(super) fn look(place: &Place, netns: &NetnsThread, nftables: &Nftables) -> Found {
    let mut found = Found::default();
    match Generation::all(&place.bpffs) {
        Ok(generations) => found.generations = generations,
        Err(error) => found.problems.push(error.to_string()),
    }
    for generation in found.generations.clone() {
        if let Err(error) = found.generation(&generation) {
            found.problems.push(error.to_string());
        }
    }
    if let Err(error) = found.on_loopback(&Pins::new(&place.bpffs), netns) {
        found.problems.push(error.to_string());
    }
    let versions: Vec<_> = found.generations.iter().map(|generation| generation.root.clone()).collect();
    if place.bpffs.is_dir() && is_removable(&place.bpffs, &versions) {
        found.add(Kind::PinDirectory, &place.bpffs, Action::RemoveDirectory);
    }
    found.run_directory(place, nftables);
    // Stable: within a kind as they were found.
    found.items.sort_by_key(|item| item.kind);
    found
}

impl Found {
    fn add(&mut self, kind: Kind, path: &Path, action: fn(PathBuf) -> Action) {
        let item = Item { kind, name: path.display().to_string(), action: action(path.to_owned()) };
        self.items.push(item);
    }

    fn generation(&mut self, generation: &Generation) -> Result<(), BpfError> {
        let policies = generation.policies();
        // Where the pin was removed, the links are what redirects.
        if policies.exists() && generation::entries(&policies)? > 0 {
            self.add(Kind::Policies, &policies, Action::Empty);
        }
        for link in generation.cgroup_links()? {
            let program =
                link.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            self.add(Kind::of_cgroup_link(&program), &link, Action::Detach);
        }
        for link in generation.netns_links()? {
            self.add(Kind::NetnsLink, &link, Action::Detach);
        }
        for program in generation.programs()? {
            self.add(Kind::Program, &program, Action::Unpin);
        }
        for map in generation.maps()? {
            self.add(Kind::Map, &map, Action::Unpin);
        }
        for directory in generation.directories() {
            self.add(Kind::PinDirectory, &directory, Action::RemoveDirectory);
        }
        Ok(())
    }

    /// What pods have on `lo` from us. Only our own ABI can be read; of pods of another one it goes with the pod.
    fn on_loopback(&mut self, pins: &Pins, netns: &NetnsThread) -> Result<(), BpfError> {
        if !pins.map(veer_common::maps::name::ENROLMENTS).exists() {
            return Ok(());
        }
        for (cookie, record) in Maps::enrolments_of(pins)? {
            let pod = Enrolled::from_map(cookie, &record, ListEntries::default());
            let Some(file) = steps::open_netns(&pod) else { continue };
            let look = || -> io::Result<(bool, bool)> {
                Ok((netlink::has_passthrough_address()?, !loopback::ways()?.is_empty()))
            };
            let (has_address, has_way) = match netns.run(file.as_fd(), look) {
                Ok(Ok(has)) => has,
                Ok(Err(error)) => {
                    self.problems.push(format!("look at lo of pod {}: {error}", pod.full_name()));
                    continue;
                }
                Err(error) => {
                    self.problems.push(error.to_string());
                    continue;
                }
            };
            if has_way {
                let action = Action::TakeWay(Box::new(pod.clone()));
                self.items.push(Item { kind: Kind::MarkedWay, name: pod.full_name(), action });
            }
            if has_address {
                let (name, action) = (pod.full_name(), Action::TakePassthrough(Box::new(pod)));
                self.items.push(Item { kind: Kind::PassthroughAddress, name, action });
            }
        }
        Ok(())
    }

    /// The pods that have a record, and what else is in their directory.
    fn records(&mut self, directory: &Path, nftables: &Nftables) {
        let (pods, problems) = nftables.recorded();
        self.problems.extend(problems.iter().map(ToString::to_string));
        let drafts = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
        let drafts: Vec<_> =
            drafts.filter(|path| path.extension().is_some_and(|extension| extension == "draft")).collect();
        for draft in &drafts {
            self.add(Kind::RunFile, draft, Action::RemoveFile);
        }
        let records = pods.iter().map(|pod| directory.join(format!("{}.json", pod.cookie)));
        if is_removable(directory, &records.chain(drafts).collect::<Vec<_>>()) {
            self.add(Kind::RunDirectory, directory, Action::RemoveDirectory);
        }
        self.items.extend(pods.into_iter().map(|pod| Item {
            kind: Kind::Rules,
            name: pod.full_name(),
            action: Action::TakeRules(Box::new(pod)),
        }));
    }

    fn run_directory(&mut self, place: &Place, nftables: &Nftables) {
        self.records(&place.records(), nftables);
        let files = [place.cni_socket(), place.control_socket(), place.lock()];
        for path in files.iter().filter(|path| path.symlink_metadata().is_ok()) {
            self.add(Kind::RunFile, path, Action::RemoveFile);
        }
        let ours: Vec<_> = files.into_iter().chain([place.records()]).collect();
        if is_removable(&place.run_dir, &ours) {
            self.add(Kind::RunDirectory, &place.run_dir, Action::RemoveDirectory);
        }
    }
}

/// Whether nothing but `ours` is in a directory, and it is no mount point.
fn is_removable(directory: &Path, ours: &[PathBuf]) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let Ok(mut entries) = fs::read_dir(directory) else { return false };
    directory.parent().is_some_and(|parent| device(parent) == device(directory))
        && entries.all(|entry| entry.is_ok_and(|entry| ours.contains(&entry.path())))
}
