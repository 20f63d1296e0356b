//! The report as an SVG: bars with whiskers, readable on light and on dark. Pure.

use std::fmt::{self, Write};

use crate::report::{Joining, PathResult, Report};
use crate::statistics::Spread;

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 660.0;
/// Where the bars of both parts begin and end, from left to right.
const LEFT: f64 = 60.0;
const RIGHT: f64 = 980.0;
/// Upper and lower edge of the first part's bars.
const TOP: f64 = 90.0;
const BOTTOM: f64 = 350.0;
/// Where the second part begins.
const SECOND: f64 = 450.0;
const ROW: f64 = 44.0;
/// Workloads in both directions.
const GROUPS: f64 = 8.0;
const BAR: f64 = 34.0;

/// The paper follows the reader's scheme, and is drawn: a viewer that knows no schemes shows dark on white,
/// whatever is behind it.
const STYLE: &str = "<style>
.paper { fill: #ffffff }
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-size: 17px; font-weight: 600 }
.label { font-size: 12px }
.faint { fill: #57606a }
.grid { stroke: #8c959f; stroke-opacity: .35 }
.one { stroke: #57606a; stroke-dasharray: 5 4 }
.whisker { stroke: #24292f; stroke-width: 1.5 }
.iptables { fill: #d4781f }
.veer { fill: #2f81d7 }
@media (prefers-color-scheme: dark) {
.paper { fill: #0d1117 }
text { fill: #e6edf3 }
.faint { fill: #9da7b3 }
.one { stroke: #9da7b3 }
.whisker { stroke: #e6edf3 }
}
</style>
";

/// All of it.
pub(crate) fn draw(report: &Report) -> String {
    let mut svg = String::new();
    // Writing to a string cannot fail.
    frame(&mut svg, report).map_or_else(|_never| String::new(), |()| svg)
}

fn frame(svg: &mut String, report: &Report) -> fmt::Result {
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"veer and iptables against direct connections\">"
    )?;
    svg.write_str(STYLE)?;
    bar(svg, "paper", (0.0, 0.0), (WIDTH, HEIGHT))?;
    text(
        svg,
        (LEFT, 30.0),
        "class=\"title\"",
        "Time for the same work, direct connection = 1 (less is better)",
    )?;
    legend(svg)?;
    connections(svg, &report.paths)?;
    let title = "Time until a pod's traffic is redirected, in milliseconds (less is better)";
    text(svg, (LEFT, SECOND - 24.0), "class=\"title\"", title)?;
    pods(svg, &report.joining)?;
    let machine = &report.machine;
    let rounds = report.paths.first().map_or(0, |path| path.rounds.len());
    let note = format!(
        "Medians with quartiles; {rounds} rounds; Linux {}, {} CPUs, load {:.1}",
        machine.kernel, machine.cpus, machine.load_before
    );
    text(svg, (LEFT, HEIGHT - 14.0), "class=\"faint\"", &note)?;
    svg.write_str("</svg>\n")
}

fn legend(svg: &mut String) -> fmt::Result {
    for (x, name) in [(LEFT, "iptables"), (LEFT + 100.0, "veer")] {
        bar(svg, name, (x, 46.0), (14.0, 14.0))?;
        text(svg, (x + 20.0, 58.0), "", name)?;
    }
    Ok(())
}

/// One group of two bars for each workload and direction.
fn connections(svg: &mut String, paths: &[PathResult]) -> fmt::Result {
    let highest = paths.iter().flat_map(|path| [path.iptables.ratio.p75, path.veer.ratio.p75]);
    let scale = highest.fold(1.0, f64::max) * 1.1;
    let y = |ratio: f64| BOTTOM - (BOTTOM - TOP) * ratio / scale;
    for step in [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0].into_iter().filter(|step| *step < scale) {
        let class = if step.total_cmp(&1.0).is_eq() { "one" } else { "grid" };
        line(svg, class, (LEFT, y(step)), (RIGHT, y(step)))?;
        text(svg, (LEFT - 8.0, y(step) + 4.0), "class=\"faint\" text-anchor=\"end\"", &format!("{step:.1}"))?;
    }
    let mut left = LEFT;
    let step = (RIGHT - LEFT) / GROUPS;
    for path in paths {
        let middle = left + step / 2.0;
        for (name, x, ratio) in
            [("iptables", middle - BAR - 3.0, path.iptables.ratio), ("veer", middle + 3.0, path.veer.ratio)]
        {
            bar(svg, name, (x, y(ratio.median)), (BAR, BOTTOM - y(ratio.median)))?;
            let centre = x + BAR / 2.0;
            line(svg, "whisker", (centre, y(ratio.p25)), (centre, y(ratio.p75)))?;
            for edge in [ratio.p25, ratio.p75] {
                line(svg, "whisker", (centre - 6.0, y(edge)), (centre + 6.0, y(edge)))?;
            }
            let label = format!("{:.2}", ratio.median);
            text(svg, (centre, y(ratio.p75) - 6.0), "text-anchor=\"middle\"", &label)?;
        }
        text(svg, (middle, BOTTOM + 20.0), "class=\"label\" text-anchor=\"middle\"", path.workload.name())?;
        text(svg, (middle, BOTTOM + 38.0), "class=\"faint\" text-anchor=\"middle\"", path.direction.name())?;
        left += step;
    }
    Ok(())
}

/// One bar, lying, for each way to redirect a pod.
fn pods(svg: &mut String, joining: &Joining) -> fmt::Result {
    let rows: [(&str, &str, Spread); 4] = [
        ("veer", "agent alone", joining.agent_add.ms),
        ("veer", "veer-cni ADD", joining.plugin_add.ms),
        ("iptables", "iptables-restore", joining.iptables_restore.ms),
        ("iptables", "ip6tables-restore", joining.ip6tables_restore.ms),
    ];
    let (start, end) = (LEFT + 130.0, RIGHT - 70.0);
    let longest = rows.iter().map(|(_, _, ms)| ms.p75).fold(f64::MIN_POSITIVE, f64::max);
    let x = |ms: f64| start + (end - start) * ms / longest;
    let mut top = SECOND;
    for (name, what, ms) in rows {
        let middle = top + 14.0;
        text(svg, (start - 10.0, middle + 5.0), "text-anchor=\"end\"", what)?;
        bar(svg, name, (start, top), (x(ms.median) - start, 28.0))?;
        line(svg, "whisker", (x(ms.p25), middle), (x(ms.p75), middle))?;
        for edge in [ms.p25, ms.p75] {
            line(svg, "whisker", (x(edge), middle - 6.0), (x(edge), middle + 6.0))?;
        }
        text(svg, (x(ms.p75) + 10.0, middle + 5.0), "", &format!("{:.1} ms", ms.median))?;
        top += ROW;
    }
    Ok(())
}

fn bar(svg: &mut String, class: &str, (x, y): (f64, f64), (width, height): (f64, f64)) -> fmt::Result {
    writeln!(
        svg,
        "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"2\"/>"
    )
}

fn line(svg: &mut String, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) -> fmt::Result {
    writeln!(svg, "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>")
}

/// `content` is ours or the kernel's release: nothing that XML would take for a mark.
fn text(svg: &mut String, (x, y): (f64, f64), attributes: &str, content: &str) -> fmt::Result {
    writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{content}</text>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    /// The numbers of an attribute.
    fn numbers<'a>(svg: &'a str, name: &'a str) -> impl Iterator<Item = f64> + 'a {
        let start = format!(" {name}=\"");
        svg.match_indices(&start.clone())
            .map(|(at, found)| svg[at + found.len()..].split('"').next().unwrap().parse().unwrap())
            .collect::<Vec<_>>()
            .into_iter()
    }

    #[test]
    fn there_is_a_bar_for_each_number_and_a_whisker_on_each_bar() {
        let svg = draw(&report());
        let bars = 2 * 8 + 4;
        let paper_and_legend = 3;
        assert_eq!(svg.matches("<rect ").count(), bars + paper_and_legend);
        assert_eq!(svg.matches("class=\"whisker\"").count(), 3 * bars);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn everything_is_within_the_picture_and_nothing_is_upside_down() {
        let svg = draw(&report());
        for name in ["x", "x1", "x2"] {
            assert!(numbers(&svg, name).all(|x| (0.0..=WIDTH).contains(&x)), "{name}");
        }
        for name in ["y", "y1", "y2"] {
            assert!(numbers(&svg, name).all(|y| (0.0..=HEIGHT).contains(&y)), "{name}");
        }
        for name in ["width", "height"] {
            assert!(numbers(&svg, name).all(|size| size > 0.0), "{name}");
        }
    }

    #[test]
    fn a_slower_case_has_a_higher_bar() {
        let svg = draw(&report());
        let heights: Vec<f64> = numbers(&svg, "height").skip(3).take(16).collect();
        for pair in heights.chunks(2) {
            assert!(pair[0] > pair[1], "iptables {} veer {}", pair[0], pair[1]);
        }
    }
}
