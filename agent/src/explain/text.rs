//! A report for people, in 100 columns.

use super::report::{Asked, Protocol, Report};
use crate::columns::hang;

/// Columns of what stands before each line's text.
const LABEL: usize = 10;

/// The report, ending with a line break.
pub fn render(report: &Report) -> String {
    let mut lines = vec![heading(report)];
    let mut say = |label: &str, text: &str| hang(&mut lines, &format!("{label:<LABEL$}"), text);
    say("verdict", &verdict(report));
    say("reason", &format!("{}: {}", report.reason, report.sentence));
    if let Some(compared) = &report.compared {
        let rule = report.rule.filter(|rule| *rule != report.reason);
        let by = rule.map_or_else(String::new, |rule| format!(" (rule {rule})"));
        say("matched", &format!("{compared}{by}"));
    }
    for because in &report.because {
        say("because", &because.text);
    }
    for note in &report.notes {
        say("note", note);
    }
    if !report.before.is_empty() {
        lines.push("looked at before, none of which matched:".to_owned());
        let width = report.before.iter().map(|before| before.rule.len()).max().unwrap_or(0);
        for (index, before) in report.before.iter().enumerate() {
            let label = format!("{:>3}  {:<width$}  ", index + 1, before.rule);
            hang(&mut lines, &label, &before.compared);
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

fn heading(report: &Report) -> String {
    let who = report.connection.identity().map_or_else(String::new, |(uid, gid, impostor)| {
        format!(" as {uid}:{gid}{}", if impostor { " of another container" } else { "" })
    });
    let udp = if report.protocol == Protocol::Udp { " by UDP" } else { "" };
    match &report.connection {
        Asked::Outbound { source, destination, .. } => {
            let from = source.map_or_else(String::new, |source| format!(" from {source}"));
            format!("{} -> {destination}{udp}{who}{from}", report.pod)
        }
        Asked::Inbound { source, destination } => format!("{source} -> {} at {destination}{udp}", report.pod),
    }
}

fn verdict(report: &Report) -> String {
    let port = report.port.unwrap_or_default();
    match report.action {
        "to-outbound" => format!("to-outbound: to the proxy's outbound port {port}"),
        "to-inbound" => format!("to-inbound: to the proxy's inbound port {port}"),
        "to-dns" => format!("to-dns: to the proxy's DNS port {port}"),
        "drop" => "drop: refused".to_owned(),
        other => format!("{other}: where it was dialled"),
    }
}
