//! `cargo xtask bench`: what a connection and an enrolment cost, against iptables and against nothing.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::stage;

/// Ends as the program `bench` of `veer-tests` does.
pub(crate) fn run(arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    stage::perform("bench", arguments)
}
