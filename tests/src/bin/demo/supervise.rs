//! The process that is started: it makes room, runs the demo, and takes everything down, however the demo ends.

use std::process::ExitCode;

use anyhow::{Context, Result};
use veer_tests::supervise::TheOnlyOne;

use crate::place;

/// Runs the demo and takes everything down after it, unless it is to be kept.
pub(crate) fn supervise() -> Result<ExitCode> {
    let only = TheOnlyOne::of("demo", place::LOCK)?;
    if place::take_down().context("take down an earlier demo")? {
        eprintln!("demo: took down what an earlier demo left");
    }
    let outcome = only.supervise("--on-stage");
    if place::is_kept() {
        return outcome;
    }
    place::take_down().context("take down the demo")?;
    outcome
}

/// Takes down what an earlier demo kept.
pub(crate) fn take_down() -> Result<ExitCode> {
    let _only = TheOnlyOne::of("demo", place::LOCK)?;
    let found = place::take_down()?;
    eprintln!("demo: {}", if found { "taken down" } else { "nothing is up" });
    Ok(ExitCode::SUCCESS)
}
