//! `bench`: what a connection and an enrolment cost, against istio-init's rules and against nothing.
//!
//! Owns: the measurements and how they are told. Never does: touch the machine's own network (pods and
//! world are namespaces), or compare what did not run in the same minute. `cargo xtask bench` builds
//! everything for release and runs it.
//!
//! Three pods in one world: `direct` is left alone, `iptables` has the rules that istio-init programs, in
//! `veer` the real agent redirects. In each the same server ([`server`]) and the same client ([`client`])
//! do the same system calls; only the path between them differs ([`scene`]). Rounds take turns
//! ([`paths`]), so that whatever else the machine does meets all three. Then pods are enrolled, by the
//! agent and by whole processes ([`joining`]), and the agent is looked at ([`footprint`]). Numbers become
//! medians and ratios in [`statistics`] and [`report`], which are pure, as are [`table`] and [`plot`].
//!
//! `bench scale` is another run ([`scale`]): a node with very many pods. `bench burst` is a third one ([`burst`]): many pods at
//! once on a real Kubernetes node. `bench proxy` is a fourth ([`proxy`]): sidecars, or one Envoy for all pods.
//!
//! The process that is started ([`supervise`]) runs another one, which does all of this, and removes what
//! that one leaves, however it ends.

mod burst;
mod client;
mod end;
mod footprint;
mod joining;
mod order;
mod paths;
mod plot;
mod progress;
mod proxy;
mod report;
mod run;
mod scale;
mod scene;
mod server;
mod statistics;
mod supervise;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Direct, iptables and veer in one run: a connection, a request, throughput, and enrolment.
///
/// Prints a table, and writes bench.json and bench.svg.
#[derive(Parser)]
#[command(name = "bench")]
struct Options {
    /// A short run: fewer rounds and samples
    #[arg(long)]
    quick: bool,
    /// Where bench.json and bench.svg go
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
    /// CPUs of client and server, as `2,3` [default: the last one for both]
    #[arg(long, value_name = "CLIENT,SERVER")]
    cpus: Option<order::Cpus>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What else there is to measure, and what a process of the bench is besides the one that was started.
#[derive(Subcommand)]
enum Role {
    /// A node with very many pods: enrolment, memory, restart, and whether a connection costs more; writes
    /// scale.json, and ends with 1 if a target is missed
    Scale(scale::Options),
    /// A burst of pods on a real Kubernetes node: without a plugin behind the primary CNI, with veer's, and with one that
    /// runs istio-iptables; writes burst.json
    Burst(burst::Options),
    /// A sidecar in each pod, or one Envoy for all pods of a node: memory, CPU, latency, throughput, and how long a pod waits
    /// for its proxy; writes proxy.json, and ends with 1 if a target is missed
    Proxy(proxy::Options),
    /// Measures
    #[command(hide = true)]
    Run,
    /// Serves the measured connections
    #[command(hide = true)]
    Server(server::Options),
    /// Opens the measured connections
    #[command(hide = true)]
    Client(client::Options),
}

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = match &options.role {
        None => supervise::supervise("run"),
        Some(Role::Scale(scale)) if !scale.measures => supervise::supervise("--measures"),
        Some(Role::Scale(scale)) => scale::run(*scale, &options.out),
        Some(Role::Burst(burst)) if !burst.measures => supervise::supervise("--measures"),
        Some(Role::Burst(burst)) => burst::run(*burst, &options.out),
        Some(Role::Proxy(proxy)) if !proxy.measures => supervise::supervise("--measures"),
        Some(Role::Proxy(proxy)) => proxy::run(proxy, &options.out),
        Some(Role::Run) => run::run(&options).map(|()| ExitCode::SUCCESS),
        Some(Role::Server(server)) => server::serve(server).map(|()| ExitCode::SUCCESS),
        Some(Role::Client(client)) => client::obey(client).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("bench: {error:#}");
        ExitCode::FAILURE
    })
}
