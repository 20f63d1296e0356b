//! A test program of its own, whose table is for people: it takes a name or a part of
//! one, as a test does, and ends like one.
//!
//! Owns: the arguments that cargo and those who run it give, the seed, and the last line. Never does: know what is
//! tested. Called by: the test targets without the usual harness.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

/// What was asked for.
#[derive(Debug)]
pub struct Harness {
    suite: &'static str,
    filter: Option<String>,
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// How many did what they should.
    pub passed: usize,
    /// How many did not.
    pub failed: usize,
    /// How many were not asked for.
    pub filtered_out: usize,
    /// Whether there was as much to test as there ought to be.
    pub is_complete: bool,
}

impl Outcome {
    const fn is_well(self) -> bool {
        self.failed == 0 && self.is_complete
    }
}

/// Runs a suite, as `main`.
pub fn run(suite: &'static str, perform: impl FnOnce(&Harness) -> Result<Outcome>) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // What the usual harness is asked by tools that list tests.
    if arguments.iter().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let harness = Harness { suite, filter: filter(arguments) };
    let started = Instant::now();
    match perform(&harness) {
        Ok(outcome) => {
            say(&last_line(outcome, started.elapsed().as_secs_f64()));
            if outcome.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("{suite}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Harness {
    /// What is to be done of all: what has the part in its name; where the part is a whole name, that one alone.
    pub fn choose<T>(&self, all: Vec<T>, name: impl Fn(&T) -> &str) -> Vec<T> {
        let Some(part) = self.filter.as_deref().filter(|part| !self.suite.contains(part)) else { return all };
        let is_name = all.iter().any(|one| name(one) == part);
        let is_asked = |one: &T| if is_name { name(one) == part } else { name(one).contains(part) };
        all.into_iter().filter(is_asked).collect()
    }

    /// Whether all is to be done.
    pub const fn asks_for_all(&self) -> bool {
        self.filter.is_none()
    }
}

/// What is random is the same again with the same `VEER_SEED`; without one, it is another each time.
pub fn seed() -> Result<u64> {
    match std::env::var("VEER_SEED") {
        Ok(seed) => seed.parse().context("VEER_SEED is not a number"),
        Err(_not_set) => Ok(fastrand::u64(..)),
    }
}

/// Whether it may take long (`VEER_LONG`).
pub fn is_long() -> bool {
    std::env::var_os("VEER_LONG").is_some()
}

/// One line on stdout. Whoever closes it early does not want the rest.
pub fn say(line: &str) {
    drop(writeln!(io::stdout(), "{line}"));
}

/// The part of a name that was given, which is no flag.
fn filter(arguments: Vec<String>) -> Option<String> {
    arguments.into_iter().find(|argument| !argument.starts_with('-'))
}

/// As the usual harness says it: `cargo xtask` adds it up.
fn last_line(outcome: Outcome, seconds: f64) -> String {
    let Outcome { passed, failed, filtered_out, .. } = outcome;
    let verdict = if outcome.is_well() { "ok" } else { "FAILED" };
    format!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {filtered_out} filtered \
         out; finished in {seconds:.2}s\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Outcome = Outcome { passed: 3, failed: 0, filtered_out: 1, is_complete: true };

    #[test]
    fn the_last_line_is_that_of_the_usual_harness() {
        let line = "\ntest result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.50s\n";
        assert_eq!(last_line(WELL, 0.5), line);
        for outcome in [Outcome { failed: 1, ..WELL }, Outcome { is_complete: false, ..WELL }] {
            assert!(last_line(outcome, 0.5).contains("FAILED"), "{outcome:?}");
        }
    }

    #[test]
    fn a_part_of_a_name_or_a_whole_one_selects_and_flags_do_not() {
        let chosen = |arguments: &[&str]| {
            let filter = filter(arguments.iter().map(ToString::to_string).collect());
            let harness = Harness { suite: "faults", filter };
            harness.choose(vec!["killed", "killed twice", "full"], |name| name)
        };
        let all = ["killed", "killed twice", "full"];
        assert_eq!(
            (chosen(&[]), chosen(&["--nocapture"]), chosen(&["fault"])),
            (all.into(), all.into(), all.into())
        );
        assert_eq!(chosen(&["-q", "kill"]), ["killed", "killed twice"]);
        assert_eq!(chosen(&["killed"]), ["killed"]);
        assert!(chosen(&["clocks"]).is_empty());
    }
}
