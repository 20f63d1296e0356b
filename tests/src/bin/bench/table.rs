//! The report as text of at most 100 columns. Pure.

use std::fmt::Write;

use crate::order::Workload;
use crate::report::{Compared, PathResult, Report, Target, Timing, bits_per_second};
use crate::scene::Direction;
use crate::statistics::Spread;

/// All of it.
pub(crate) fn render(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    head(&mut text, report)
        .and_then(|()| paths(&mut text, &report.paths))
        .and_then(|()| joining(&mut text, report))
        .and_then(|()| targets(&mut text, &report.targets))
        .map_or_else(|_never| String::new(), |()| text)
}

fn head(text: &mut String, report: &Report) -> std::fmt::Result {
    let machine = &report.machine;
    writeln!(
        text,
        "Linux {}, {} CPUs; client on CPU {}, server on CPU {}; load {:.1} before, {:.1} after\n",
        machine.kernel,
        machine.cpus,
        machine.ends.client,
        machine.ends.server,
        machine.load_before,
        machine.load_after
    )
}

fn paths(text: &mut String, results: &[PathResult]) -> std::fmt::Result {
    writeln!(text, "{:20}{:>14}{:>31}{:>31}", "A connection", "direct", "iptables", "veer")?;
    for direction in Direction::ALL {
        writeln!(text, "{}", direction.name())?;
        for result in results.iter().filter(|result| result.direction == direction) {
            let workload = result.workload;
            writeln!(
                text,
                "  {:18}{:>14}{:>31}{:>31}",
                workload.name(),
                value(workload, result.direct_ns.median),
                compared(workload, &result.iptables),
                compared(workload, &result.veer)
            )?;
        }
    }
    let rounds = results.first().map_or(0, |result| result.rounds.len());
    writeln!(
        text,
        "Beside each: ratio to direct, median of {rounds} rounds (quartiles); more throughput is better.\n"
    )
}

fn compared(workload: Workload, case: &Compared) -> String {
    let is_throughput = workload == Workload::Bulk;
    let Spread { p25, median, p75 } = if is_throughput { case.ratio.inverse() } else { case.ratio };
    format!("{}  {median:.2} ({p25:.2}–{p75:.2})", value(workload, case.ns.median))
}

fn value(workload: Workload, ns: f64) -> String {
    if workload == Workload::Bulk {
        format!("{:.1} Gbit/s", bits_per_second(ns) / 1e9)
    } else {
        format!("{:.1} µs", ns / 1e3)
    }
}

fn joining(text: &mut String, report: &Report) -> std::fmt::Result {
    let (joining, agent) = (&report.joining, &report.agent);
    let timing = |timing: &Timing| {
        let Spread { p25, median, p75 } = timing.ms;
        format!("{median:7.2} ms  ({p25:.2}–{p75:.2}, {} times)", timing.samples.len())
    };
    writeln!(text, "A pod joins")?;
    for (what, took) in [
        ("agent: ADD on its socket", &joining.agent_add),
        ("veer-cni ADD, whole process", &joining.plugin_add),
        ("iptables-restore", &joining.iptables_restore),
        ("ip6tables-restore", &joining.ip6tables_restore),
    ] {
        writeln!(text, "  {what:30}{}", timing(took))?;
    }
    writeln!(text, "\nThe agent")?;
    for memory in [agent.few, agent.many] {
        let what = format!("resident with {} pods", memory.pods);
        writeln!(text, "  {what:30}{:7.1} MB", memory.resident_mb())?;
    }
    writeln!(text, "  {:30}{:7.3} % of one CPU\n", "when idle", agent.idle_cpu * 100.0)
}

fn targets(text: &mut String, targets: &[Target]) -> std::fmt::Result {
    writeln!(text, "{:46}{:>12}{:>12}", "Target", "at most", "found")?;
    for Target { what, unit, limit, found, met } in targets {
        let limit = format!("{limit:.2} {unit}");
        let found = format!("{found:.2} {unit}");
        writeln!(text, "  {what:44}{limit:>12}{found:>12}  {}", if *met { "met" } else { "missed" })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn every_line_fits_into_100_columns() {
        let text = render(&report());
        let wide: Vec<_> = text.lines().filter(|line| line.chars().count() > 100).collect();
        assert_eq!(wide, [""; 0]);
    }

    #[test]
    fn a_row_has_values_and_ratios_and_throughput_is_better_when_it_is_more() {
        let text = render(&report());
        let row = |name: &str| text.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
        let words = |name: &str| row(name).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            words("connect + 1 byte"),
            "connect + 1 byte 21.9 µs 28.1 µs 1.28 (1.26–1.31) 21.6 µs 0.99 (0.96–1.01)"
        );
        assert_eq!(
            words("throughput"),
            "throughput 49.4 Gbit/s 38.5 Gbit/s 0.78 (0.76–0.80) 50.1 Gbit/s 1.01 (0.99–1.04)"
        );
        assert_eq!(words("iptables-restore"), "iptables-restore 13.00 ms (12.35–14.30, 3 times)");
        assert!(row("veer-cni ADD as a process").ends_with("missed"));
    }
}
