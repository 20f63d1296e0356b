//! `veer monitor`: decisions as they are made.

use std::io::{self, BufRead, Write};

use veer_common::reason::{Action, Reason};

use super::{Failure, ask, broken_off};
use crate::cli::MonitorFlags;
use crate::config::Place;
use crate::control::{Decided, Line, Question};
use crate::explain::line::IMPOSTOR;

/// Runs the command, until the agent or the reader ends it.
///
/// # Errors
/// If a filter is no name, or no agent answers.
pub fn run(flags: &MonitorFlags) -> Result<(), Failure> {
    let place = check(flags)?;
    let answer = ask(&place, &Question::Monitor)?;
    let stream = answer.get_ref().try_clone()?;
    let mut out = io::stdout().lock();
    let mut left = flags.count.unwrap_or(u64::MAX);
    for line in answer.lines() {
        if left == 0 {
            return Ok(());
        }
        let text = line.map_err(|error| broken_off(&error))?;
        let line: Line = serde_json::from_str(&text)
            .map_err(|error| Failure::Failed(format!("the agent's answer: {error}")))?;
        match line {
            Line::Silent { all: true, .. } => {
                return Err(Failure::Unavailable(
                    "the pods of this node are redirected by nftables, which does not report its decisions; \
                     `veer pods NAMESPACE/NAME` has them counted"
                        .to_owned(),
                ));
            }
            Line::Silent { pods, .. } => {
                writeln!(
                    io::stderr(),
                    "{pods} pods are redirected by nftables, which does not report its decisions"
                )?;
            }
            Line::Watching => {
                // From here on silence means that nothing is decided.
                stream.set_read_timeout(None)?;
                writeln!(io::stderr(), "watching; Ctrl-C ends it")?;
            }
            Line::Missed { count } => {
                writeln!(
                    io::stderr(),
                    "missed {count} decisions: they came faster than they could be shown"
                )?;
            }
            Line::Decision(decided) if matches(flags, &decided) => {
                left -= 1;
                if flags.read.json {
                    serde_json::to_writer(&mut out, &decided).map_err(io::Error::from)?;
                    writeln!(out)?;
                } else {
                    writeln!(out, "{}", render(&decided))?;
                }
                out.flush()?;
                if left == 0 {
                    return Ok(());
                }
            }
            Line::Decision(_) => {}
        }
    }
    Err(Failure::Unavailable("the agent has ended".to_owned()))
}

/// Checks the filters and where things are, all of it at once.
fn check(flags: &MonitorFlags) -> Result<Place, Failure> {
    let actions = [Action::Direct, Action::ToOutbound, Action::ToInbound, Action::ToDns, Action::Drop]
        .map(Action::name);
    // Three are verdicts that another hook has counted already, or that nothing counts.
    let told = |reason: &Reason| !matches!(reason, Reason::WithinPod | Reason::NotTcp | Reason::NotDns);
    let reasons: Vec<&str> = Reason::ALL.into_iter().filter(told).map(Reason::name).collect();
    let pod = flags.pod.as_deref().filter(|pod| !pod.contains('/'));
    let filters = [
        pod.map(|pod| format!("--pod: {pod:?} is not NAMESPACE/NAME")),
        wrong("--action", flags.action.as_deref(), &actions),
        wrong("--reason", flags.reason.as_deref(), &reasons),
    ];
    let mut errors: Vec<String> = filters.into_iter().flatten().collect();
    match Place::parse(&flags.read.place) {
        Ok(place) if errors.is_empty() => Ok(place),
        Ok(_) => Err(Failure::Usage(errors.join("\n"))),
        Err(others) => {
            errors.push(others.to_string());
            Err(Failure::Usage(errors.join("\n")))
        }
    }
}

fn wrong(flag: &str, value: Option<&str>, names: &[&str]) -> Option<String> {
    let value = value.filter(|value| !names.contains(value))?;
    Some(format!("{flag}: {value:?} is not one of {}", names.join(", ")))
}

fn matches(flags: &MonitorFlags, decided: &Decided) -> bool {
    let is = |wanted: &Option<String>, value: &str| wanted.as_deref().is_none_or(|wanted| wanted == value);
    is(&flags.pod, &decided.pod) && is(&flags.action, &decided.action) && is(&flags.reason, &decided.reason)
}

/// `12:00:01.123Z shop/cart outbound 1000:1000 10.1.0.2 -> 10.96.0.1:80 to-outbound (all-outbound)`; UDP says so
/// after the direction. Who has the proxy's ids and is not it says `1337:1337/impostor`. `%3` behind
/// the source says that the interface with the index 3 plays a part.
fn render(decided: &Decided) -> String {
    let milliseconds = decided.time_ms % 86_400_000;
    let (hours, minutes) = (milliseconds / 3_600_000, milliseconds / 60_000 % 60);
    let (seconds, rest) = (milliseconds / 1000 % 60, milliseconds % 1000);
    let who = match (decided.uid, decided.gid) {
        (Some(uid), Some(gid)) => format!(" {uid}:{gid}{}", if decided.impostor { IMPOSTOR } else { "" }),
        _ => String::new(),
    };
    let udp = if decided.protocol == "udp" { " udp" } else { "" };
    // Before it is bound, a socket has no address.
    let source = match decided.source.as_str() {
        "0.0.0.0" | "::" => "-",
        source => source,
    };
    let interface = decided.interface.map_or_else(String::new, |index| format!("%{index}"));
    format!(
        "{hours:02}:{minutes:02}:{seconds:02}.{rest:03}Z {} {}{udp}{who} {source}{interface} -> {} {} ({})",
        decided.pod, decided.direction, decided.destination, decided.action, decided.reason
    )
}
