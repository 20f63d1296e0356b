//! One watch, for whoever asks how it stands.
//!
//! Owns: its standing, its condition, what it has counted, and what the log is told of it. Never does: a request. Called
//! by: the watch, which tells, and the source, which asks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use kube::core::WatchEvent;

use super::outage::{Change, Standing, State};
use crate::readiness::Condition;
use crate::wall_clock;

/// A watch.
#[derive(Debug)]
pub(super) struct Watched {
    /// What it watches, for people: `namespaces`.
    what: &'static str,
    standing: Mutex<Standing>,
    /// That what changes is heard of.
    current: Condition,
    /// What has been done, since the start.
    pub(super) counts: Counts,
}

/// What has been done, since the start.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) lists: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) lookups: AtomicU64,
    pub(super) added: AtomicU64,
    pub(super) modified: AtomicU64,
    pub(super) deleted: AtomicU64,
}

impl Watched {
    /// One that has not begun.
    pub(super) fn new(what: &'static str, current: Condition) -> Self {
        let standing = Mutex::new(Standing::new(wall_clock::now()));
        Self { what, standing, current, counts: Counts::default() }
    }

    /// How it stands.
    pub(super) fn standing(&self) -> Standing {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How it stands, beside what it has not told of.
    pub(super) fn problem(&self) -> String {
        match self.standing().state() {
            State::Synced => "the watch has not told of it".to_owned(),
            State::Starting(None) => "the watch is being made".to_owned(),
            State::Starting(Some(problem)) | State::Degraded(problem) => {
                format!("the watch fails: {problem}")
            }
        }
    }

    /// The server watches for us. Gives back whether that is news.
    pub(super) fn succeeded(&self) -> bool {
        let change = self.change(|standing| standing.succeeded(wall_clock::now()));
        if let Some(Change::Synced(after)) = &change {
            tracing::info!(after = after.as_secs_f32(), "{} are known", self.what);
        }
        change.is_some()
    }

    /// An attempt has failed, or the watch has broken. Gives back whether that is news.
    pub(super) fn failed(&self, problem: String) -> bool {
        self.counts.failures.fetch_add(1, Ordering::Relaxed);
        let change = self.change(|standing| standing.failed(wall_clock::now(), problem));
        if let Some(Change::Failing(problem)) = &change {
            let of = self.what;
            tracing::warn!(of, %problem, "the API server does not tell of changes; what is known stays");
        }
        change.is_some()
    }

    /// Something has changed.
    pub(super) fn count<T>(&self, event: &WatchEvent<T>) {
        let counter = match event {
            WatchEvent::Added(_) => &self.counts.added,
            WatchEvent::Modified(_) => &self.counts.modified,
            WatchEvent::Deleted(_) => &self.counts.deleted,
            WatchEvent::Bookmark(_) | WatchEvent::Error(_) => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn change(&self, by: impl FnOnce(&mut Standing) -> Option<Change>) -> Option<Change> {
        let change = by(&mut self.standing.lock().unwrap_or_else(PoisonError::into_inner));
        if change.is_some() {
            self.tell();
        }
        change
    }

    /// Whether what is created now would be known.
    fn tell(&self) {
        let what = self.what;
        match self.standing().state() {
            State::Synced => self.current.holds(),
            State::Starting(None) => {}
            State::Starting(Some(problem)) => {
                self.current.fails(&format!("{what} are not known yet: {problem}"));
            }
            State::Degraded(problem) => {
                self.current.fails(&format!("the API server does not tell of changes of {what}: {problem}"));
            }
        }
    }
}
