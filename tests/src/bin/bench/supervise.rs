//! The process that is started: it runs the one that measures, and cleans up, however that one ends.

use std::process::ExitCode;

use anyhow::Result;
use veer_tests::scratch;
use veer_tests::supervise::TheOnlyOne;

/// Held while a bench runs: two would measure each other.
const LOCK: &str = "/run/veer-bench.lock";

/// Runs the bench and removes what it leaves. `measures` is the argument that has the process measure.
pub(crate) fn supervise(measures: &str) -> Result<ExitCode> {
    let outcome = TheOnlyOne::of("bench", LOCK)?.supervise(measures);
    scratch::remove_leftovers();
    outcome
}
