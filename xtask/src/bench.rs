//! `cargo xtask bench`: what a connection and an enrolment cost, against iptables and against nothing.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::{setup, stage};

/// The part that needs a Kubernetes.
const BURST: &str = "burst";

/// Ends as the program `bench` of `veer-tests` does.
pub(crate) fn run(arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    let further = if arguments.iter().any(|argument| argument == BURST) {
        stage::variables_of_kube(&setup::kube_tools()?).into()
    } else {
        Vec::new()
    };
    stage::perform("bench", arguments, &further)
}
