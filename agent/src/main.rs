//! The binary `veer`: flags in, exit code out.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use veer::cli::{Cli, Command};
use veer::commands::{self, Failure};
use veer::config::AgentConfig;
use veer::platform::proxy::shim;
use veer::platform::userns;
use veer::{app, telemetry};

/// `EX_USAGE`: flags, variables or arguments.
const USAGE: u8 = 64;
/// `EX_UNAVAILABLE`: there is no agent, or no datapath.
const UNAVAILABLE: u8 = 69;
/// `EX_TEMPFAIL`: an agent runs that has to end first.
const BUSY: u8 = 75;
/// What istio-validation ends with: the pod's connections are not redirected.
const MISSING: u8 = 126;
/// `EX_SOFTWARE`: anything else.
const FAILED: u8 = 70;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and the version are "errors", too, and go to stdout.
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    match run(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let (code, text) = match failure {
                Failure::Usage(text) => (USAGE, text),
                Failure::Unavailable(text) => (UNAVAILABLE, text),
                Failure::Missing(text) => (MISSING, text),
                Failure::Busy(text) => (BUSY, text),
                Failure::Failed(text) => (FAILED, text),
                // The reader has what it wants (`veer pods | head`).
                Failure::ClosedOutput => return ExitCode::SUCCESS,
            };
            drop(writeln!(std::io::stderr(), "veer: {text}"));
            ExitCode::from(code)
        }
    }
}

fn run(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Doctor(flags) => return commands::doctor::run(&flags),
        Command::Agent(flags) => {
            let config = AgentConfig::parse(&flags).map_err(|errors| Failure::Usage(errors.to_string()))?;
            telemetry::start(config.log);
            app::run(&config).map_err(|error| Failure::Failed(error.to_string()))
        }
        Command::Status(flags) => commands::status::run(&flags),
        Command::Pods(flags) => commands::pods::run(&flags),
        Command::Monitor(flags) => commands::monitor::run(&flags),
        Command::JoinUserNamespace => {
            userns::child().map_err(|error| Failure::Failed(format!("join the user namespace: {error}")))
        }
        Command::KeepProxy { charge } => {
            shim::child(&charge).map_err(|error| Failure::Failed(format!("tell the agent: {error}")))
        }
        Command::Check(flags) => commands::check::run(&flags),
        Command::Explain(flags) => commands::explain::run(&flags),
        Command::InstallCni(flags) => commands::install_cni::install(&flags),
        Command::UninstallCni(flags) => commands::install_cni::uninstall(&flags),
        Command::Uninstall(flags) => commands::uninstall::run(&flags),
    }
    .map(|()| 0)
}
