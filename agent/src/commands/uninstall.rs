//! `veer uninstall`: everything of veer off this node. Exit 0 when all is gone, 70 when something is not.

use std::io::{self, BufRead, Write};

use serde_json::Value;

use super::{Failure, ask, place, print_json};
use crate::cli::UninstallFlags;
use crate::config::{Place, proxy_dir};
use crate::control::Question;
use crate::uninstall::{self, Kind, Refusal, Report};

/// Runs the command.
///
/// # Errors
/// If an agent runs, or something could not be removed.
pub fn run(flags: &UninstallFlags) -> Result<(), Failure> {
    let place = place(&flags.place)?;
    let proxy_dir =
        proxy_dir(flags.proxy_dir.as_deref()).map_err(|errors| Failure::Usage(errors.to_string()))?;
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::Failed("only root can take veer off a node".to_owned()));
    }
    let ask_pid = || pid_of_agent(&place);
    let report =
        uninstall::uninstall(&place, proxy_dir.as_deref(), flags.dry_run, ask_pid).map_err(|refusal| {
            let text = refusal.to_string();
            match refusal {
                Refusal::Running { .. } => Failure::Busy(text),
                Refusal::Failed(_) => Failure::Failed(text),
            }
        })?;
    if flags.json {
        print_json(&report)?;
    } else {
        io::stdout().lock().write_all(render(&report, &place).as_bytes())?;
    }
    if report.problems.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed(format!("{}\nrun it again when that is put right", report.problems.join("\nveer: "))))
}

/// The lock says it, too, unless the agent is of another release.
fn pid_of_agent(place: &Place) -> Option<u32> {
    let mut line = String::new();
    ask(place, &Question::Status).ok()?.read_line(&mut line).ok()?;
    let status: Value = serde_json::from_str(&line).ok()?;
    status.get("pid")?.as_u64()?.try_into().ok()
}

fn render(report: &Report, place: &Place) -> String {
    if report.removed.is_empty() && report.left.is_empty() && report.problems.is_empty() {
        let (bpffs, run_dir) = (place.bpffs.display(), place.run_dir.display());
        return format!("nothing of veer is here: neither in {bpffs} nor in {run_dir}\n");
    }
    let done = if report.dry_run { "would remove" } else { "removed" };
    let mut lines = Vec::new();
    for kind in report.removed.chunk_by(|one, other| one.kind == other.kind) {
        let Some(first) = kind.first() else { continue };
        lines.push(format!("{done} {:>4} {}\n", kind.len(), Kind::text(first.kind, kind.len())));
    }
    lines.extend(report.left.iter().map(|left| format!("left {left}\n")));
    lines.concat()
}
