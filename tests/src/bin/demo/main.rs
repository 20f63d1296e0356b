//! `demo`: two pods talk through their proxies, and every claim about it is shown with its proof.
//!
//! Owns: the story and its proofs. Never does: touch the machine's own network (the node is a netns), or
//! say something it has not seen. `cargo xtask demo` builds everything and runs it.
//!
//! It is two processes. The one that is started ([`supervise`]) takes down what an earlier demo left, runs
//! the other one, and takes down whatever that one leaves, however it ends. The other one ([`perform`])
//! sets the stage ([`node`], [`pod`]; who their proxies are is [`proxy`]'s), sends the requests ([`traffic`]), and compares what everybody saw.

mod counters;
mod look_around;
mod node;
mod perform;
mod place;
mod pod;
mod progress;
mod proof;
mod proxy;
mod render;
mod report;
mod supervise;
mod trace;
mod traffic;

use std::process::ExitCode;

use clap::Parser;
use proxy::Driver;

/// Two pods talk through real Envoys, sidecars or one for both: no capability in any pod, no iptables, no conntrack.
///
/// Exit code 0: everything shown is true.
#[derive(Parser)]
#[command(name = "demo")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct Options {
    /// Whose proxy the pods have
    #[arg(long, value_enum, default_value_t = Driver::Sidecar, conflicts_with = "down")]
    proxy: Driver,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Leave everything up, and say how to look around and how to take it down
    #[arg(long)]
    keep: bool,
    /// Take down what --keep left, and nothing else
    #[arg(long, conflicts_with_all = ["json", "keep"])]
    down: bool,
    /// Be the process that is supervised
    #[arg(long, hide = true)]
    on_stage: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = match (options.down, options.on_stage) {
        (true, _) => supervise::take_down(),
        (false, true) => perform::perform(&options),
        (false, false) => supervise::supervise(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("demo: {error:#}");
        ExitCode::FAILURE
    })
}
