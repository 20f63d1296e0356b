//! The bursts as text of at most 100 columns. Pure.

use std::fmt::Write;

use super::{Parts, Report, Told};
use crate::statistics::Spread;

/// All of it.
pub(crate) fn render(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    head(&mut text, report)
        .and_then(|()| steps(&mut text, report))
        .and_then(|()| running(&mut text, report))
        .and_then(|()| ratios(&mut text, report))
        .map_or_else(|_never| String::new(), |()| text)
}

fn head(text: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(
        text,
        "Linux {}, {} CPUs; load {:.1} before, {:.1} after\n{} pods at once, {} rounds; median of the rounds (quartiles)\n",
        report.kernel,
        report.cpus,
        report.load_before,
        report.load_after,
        report.pods,
        report.rounds.len()
    )
}

fn line(text: &mut String, name: &str, parts: Option<Parts<Spread>>, digits: usize) -> std::fmt::Result {
    let shown = |spread: Spread| {
        let Spread { p25, median, p75 } = spread;
        format!("{median:.digits$} ({p25:.digits$}-{p75:.digits$})")
    };
    let (p50, p99) =
        parts.map_or_else(|| ("-".to_owned(), "-".to_owned()), |parts| (shown(parts.p50), shown(parts.p99)));
    writeln!(text, "  {name:34}{p50:>30}{p99:>30}")
}

fn title(text: &mut String, what: &str) -> std::fmt::Result {
    writeln!(text, "{what:36}{:>30}{:>30}", "p50", "p99")
}

fn steps(text: &mut String, report: &Report) -> std::fmt::Result {
    title(text, "The plugin's step, in ms")?;
    for told in &report.told {
        line(text, told.variant.name(), told.step_ms, 1)?;
    }
    writeln!(text, "A whole process, from its start to its end, while the other pods start.\n")
}

fn running(text: &mut String, report: &Report) -> std::fmt::Result {
    title(text, "From creation to Running, in ms")?;
    for told in &report.told {
        line(text, told.variant.name(), Some(told.running_ms), 0)?;
    }
    writeln!(text, "To a tenth of a second. A plugin's time has a recorder's process in it.\n")
}

fn ratios(text: &mut String, report: &Report) -> std::fmt::Result {
    title(text, "Ratios of a round, to Running")?;
    let of = |of: fn(&Told) -> Option<Parts<Spread>>| {
        report.told.iter().filter_map(move |told| Some((told.variant.name(), of(told)?)))
    };
    for (name, parts) in of(|told| told.running_to_none) {
        line(text, &format!("{name} to no plugin"), Some(parts), 3)?;
    }
    let rest = of(|told| told.veer_to_this).filter(|(name, _)| *name != "no plugin");
    for (name, parts) in rest {
        line(text, &format!("veer to {name}"), Some(parts), 3)?;
    }
    Ok(())
}
