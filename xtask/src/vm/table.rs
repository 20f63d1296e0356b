//! The table at the end: a line for each kernel, a column for each suite. Pure.

use super::report::{self, Program, Report};
use crate::test::Count;

/// What became of one kernel.
pub(super) struct Row {
    /// What the kernel was asked for by, and its release once it has told it.
    pub(super) kernel: String,
    pub(super) report: Report,
    /// What was found wrong; nothing if all is well.
    pub(super) complaints: Vec<String>,
}

/// The table, a line each.
pub(super) fn render(rows: &[Row], suites: &[&str]) -> Vec<String> {
    let headings = ["kernel", "would use"].into_iter().chain(suites.iter().copied()).chain(["result"]);
    let mut lines = vec![headings.map(str::to_owned).collect::<Vec<_>>()];
    for row in rows {
        let backend = row.report.doctor.as_ref().map_or("unknown", |doctor| doctor.backend.as_str());
        let mut line = vec![row.kernel.clone(), backend.to_owned()];
        line.extend(suites.iter().map(|suite| cell(&row.report, suite)));
        line.push(if row.complaints.is_empty() { "ok" } else { "FAILED" }.to_owned());
        lines.push(line);
    }
    aligned(&lines)
}

/// What all came to together.
pub(super) fn sum(rows: &[Row]) -> Count {
    let programs = rows.iter().flat_map(|row| &row.report.programs);
    programs.fold(Count::default(), |sum, program| sum.plus(program.count))
}

/// What a suite came to on one kernel.
fn cell(report: &Report, suite: &str) -> String {
    let programs: Vec<&Program> = report.programs.iter().filter(|program| program.suite == suite).collect();
    if programs.is_empty() {
        return "not run".to_owned();
    }
    let count = programs.iter().fold(Count::default(), |sum, program| sum.plus(program.count));
    let broken = programs.iter().filter(|program| !program.is_well() && program.count.failed == 0).count();
    let failed = if count.failed > 0 { format!(", {} failed", count.failed) } else { String::new() };
    let broken = if broken > 0 { format!(", {broken} broken off") } else { String::new() };
    let ended = programs.iter().filter_map(|program| program.end);
    let seconds = ended.fold(0.0, |sum, end| sum + end.seconds);
    let without: usize = programs.iter().map(|program| program.without.len()).sum();
    let without = report::not_applying(without);
    format!("{} passed{failed}{without}{broken} in {seconds:.0} s", count.passed)
}

/// Below the table: each test that does not apply to a kernel, and what that lacks.
pub(super) fn not_applying(row: &Row) -> Vec<String> {
    let tests: Vec<_> = row
        .report
        .programs
        .iter()
        .flat_map(|program| program.without.iter().map(|test| format!("  {} {test}", program.name)))
        .collect();
    if tests.is_empty() {
        return tests;
    }
    let lacks = row.report.lacks.iter().map(|lack| format!("{} ({})", lack.ability, lack.because));
    let lacks = lacks.collect::<Vec<_>>().join(", ");
    std::iter::once(format!("{} does not have {lacks}, so these do not apply:", row.kernel))
        .chain(tests)
        .collect()
}

fn aligned(lines: &[Vec<String>]) -> Vec<String> {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |cells: &Vec<String>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[&str]) -> Report {
        let mut report = Report::default();
        for line in lines {
            report.take(line);
        }
        report
    }

    #[test]
    fn the_table_has_a_line_for_each_kernel_and_a_column_for_each_suite() {
        let end = |suite: &str, program: &str| {
            format!(
                r#"@veer-vm {{"event":"end","suite":"{suite}","program":"{program}","exit":0,"late":false,"seconds":2.6}}"#
            )
        };
        let start = |suite: &str, program: &str| {
            format!(
                r#"@veer-vm {{"event":"start","suite":"{suite}","program":"{program}","tests":9,"without":[]}}"#
            )
        };
        let well = report(&[
            r#"@veer-vm {"event":"doctor","exit":0,"report":{"backend":"ebpf"}}"#,
            &start("lean", "kit"),
            "test result: ok. 9 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.10s",
            &end("lean", "kit"),
            &start("lean", "table"),
            "test result: FAILED. 20 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.10s",
            &end("lean", "table"),
            &start("full", "envoy"),
        ]);
        let rows = [
            Row { kernel: "5.10 (5.10.0-46)".to_owned(), report: well, complaints: vec!["x".to_owned()] },
            Row { kernel: "6.1 (not booted)".to_owned(), report: Report::default(), complaints: Vec::new() },
        ];
        assert_eq!(
            render(&rows, &["lean", "full"]),
            [
                "kernel            would use  lean                        full                           result",
                "5.10 (5.10.0-46)  ebpf       29 passed, 2 failed in 5 s  0 passed, 1 broken off in 0 s  FAILED",
                "6.1 (not booted)  unknown    not run                     not run                        ok",
            ]
        );
        assert_eq!(sum(&rows), Count { passed: 29, failed: 2, ignored: 0 });
        assert!(not_applying(&rows[0]).is_empty());
    }

    #[test]
    fn what_does_not_apply_is_counted_in_the_table_and_named_below_it() {
        let told = report(&[
            r#"@veer-vm {"event":"lacks","ability":"mptcp","because":"Protocol not supported"}"#,
            r#"@veer-vm {"event":"start","suite":"lean","program":"kit","tests":9,"without":["one::two"]}"#,
            "test result: ok. 9 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; finished in 3.10s",
            r#"@veer-vm {"event":"end","suite":"lean","program":"kit","exit":0,"late":false,"seconds":2.6}"#,
        ]);
        assert_eq!(cell(&told, "lean"), "9 passed, 1 does not apply in 3 s");
        let row = Row { kernel: "5.10 (5.10.0-46)".to_owned(), report: told, complaints: Vec::new() };
        assert_eq!(
            not_applying(&row),
            [
                "5.10 (5.10.0-46) does not have mptcp (Protocol not supported), so these do not apply:",
                "  kit one::two",
            ]
        );
    }
}
