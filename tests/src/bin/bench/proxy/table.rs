//! The result as text of at most 100 columns, and what of it was promised. Pure.

use std::fmt::Write;

use super::side::Standing;
use super::traffic::Comparison;
use super::{Report, Stage};
use crate::order::Workload;
use crate::report::{Timing, bits_per_second};
use crate::statistics::Spread;

/// Something promised.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    what: String,
    found: String,
    pub(crate) is_met: bool,
}

/// How much less memory one Envoy takes than as many as there are pods, where those are many.
const LESS_MEMORY: f64 = 20.0;
/// Pods from which on that was promised.
const MANY: u16 = 250;
const ADD_MS: f64 = 50.0;
/// What the rounds of one and the same differ by.
const NOISE: f64 = 1.02;

/// The promises and what became of them.
pub(crate) fn targets(report: &Report) -> Vec<Target> {
    let mut targets = Vec::new();
    for stage in report.stages.iter().filter(|stage| stage.pods >= MANY) {
        let ratio = stage.sidecars.proportional_mb / stage.node.proportional_mb;
        targets.push(Target {
            what: format!("{LESS_MEMORY} times less memory with {} pods", stage.pods),
            found: format!("{ratio:.0} times"),
            is_met: ratio >= LESS_MEMORY,
        });
    }
    let add = report.joining.node_add.ms.median;
    targets.push(Target {
        what: format!("ADD with both listeners in {ADD_MS} ms"),
        found: format!("{add:.1} ms"),
        is_met: add <= ADD_MS,
    });
    for stage in &report.stages {
        let requests = stage.paths.iter().filter(|path| path.workload == Workload::HttpRequest);
        targets.extend(requests.map(|path| Target {
            what: format!("a request takes no longer with {} pods", stage.pods),
            found: format!("x {}", spread(path.ratio, 1.0, 2)),
            is_met: path.ratio.p25 <= 1.0 || path.ratio.median <= NOISE,
        }));
    }
    targets
}

/// All of it.
pub(crate) fn render(report: &Report, targets: &[Target]) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    head(&mut text, report)
        .and_then(|()| standing(&mut text, report))
        .and_then(|()| joining(&mut text, report))
        .and_then(|()| report.stages.iter().try_for_each(|stage| traffic(&mut text, stage)))
        .and_then(|()| promises(&mut text, targets))
        .map_or_else(|_never| String::new(), |()| text)
}

fn head(text: &mut String, report: &Report) -> std::fmt::Result {
    let Report { kernel, cpus, load_before, load_after, rounds, .. } = report;
    writeln!(
        text,
        "Linux {kernel}, {cpus} CPUs; load {load_before:.1} before, {load_after:.1} after; {rounds} rounds"
    )?;
    writeln!(text, "median (quartiles); each Envoy has two workers\n")
}

fn title(text: &mut String, what: &str) -> std::fmt::Result {
    writeln!(text, "{what:36}{:>20}{:>20}{:>22}", "sidecars", "one Envoy", "one to sidecars")
}

fn standing(text: &mut String, report: &Report) -> std::fmt::Result {
    title(text, "Envoys while nobody talks")?;
    for Stage { pods, sidecars, node, .. } in &report.stages {
        let row = |text: &mut String, what: &str, of: fn(&Standing) -> f64, digits: usize| {
            let (own, shared) = (of(sidecars), of(node));
            let ratio = format!("1/{:.0}", own / shared);
            writeln!(text, "  {what:34}{own:>20.digits$}{shared:>20.digits$}{ratio:>22}")
        };
        row(text, &format!("{pods} pods: memory, MB"), |it| it.proportional_mb, 1)?;
        row(text, "  resident, shared pages each time", |it| it.resident_mb, 1)?;
        row(text, "  CPU, % of one", |it| it.idle_cpu * 100.0, 2)?;
    }
    writeln!(text)
}

fn joining(text: &mut String, report: &Report) -> std::fmt::Result {
    title(text, "A pod waits for its proxy, in ms")?;
    let shown = |timing: &Timing| spread(timing.ms, 1.0, 1);
    let joining = &report.joining;
    let (own, shared) = (shown(&joining.sidecar_add), shown(&joining.node_add));
    writeln!(text, "  {:34}{own:>20}{shared:>20}", "ADD")?;
    let own = shown(&joining.sidecar_ready);
    writeln!(text, "  {:34}{own:>20}{:>20}", "from then until it is ready", "ready")?;
    writeln!(text)
}

