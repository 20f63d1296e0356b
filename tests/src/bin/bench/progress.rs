//! Lines on standard error that say what is being measured, and how long it has been going on.

use std::time::Instant;

/// Since when.
#[derive(Debug)]
pub(crate) struct Progress(Instant);

impl Progress {
    /// From now on.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Says what begins.
    pub(crate) fn say(&self, what: &str) {
        eprintln!("bench: {:3} s  {what}", self.0.elapsed().as_secs());
    }
}
