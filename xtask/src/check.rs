//! `cargo xtask check`: what a reviewer should not have to look at.
//!
//! All parts run, also after one has failed, and each failing part names the command to run it alone.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::exec::{self, say};
use crate::{FAILED, chart, laws, setup, workspace};

/// What to check.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only this part
    part: Option<Part>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// rustfmt
    Fmt,
    /// The laws of the source text
    Laws,
    /// Licences, sources and advisories of the dependencies
    Deny,
    /// The Helm chart: its schema, its rendered manifests, and Kubernetes' own types
    Chart,
    /// Lints, in all targets of all crates
    Clippy,
    /// The documentation's links and form
    Doc,
}

impl Part {
    /// The quick ones first.
    const ALL: [Self; 6] = [Self::Fmt, Self::Laws, Self::Deny, Self::Chart, Self::Clippy, Self::Doc];

    const fn name(self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Laws => "laws",
            Self::Deny => "deny",
            Self::Chart => "chart",
            Self::Clippy => "clippy",
            Self::Doc => "doc",
        }
    }
}

/// The verb.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let root = workspace::root()?;
    let parts = options.part.map_or(Part::ALL.to_vec(), |part| vec![part]);
    if parts.iter().any(|part| matches!(part, Part::Clippy | Part::Doc)) {
        // They compile, and the agent's build script compiles the eBPF programs.
        setup::ensure()?;
    }
    let mut failed = Vec::new();
    for part in parts {
        say(&format!("== {}", part.name()));
        if let Err(error) = carry_out(part, &root) {
            say(&format!("{error:#}\n"));
            failed.push(part.name());
        }
    }
    if failed.is_empty() {
        say("check: all well");
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!("check: failed: {}; one alone: cargo xtask check {}", failed.join(", "), failed.join("|")));
    Ok(ExitCode::from(FAILED))
}

fn carry_out(part: Part, root: &Path) -> Result<()> {
    let mut cargo = workspace::cargo(root);
    match part {
        Part::Fmt => exec::run(cargo.args(["fmt", "--all", "--check"])),
        Part::Laws => laws::uphold(root),
        Part::Deny => deny(root),
        Part::Chart => chart::check(root),
        Part::Clippy => {
            let all = ["--workspace", "--all-targets", "--features", "veer-tests/own-machine"];
            exec::run(cargo.arg("clippy").args(all).args(["--", "-D", "warnings"]))
        }
        Part::Doc => {
            cargo.args(["doc", "--workspace", "--no-deps", "--document-private-items"]);
            exec::run(cargo.env("RUSTDOCFLAGS", "-D warnings"))
        }
    }
}

/// The one part that may be left out, because its tool takes minutes to build. It says so.
fn deny(root: &Path) -> Result<()> {
    if workspace::program("cargo-deny").is_none() {
        say("skipped: cargo-deny is not installed (cargo install cargo-deny --locked)");
        return Ok(());
    }
    let mut command: Command = workspace::cargo(root);
    // Advisories come over the network from a database of their own: not a part of every check.
    exec::run(command.args(["deny", "--workspace", "check", "bans", "licenses", "sources"]))
}
