//! What was seen, for people.

use std::time::Duration;

use anyhow::Result;

/// A check that was made.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// What was seen, in a few words, or what went wrong.
    pub(crate) seen: Result<String>,
    pub(crate) took: Duration,
}

/// As soon as it is known.
pub(crate) fn progress(row: &Row) -> String {
    format!("{} {} ({:.1} s)", mark(row), row.name, row.took.as_secs_f64())
}

/// What went wrong, in full.
pub(crate) fn failure(row: &Row) -> String {
    let text = row.seen.as_ref().err().map_or_else(String::new, |error| format!("{error:#}"));
    format!("FAILED: {}\n{text}", row.name)
}

/// All of them.
pub(crate) fn render(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let line = |row: &Row| {
        let seen = row.seen.as_deref().unwrap_or("see above");
        format!("{} {:width$}  {:>6.1} s  {seen}", mark(row), row.name, row.took.as_secs_f64())
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn mark(row: &Row) -> &'static str {
    if row.seen.is_ok() { "ok    " } else { "FAILED" }
}
