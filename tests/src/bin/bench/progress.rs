//! Lines on standard error that say what is being measured, and how long it has been going on.

use std::io::{Write, stderr};
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
        // Whoever read may have gone; the run goes on to its end, and cleans up.
        writeln!(stderr(), "bench: {:3} s  {what}", self.0.elapsed().as_secs()).ok();
    }
}
