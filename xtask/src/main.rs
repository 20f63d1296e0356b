//! `cargo xtask`: everything that is done to this repository, one module for each verb.
//!
//! Progress and errors go to stderr, results to stdout, so that `--json` can be piped. Knows nothing
//! of veer's own crates: it starts cargo and programs, and reads source text.
//!
//! Exit codes: 0 done, 1 failed, 64 wrong usage, 69 something is missing that it may not or could not
//! install. `demo` and `bench` end with the code of the program they start.

mod bench;
mod build;
mod chart;
mod check;
mod demo;
mod exec;
mod fuzz;
mod kube;
mod laws;
mod package;
mod setup;
mod stage;
mod test;
mod vm;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

const FAILED: u8 = 1;
const USAGE: u8 = 64;
const UNAVAILABLE: u8 = 69;

/// The tasks of veer's repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Installs what the build, the demo and the tests need, and says what it does
    Setup(setup::Options),
    /// Builds the binaries for a node: release, static
    Build,
    /// What is released: image, binaries, list of contents, checksums
    Package(package::Options),
    /// Two pods talk through their sidecars; every claim is shown with its proof
    #[command(disable_help_flag = true)]
    Demo(PassedOn),
    /// Direct, iptables and veer in one run: connect, request, throughput, enrolment
    #[command(disable_help_flag = true)]
    Bench(PassedOn),
    /// All tests, or a part of them
    Test(test::Options),
    /// The tests in virtual machines, on the kernels that users run
    Vm(vm::Options),
    /// libFuzzer on everything that comes from outside, ten minutes each
    Fuzz(fuzz::Options),
    /// Renders the Helm chart into deploy/manifests, for each platform
    Manifests,
    /// Form, lints, documentation, licences, the chart and the laws of the source
    Check(check::Options),
}

/// Arguments for the program that the verb starts.
#[derive(clap::Args)]
struct PassedOn {
    /// Passed on as they are; try --help
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Something is missing that this program may not or could not install. Ends with exit code 69.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unavailable(String);

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            error.print().ok();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let done = match arguments.verb {
        Verb::Setup(options) => setup::run(&options),
        Verb::Build => build::run(),
        Verb::Package(options) => package::run(&options),
        Verb::Demo(passed) => demo::run(&passed.arguments),
        Verb::Bench(passed) => bench::run(&passed.arguments),
        Verb::Test(options) => test::run(&options),
        Verb::Vm(options) => vm::run(&options),
        Verb::Fuzz(options) => fuzz::run(&options),
        Verb::Manifests => chart::write(),
        Verb::Check(options) => check::run(&options),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            exec::say(&format!("error: {error:#}"));
            ExitCode::from(if error.is::<Unavailable>() { UNAVAILABLE } else { FAILED })
        }
    }
}
