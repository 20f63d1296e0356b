//! `cargo xtask demo`: from a fresh clone to two pods that talk through their sidecars.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::stage;

/// Ends as the program `demo` of `veer-tests` does.
pub(crate) fn run(arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    stage::perform("demo", arguments, &[])
}
