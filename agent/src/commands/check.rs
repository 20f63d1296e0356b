//! `veer check`: in a pod, without privileges: proves the redirection end to end. Exit 126 when it is missing.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Failure, print_json};
use crate::check::{Family, Outcome, Trial, families};
use crate::cli::CheckFlags;
use crate::model::annotation::go_bool;
use crate::pause::pause;
use crate::platform::redirection;

/// istio-validation dials once a second.
const ROUND: Duration = Duration::from_secs(1);

/// What was found of one family.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    family: String,
    dialled: SocketAddr,
    listener: u16,
    redirected: Option<bool>,
    problem: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// `Missing` if a connection is not redirected, `Unavailable` if that cannot be told here.
pub fn run(flags: &CheckFlags) -> Result<(), Failure> {
    let timeout = seconds(&flags.timeout)?;
    let proxy_uid = flags.proxy_uid.parse::<u32>().map_err(|_not_a_number| {
        Failure::Usage(format!("--proxy-uid: {:?} is not a uid 0-4294967294", flags.proxy_uid))
    })?;
    let is_proxy = nix::unistd::geteuid().as_raw() == proxy_uid;
    let mut findings = Vec::new();
    for family in asked(flags)? {
        findings.push(find(&Trial::of(family, is_proxy), timeout)?);
    }
    if findings.is_empty() {
        return Err(Failure::Unavailable(
            "this netns has no address but loopback: it is no pod's, or its network is not set up yet"
                .to_owned(),
        ));
    }
    if flags.json {
        print_json(&findings)?;
    } else {
        io::stdout().lock().write_all(render(&findings).as_bytes())?;
    }
    verdict(&findings)
}

fn seconds(value: &str) -> Result<Duration, Failure> {
    let seconds = value.parse::<u64>().ok().filter(|seconds| (1..=300).contains(seconds));
    let wrong = || Failure::Usage(format!("--timeout: {value:?} is not a number of seconds 1-300"));
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

fn asked(flags: &CheckFlags) -> Result<Vec<Family>, Failure> {
    Ok(match flags.family.as_str() {
        "ipv4" => vec![Family::V4],
        "ipv6" => vec![Family::V6],
        "both" => vec![Family::V4, Family::V6],
        "auto" => families(&redirection::addresses()?, go_bool(&flags.dual_stack).unwrap_or(false)),
        other => {
            return Err(Failure::Usage(format!("--family: {other:?} is not auto, ipv4, ipv6 or both")));
        }
    })
}

/// Tries until it is redirected or the time is over: enrolment may come a moment after the pod's network.
fn find(trial: &Trial, timeout: Duration) -> Result<Finding, Failure> {
    let end = Instant::now() + timeout;
    let outcome = loop {
        let left = end.saturating_duration_since(Instant::now());
        let round = Instant::now();
        let outcome = trial.judge(&redirection::observe(trial, ROUND.min(left))?);
        let is_over = Instant::now() + ROUND > end;
        if outcome == Outcome::Redirected || is_over {
            break outcome;
        }
        pause(ROUND.saturating_sub(round.elapsed()));
    };
    let (redirected, problem) = match outcome {
        Outcome::Redirected => (Some(true), None),
        Outcome::Missing(problem) => (Some(false), Some(problem)),
        Outcome::Unknown(problem) => (None, Some(problem)),
    };
    Ok(Finding {
        family: trial.family.to_string(),
        dialled: trial.destination,
        listener: trial.port,
        redirected,
        problem,
    })
}

fn render(findings: &[Finding]) -> String {
    let line = |finding: &Finding| match finding.redirected {
        Some(true) => format!(
            "{}  redirected: {} arrived at port {} with its original destination\n",
            finding.family, finding.dialled, finding.listener
        ),
        Some(false) => format!("{}  NOT redirected\n", finding.family),
        None => format!("{}  cannot be told here\n", finding.family),
    };
    findings.iter().map(line).collect()
}

fn verdict(findings: &[Finding]) -> Result<(), Failure> {
    let problems = |redirected: Option<bool>| {
        let of = findings.iter().filter(move |finding| finding.redirected == redirected);
        of.filter_map(|finding| Some(format!("{}: {}", finding.family, finding.problem.as_ref()?)))
            .collect::<Vec<_>>()
            .join("\n")
    };
    let (missing, unknown) = (problems(Some(false)), problems(None));
    if !missing.is_empty() {
        Err(Failure::Missing(missing))
    } else if !unknown.is_empty() {
        Err(Failure::Unavailable(unknown))
    } else {
        Ok(())
    }
}
