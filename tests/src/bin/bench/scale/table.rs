//! The result as text, and what of it was promised. Pure.

use std::fmt::Write;

use super::Scale;
use super::filling::{Enrolments, Window};
use crate::report::Timing;

/// Something promised.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    what: String,
    found: String,
    pub(crate) is_met: bool,
}

const MEMORY_MB: f64 = 60.0;
const OWN_MS: f64 = 1.0;
const RESTART_MS: f64 = 2000.0;
/// How much more an enrolment may take on the full node than on one with few pods.
const FLAT: f64 = 1.1;

/// The promises and what became of them.
pub(crate) fn targets(scale: &Scale) -> Vec<Target> {
    let memory = scale.full.resident_mb().max(scale.taken_over.resident_mb());
    let own = scale.enrolments.all.own_ms;
    let growth = scale.enrolments.ratio;
    let mut targets = vec![
        target(
            format!("agent's memory at most {MEMORY_MB} MB"),
            format!("{memory:.1} MB"),
            memory <= MEMORY_MB,
        ),
        target(
            format!("agent's own work for an enrolment below {OWN_MS} ms"),
            format!("{own:.2} ms"),
            own < OWN_MS,
        ),
        target(
            "an enrolment on the full node costs what it does on one with few pods".to_owned(),
            format!("x {:.2} ({:.2}-{:.2})", growth.median, growth.p25, growth.p75),
            growth.median <= FLAT,
        ),
        target(
            format!("restart to ready below {RESTART_MS} ms"),
            format!("{:.0} ms", scale.restart.ms.median),
            scale.restart.ms.median < RESTART_MS,
        ),
    ];
    targets.extend(scale.connections.iter().map(|compared| {
        let ratio = compared.ratio;
        // Equal, if the rounds do not agree that it is not.
        let is_met = ratio.p25 <= 1.0 || ratio.median <= 1.02;
        let found = format!("x {:.3} ({:.3}-{:.3})", ratio.median, ratio.p25, ratio.p75);
        target(format!("{} connections cost the same", compared.direction.name()), found, is_met)
    }));
    targets
}

const fn target(what: String, found: String, is_met: bool) -> Target {
    Target { what, found, is_met }
}

/// All of it, in at most 100 columns.
pub(crate) fn render(scale: &Scale, targets: &[Target]) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    enrolment(&mut text, scale)
        .and_then(|()| memory(&mut text, scale))
        .and_then(|()| connections(&mut text, scale))
        .and_then(|()| promises(&mut text, targets))
        .map_or_else(|_never| String::new(), |()| text)
}

fn enrolment(text: &mut String, scale: &Scale) -> std::fmt::Result {
    writeln!(text, "{:31}{:>22}{:>22}{:>22}", "An enrolment, in ms", "few pods", "many, in turns", "all")?;
    let Enrolments { few, full, all, .. } = &scale.enrolments;
    let windows = [few, full, all];
    let mut line = |name, of: fn(&Window) -> String| {
        let [few, full, all] = windows.map(of);
        writeln!(text, "  {name:29}{few:>22}{full:>22}{all:>22}")
    };
    line("request to answer", |window| timing(&window.answered))?;
    line("agent and kernel for it, CPU", |window| timing(&window.ran))?;
    line("of that the agent's own code", |window| format!("{:.2}", window.own_ms))?;
    writeln!(text, "Median (quartiles); own code: mean. The first two came in turns, to two nodes.\n")
}

fn timing(timing: &Timing) -> String {
    let ms = timing.ms;
    format!("{:.2} ({:.2}-{:.2})", ms.median, ms.p25, ms.p75)
}

fn memory(text: &mut String, scale: &Scale) -> std::fmt::Result {
    let pods = f64::from(scale.pods);
    let (empty, full) = (scale.empty, scale.full);
    #[expect(clippy::cast_precision_loss, reason = "kilobytes of one process")]
    let each = (full.anonymous_kb as f64 - empty.anonymous_kb as f64) / pods;
    writeln!(text, "Memory with {} pods", scale.pods)?;
    writeln!(
        text,
        "  agent      {:.1} MB resident ({:.1} MB without a pod, {:.1} MB once it has taken them over); {each:.1} kB a pod",
        full.resident_mb(),
        empty.resident_mb(),
        scale.taken_over.resident_mb()
    )?;
    let (before, held) = (scale.kernel_empty, scale.kernel_full);
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
    let kb = |bytes: u64| bytes as f64 / 1e3;
    writeln!(
        text,
        "  kernel     {:.1} MB: {} programs {:.1} MB, {} maps {:.1} MB, {} links; {:.1} kB a pod, {:.1} MB without any",
        kb(held.bytes()) / 1e3,
        held.programs,
        kb(held.programs_bytes) / 1e3,
        held.maps,
        kb(held.maps_bytes) / 1e3,
        held.links,
        (kb(held.bytes()) - kb(before.bytes())) / pods,
        kb(before.bytes()) / 1e3,
    )?;
    writeln!(text, "  restart    {} ms until it answers\n", timing(&scale.restart))
}

fn connections(text: &mut String, scale: &Scale) -> std::fmt::Result {
    writeln!(text, "{:34}{:>18}{:>18}{:>28}", "A connection, in µs", "1 pod", "many pods", "many to 1")?;
    for compared in &scale.connections {
        let ratio = compared.ratio;
        writeln!(
            text,
            "  {:32}{:>18.1}{:>18.1}{:>28}",
            compared.direction.name(),
            compared.few_ns.median / 1e3,
            compared.many_ns.median / 1e3,
            format!("{:.3} ({:.3}-{:.3})", ratio.median, ratio.p25, ratio.p75)
        )?;
    }
    writeln!(text)
}

fn promises(text: &mut String, targets: &[Target]) -> std::fmt::Result {
    for target in targets {
        let verdict = if target.is_met { "met   " } else { "missed" };
        writeln!(text, "{verdict}  {}: {}", target.what, target.found)?;
    }
    Ok(())
}
