//! What is told to whoever started the machine: a mark and JSON on a line of its own.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;

/// What such a line begins with; `xtask` knows it, too.
const MARK: &str = "@veer-vm ";

/// One line.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(crate) enum Event<'a> {
    /// The kernel runs, and it is this one.
    Boot { release: String },
    /// What `veer doctor --json` wrote, and its exit code.
    Doctor { exit: Option<i32>, report: &'a Value },
    /// The kernel lacks something that tests of the plan are about.
    Lacks { ability: &'a str, because: String },
    /// A program begins, with so many of its tests; those that do not apply, because what they are about is lacking,
    /// are `without`.
    Start { suite: &'a str, program: &'a str, tests: usize, without: Vec<String> },
    /// A program has ended; without an exit code it was ended, by a signal or because it took too long.
    End { suite: &'a str, program: &'a str, exit: Option<i32>, late: bool, seconds: f64 },
    /// The machine cannot go on.
    Error { text: String },
    /// All has been run.
    Done,
}

/// Writes one. Nobody is there to hear of a failure but who misses the line.
pub(crate) fn tell(event: &Event<'_>) {
    let Ok(json) = serde_json::to_string(event) else { return };
    let mut stdout = io::stdout().lock();
    // Whatever was printed before may have left its line open.
    write!(stdout, "\n{MARK}{json}\n").and_then(|()| stdout.flush()).ok();
}
