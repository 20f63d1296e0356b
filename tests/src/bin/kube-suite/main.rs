//! `kube-suite`: veer in a real Kubernetes, check by check; `cargo xtask test kube` starts it.
//!
//! A program of its own rather than tests, because a cluster is made once for all of them, and because nobody who
//! asks for all tests wants to build a Kubernetes first. It takes a part of a check's name. Nothing is skipped:
//! without the programs of a cluster everything fails and says how to get them.

mod api;
mod table;

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, anyhow};

use table::Row;

/// One line on stdout. Whoever closes it early does not want the rest.
macro_rules! say {
    ($($text:tt)*) => { drop(writeln!(io::stdout(), $($text)*)) };
}

/// What is claimed, and what shows it.
struct Check {
    /// A sentence.
    name: &'static str,
    /// Returns what was seen, in a few words.
    run: fn() -> Result<String>,
}

const CHECKS: [Check; 3] = [
    Check { name: "an outage of the API server loses nothing", run: api::outage },
    Check { name: "a client has the rights that RBAC gives it", run: api::rights },
    Check { name: "controllers and scheduler do their work in a node's netns", run: api::controllers },
];

fn main() -> ExitCode {
    let filter = std::env::args().nth(1);
    let checks: Vec<&Check> = CHECKS
        .iter()
        .filter(|check| filter.as_ref().is_none_or(|part| check.name.contains(part.as_str())))
        .collect();
    let started = Instant::now();
    say!("\nrunning {} checks", checks.len());
    let rows: Vec<Row> = checks.iter().map(|check| perform(check)).collect();
    let failed = rows.iter().filter(|row| row.seen.is_err()).count();
    for row in rows.iter().filter(|row| row.seen.is_err()) {
        say!("\n{}", table::failure(row));
    }
    say!("\n{}", table::render(&rows));
    say!(
        "\n{} of {} checks passed in {:.0} s",
        rows.len() - failed,
        rows.len(),
        started.elapsed().as_secs_f64()
    );
    if failed == 0 && !rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn perform(check: &Check) -> Row {
    let started = Instant::now();
    // What a guard must undo is undone by the way, and the next check has a cluster of its own or a whole one.
    let seen = catch_unwind(AssertUnwindSafe(check.run)).unwrap_or_else(|_told| Err(anyhow!("it panicked")));
    let row = Row { name: check.name, seen, took: started.elapsed() };
    say!("  {}", table::progress(&row));
    row
}
