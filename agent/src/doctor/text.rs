//! A report for people, in 100 columns.

use super::{Area, Finding, Level, Report, number};
use crate::columns::{WIDTH, hang};
use crate::model::BackendName;

/// The report, ending with a line break.
pub fn render(report: &Report) -> String {
    let mut lines = vec![format!(
        "veer {} on Linux {}, as uid {}; tried in {} ms",
        report.version, report.kernel, report.uid, report.took_ms
    )];
    let width = report.findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut area = None;
    for finding in &report.findings {
        if area != Some(finding.area) {
            lines.push(String::new());
            lines.push(heading(finding.area).to_owned());
            area = Some(finding.area);
        }
        render_finding(&mut lines, finding, width);
    }
    lines.push(String::new());
    hang(&mut lines, "", &verdict(report));
    lines.push(String::new());
    lines.join("\n")
}

fn render_finding(lines: &mut Vec<String>, finding: &Finding, width: usize) {
    let label = format!("  {:<7}  {:<width$}  ", word(finding.level), finding.name);
    hang(lines, &label, &printable(&finding.says));
    let indent = " ".repeat(label.chars().count());
    if let Some(advice) = &finding.advice {
        hang(lines, &format!("{indent}do: "), &printable(advice));
    }
    for words in &finding.words {
        let line = format!("{indent}| {}", printable(words));
        lines.push(line.chars().take(WIDTH).collect::<String>().trim_end().to_owned());
    }
}

/// Names of programs, files and processes are anybody's: none of them moves the reader's cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

const fn word(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Warning => "warning",
        Level::Error => "ERROR",
    }
}

const fn heading(area: Area) -> &'static str {
    match area {
        Area::Privileges => "What this process may do",
        Area::Kernel => "What the kernel can",
        Area::Cgroup => "Where the programs are attached",
        Area::Agent => "Directories and the agent",
        Area::Cni => "The runtime's network configuration",
        Area::Redirection => "What else redirects connections",
    }
}

fn verdict(report: &Report) -> String {
    let (errors, warnings) = (report.count(Level::Error), report.count(Level::Warning));
    let uses = match report.backend {
        Some(BackendName::Ebpf) => "eBPF would redirect",
        Some(BackendName::Nftables) => "only nftables could redirect",
        None if report.verdict == Level::Warning => "what would redirect cannot be told",
        None => "nothing could redirect",
    };
    let counted = |count, one, many| (count > 0).then(|| number(count, one, many));
    let counts: Vec<String> = [counted(errors, "error", "errors"), counted(warnings, "warning", "warnings")]
        .into_iter()
        .flatten()
        .collect();
    let with = if counts.is_empty() { String::new() } else { format!(", with {}", counts.join(" and ")) };
    match report.verdict {
        Level::Ok => format!("This node is able: {uses}."),
        Level::Warning => format!("This node is able as far as can be told: {uses}{with}."),
        Level::Error => format!("This node is NOT able: {uses}{with}."),
    }
}
