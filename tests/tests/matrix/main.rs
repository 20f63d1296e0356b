//! The differential matrix: every connection under istio-init's own rules, under each backend of veer, and
//! explained. Every cell must agree, but for the improvements that are named; and the backends must count the same.
//!
//! With `VEER_LONG` set (`cargo xtask test --long`) it makes up
//! further policies; `VEER_SEED` makes it the same ones again.

mod cell;
mod datagrams;
mod judge;
mod place;
mod policy;
mod run;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Result, bail};
use veer_tests::harness::{self, Harness, Outcome, say};

use judge::IMPROVEMENTS;
use policy::Policy;
use run::{Backend, Tally};

/// What a run of the usual size has at least.
const LEAST_CELLS: usize = 2000;
/// Of a long run.
const RANDOM_POLICIES: usize = 200;

fn main() -> ExitCode {
    harness::run("matrix", perform)
}

fn perform(harness: &Harness) -> Result<Outcome> {
    let known = all_policies()?;
    let count = known.len();
    let policies = harness.choose(known, |policy| policy.name.as_str());
    say(&format!("\nrunning {} policies of the matrix", policies.len()));
    let tallies = run_all(&policies)?;
    let failed = report(&policies, &tallies)?;
    let cells: usize = tallies.iter().flatten().map(|tally| tally.cells).sum();
    Ok(Outcome {
        passed: policies.len() - failed,
        failed,
        filtered_out: count - policies.len(),
        is_complete: !harness.asks_for_all() || cells >= LEAST_CELLS,
    })
}

/// Those of every run, and in a long one as many again as are made up.
fn all_policies() -> Result<Vec<Policy>> {
    let mut policies = policy::all();
    if harness::is_long() {
        let seed = harness::seed()?;
        say(&format!("\nthe random policies again: VEER_SEED={seed}"));
        let mut random = fastrand::Rng::with_seed(seed);
        policies.extend((0..RANDOM_POLICIES).map(|number| policy::random(number, &mut random)));
    }
    Ok(policies)
}

/// Runs the policies, a few at once.
fn run_all(policies: &[Policy]) -> Result<Vec<Vec<Tally>>> {
    let (connections, datagrams) = (cell::connections(), cell::datagrams());
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let workers = thread::available_parallelism().map_or(2, |count| count.get().min(4));
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(policy) = policies.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = run::policy(policy, &connections, &datagrams);
                    say(&format!("  {} {}", policy.name, outcome(&result)));
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((&policy.name, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let ordered = policies.iter().map(|policy| {
        let index = results.iter().position(|(name, _)| **name == policy.name);
        index
            .map_or_else(|| bail!("policy {} was not run", policy.name), |index| results.swap_remove(index).1)
    });
    ordered.collect()
}

/// What became of a policy, for the line that says that it is done: with the first difference, because a long run's
/// report is far away.
fn outcome(result: &Result<Vec<Tally>>) -> String {
    let tallies = match result {
        Ok(tallies) => tallies,
        Err(error) => return format!("failed: {error:#}"),
    };
    let differ: usize = tallies.iter().map(|tally| tally.differences.len()).sum();
    let first = tallies.iter().find_map(|tally| {
        tally.differences.first().map(|first| format!("{}: {first}", tally.backend.name()))
    });
    first.map_or_else(|| "done".to_owned(), |first| format!("done, {differ} differ, the first under {first}"))
}

/// Prints the table and what differs; returns how many policies failed.
fn report(policies: &[Policy], tallies: &[Vec<Tally>]) -> Result<usize> {
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "\n{:28} {:10} {:>6} {:>6} {:>6} {:>7} {:>9}",
        "policy", "backend", "cells", "agree", "better", "differ", "explained"
    )?;
    let mut failed = 0;
    for (policy, tallies) in policies.iter().zip(tallies) {
        for tally in tallies {
            writeln!(
                out,
                "{:28} {:10} {:>6} {:>6} {:>6} {:>7} {:>9}",
                policy.name,
                tally.backend.name(),
                tally.cells,
                tally.agree,
                tally.better.iter().sum::<usize>(),
                tally.differences.len(),
                if tally.backend == Backend::Ebpf { tally.explained.to_string() } else { "-".to_owned() },
            )?;
        }
        failed += usize::from(tallies.iter().any(|tally| !tally.differences.is_empty()));
    }
    let all = || tallies.iter().flatten();
    writeln!(out, "\n{} cells in all", all().map(|tally| tally.cells).sum::<usize>())?;
    for (index, improvement) in IMPROVEMENTS.iter().enumerate() {
        let count: usize = all().filter_map(|tally| tally.better.get(index)).sum();
        writeln!(out, "{count} better: {} ({})", improvement.name, improvement.why)?;
    }
    for (policy, tally) in policies
        .iter()
        .zip(tallies)
        .flat_map(|(policy, tallies)| tallies.iter().map(move |tally| (policy, tally)))
    {
        for difference in tally.differences.iter().take(12) {
            writeln!(out, "\n{} under {}: {difference}\n  {policy:?}", policy.name, tally.backend.name())?;
        }
    }
    Ok(failed)
}
