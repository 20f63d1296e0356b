//! How the suite is told: a line for each fault as it ends, and a table. Pure.

use std::time::Duration;

use anyhow::Result;

use super::census::Leak;
use super::load::Since;
use super::stage::Told;

/// Losses of a fault that are told one by one.
const SHOWN: usize = 5;

/// What came of one fault.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) told: Result<Told>,
    pub(crate) since: Since,
    /// What is wrong with pods.
    pub(crate) wrong: Vec<String>,
    pub(crate) leak: Leak,
    /// Both counts, where they differ.
    pub(crate) differs: String,
    pub(crate) took: Duration,
}

impl Row {
    /// Whether the fault went by without a trace.
    pub(crate) fn is_well(&self) -> bool {
        self.told.is_ok() && self.since.lost.is_empty() && self.wrong.is_empty() && self.leak.is_none()
    }

    fn times(&self) -> String {
        self.told.as_ref().map_or_else(|_| "-".to_owned(), |told| told.times.to_string())
    }

    fn seen(&self) -> String {
        self.told.as_ref().map_or_else(|error| shortened(&format!("{error:#}")), |told| told.seen.clone())
    }
}

/// Lines of an error that are told.
const LINES: usize = 12;

/// Without the middle of a text that has an agent's whole log in it: the end says what happened.
fn shortened(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let (first, rest) = lines.split_first().unwrap_or((&"", &[]));
    let skipped = rest.len().saturating_sub(LINES);
    let note = (skipped > 0).then(|| format!("  … {skipped} lines …"));
    let rest = rest.iter().skip(skipped).map(ToString::to_string);
    std::iter::once((*first).to_owned()).chain(note).chain(rest).collect::<Vec<_>>().join("\n")
}

/// One line, when a fault is over.
pub(crate) fn progress(row: &Row) -> String {
    format!(
        "{:24} {:>5} x  {:5.1} s  {:6} requests, {} lost  {}",
        row.name,
        row.times(),
        row.took.as_secs_f64(),
        row.since.requests,
        row.since.lost.len(),
        if row.is_well() { row.seen() } else { format!("FAILED: {}", row.seen()) },
    )
}

/// The table, and what was lost, wrong or left.
pub(crate) fn render(rows: &[Row]) -> String {
    let mut text = format!(
        "{:24} {:>6} {:>8} {:>5} {:>6} {:>8} {:>6} {:>8} {:>4} {:>8}\n",
        "fault", "times", "requests", "lost", "wrong", "entries", "links", "objects", "fds", "memory"
    );
    for row in rows {
        let Leak { entries, links, objects, fds, memory_kb } = row.leak;
        let line = format!(
            "{:24} {:>6} {:>8} {:>5} {:>6} {entries:>8} {links:>6} {objects:>8} {fds:>4} {memory_kb:>+5} kB{}",
            row.name,
            row.times(),
            row.since.requests,
            row.since.lost.len(),
            row.wrong.len(),
            if row.is_well() { "" } else { "  FAILED" },
        );
        text.push_str(&line);
        text.push('\n');
    }
    rows.iter().filter(|row| !row.is_well()).for_each(|row| text.push_str(&trouble(row)));
    text
}

fn trouble(row: &Row) -> String {
    let differs = (!row.differs.is_empty()).then_some(&row.differs);
    let told = row.since.lost.iter().take(SHOWN).chain(&row.wrong).chain(differs);
    let lines: Vec<String> = told.map(|line| format!("  {line}\n")).collect();
    format!("\n{}: {}\n{}", row.name, row.seen(), lines.concat())
}
