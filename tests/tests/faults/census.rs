//! What there is of the agent, in the kernel and as a process: equal before and after a fault, or it leaks.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use veer_common::maps::name;
use veer_tests::agent::Agent;
use veer_tests::objects::Objects;
use veer_tests::pinned::{Counts, Pinned};
use veer_tests::wait;

/// An agent that has done more holds a little more: its allocator keeps pages. Measured: 0.9 MB after 5,000
/// ADDs and DELs, 1.7 MB after 25,000. A leak of 300 bytes for each of 5,000 is more than this.
const ALLOWED_KB: i64 = 1500;

/// A count of everything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Census {
    entries: Counts,
    programs: usize,
    maps: usize,
    links: usize,
    fds: usize,
    anonymous_kb: i64,
}

/// What there is more of than before. A loss counts, too: both are a difference.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Leak {
    pub(crate) entries: usize,
    pub(crate) links: usize,
    /// Programs and maps.
    pub(crate) objects: usize,
    pub(crate) fds: usize,
    /// What the agent's memory has grown by, in kB; not a leak below [`ALLOWED_KB`].
    pub(crate) memory_kb: i64,
}

impl Census {
    /// Counts. Nobody may open connections meanwhile: what is on its way would be counted.
    pub(crate) fn take(agent: &Agent) -> Result<Self> {
        let pinned = Pinned::of(agent);
        let objects = Objects::of(&pinned)?;
        let process = Path::new("/proc").join(agent.process().pid().to_string());
        let descriptors = fs::read_dir(process.join("fd")).context("list the agent's descriptors")?;
        Ok(Self {
            entries: pinned.counts()?,
            programs: objects.programs.len(),
            maps: objects.maps.len(),
            links: objects.links.len(),
            fds: descriptors.count(),
            anonymous_kb: anonymous_kb(&process)?,
        })
    }

    /// Counts until nothing differs from `before`, or time is up: the kernel frees in its own time.
    pub(crate) fn settle(agent: &Agent, before: &Self) -> Result<(Self, Leak)> {
        let mut last = Self::take(agent)?;
        let settled = wait::until("the kernel to free what is not used", wait::LIMIT / 4, || {
            Self::take(agent).is_ok_and(|now| {
                last = now;
                last.differs_by(before).is_none()
            })
        });
        let leak = last.differs_by(before);
        // Late and all the same: what counts is the last look.
        drop(settled);
        Ok((last, leak))
    }

    /// What there is more or less of than before.
    pub(crate) fn differs_by(&self, before: &Self) -> Leak {
        let names = || self.entries.keys().chain(before.entries.keys());
        let of = |counts: &Counts, name: &str| counts.get(name).copied().unwrap_or_default();
        let mut names: Vec<_> = names().copied().collect();
        names.sort_unstable();
        names.dedup();
        let entries = names.iter().map(|name| of(&self.entries, name).abs_diff(of(&before.entries, name)));
        Leak {
            entries: entries.sum(),
            links: self.links.abs_diff(before.links),
            objects: self.programs.abs_diff(before.programs) + self.maps.abs_diff(before.maps),
            fds: self.fds.abs_diff(before.fds),
            memory_kb: self.anonymous_kb - before.anonymous_kb,
        }
    }

    /// What differs, for people.
    pub(crate) fn tell(&self, before: &Self) -> String {
        format!("before {before:?}\n  after  {self:?}")
    }

    /// Whether no redirected connection is on its way.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.entries.contains_key(name::HAND_OFFS)
    }
}

impl Leak {
    /// Whether nothing leaked.
    pub(crate) fn is_none(self) -> bool {
        let Self { entries, links, objects, fds, memory_kb } = self;
        entries + links + objects + fds == 0 && memory_kb <= ALLOWED_KB
    }
}

fn anonymous_kb(process: &Path) -> Result<i64> {
    let status = fs::read_to_string(process.join("status")).context("read the agent's status")?;
    let value = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.split_whitespace().next());
    value.and_then(|kb| kb.parse().ok()).context("the agent's status has no RssAnon")
}