fn traffic(text: &mut String, stage: &Stage) -> std::fmt::Result {
    title(text, &format!("Pod to pod, {} pods, in µs", stage.pods))?;
    for path in &stage.paths {
        row(text, path)?;
    }
    writeln!(text)
}

fn row(text: &mut String, path: &Comparison) -> std::fmt::Result {
    let ratio = spread(path.ratio, 1.0, 2);
    let name = path.workload.name();
    if path.workload == Workload::Bulk {
        let gigabits = |of: Spread| format!("{:.2}", bits_per_second(of.median) / 1e9);
        let (own, shared) = (gigabits(path.sidecars_ns), gigabits(path.node_ns));
        let ratio = spread(path.ratio.inverse(), 1.0, 2);
        return writeln!(text, "  {:34}{own:>20}{shared:>20}{ratio:>22}", format!("{name}, Gbit/s"));
    }
    let (own, shared) = (spread(path.sidecars_ns, 1e3, 0), spread(path.node_ns, 1e3, 0));
    writeln!(text, "  {name:34}{own:>20}{shared:>20}{ratio:>22}")?;
    let (own, shared) = (path.sidecars_cpu_ns.median / 1e3, path.node_cpu_ns.median / 1e3);
    let ratio = format!("{:.2}", shared / own);
    writeln!(text, "  {:34}{own:>20.0}{shared:>20.0}{ratio:>22}", "  CPU of all Envoys for it")
}

fn spread(of: Spread, unit: f64, digits: usize) -> String {
    let Spread { p25, median, p75 } = of;
    format!("{:.digits$} ({:.digits$}-{:.digits$})", median / unit, p25 / unit, p75 / unit)
}

fn promises(text: &mut String, targets: &[Target]) -> std::fmt::Result {
    for target in targets {
        let verdict = if target.is_met { "met   " } else { "missed" };
        writeln!(text, "{verdict}  {}: {}", target.what, target.found)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Joining;
    use super::*;

    fn around(median: f64) -> Spread {
        Spread { p25: 0.9 * median, median, p75: 1.1 * median }
    }

    fn path(workload: Workload) -> Comparison {
        Comparison {
            workload,
            sidecars_ns: around(12_345_678.0),
            node_ns: around(9_876_543.0),
            ratio: around(0.8),
            sidecars_cpu_ns: around(12_345_678.0),
            node_cpu_ns: around(9_876_543.0),
        }
    }

    /// With 250 pods, whose sidecars take so much.
    fn report(proportional_mb: f64) -> Report {
        let standing = |envoys, proportional_mb| Standing {
            envoys,
            resident_mb: 2.0 * proportional_mb,
            proportional_mb,
            idle_cpu: 0.001,
        };
        let timing = || Timing::of(vec![1234.5, 1334.5]).unwrap();
        Report {
            kernel: "6.18.44".into(),
            cpus: 4,
            load_before: 0.1,
            load_after: 12.3,
            rounds: 21,
            stages: vec![Stage {
                pods: 250,
                sidecars: standing(250, proportional_mb),
                node: standing(1, 100.0),
                paths: [Workload::HttpRequest, Workload::Bulk].map(path).into(),
            }],
            joining: Joining {
                sidecar_add: timing(),
                sidecar_ready: timing(),
                node_add: Timing::of(vec![12.0]).unwrap(),
            },
        }
    }

    #[test]
    fn the_table_fits_in_100_columns() {
        let report = report(12_345.6);
        let text = render(&report, &targets(&report));
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(
            text.contains("1/123") && text.contains("met     20 times less memory with 250 pods: 123 times"),
            "{text}"
        );
    }

    #[test]
    fn a_promise_that_is_not_kept_is_told() {
        let kept =
            |memory| targets(&report(memory)).into_iter().map(|target| target.is_met).collect::<Vec<_>>();
        assert_eq!((kept(2_000.0), kept(1_999.0)), (vec![true, true, true], vec![false, true, true]));
    }
}
