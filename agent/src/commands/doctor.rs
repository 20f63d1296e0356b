//! `veer doctor`: is this node able, and what would be used. Exit 0 yes, 1 with warnings, 2 no.

use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use super::view;
use super::{Failure, ask, broken_off, enrolments, print_json};
use crate::cli::DoctorFlags;
use crate::config::{DoctorConfig, Place};
use crate::control::Question;
use crate::doctor::facts::{Agent, Answer, Facts};
use crate::doctor::{examine, text};
use crate::model::BackendName;
use crate::platform::bpf::pins::Pins;
use crate::platform::netns::NetnsThread;
use crate::platform::probe::namespaces::EnrolledNetns;
use crate::platform::probe::{self, cgroups, cni, namespaces, places, process};

/// Runs the command; the number is its exit code.
///
/// # Errors
/// Wrong flags, or `/proc` is not there.
pub fn run(flags: &DoctorFlags) -> Result<u8, Failure> {
    let config = DoctorConfig::parse(flags).map_err(|errors| Failure::Usage(errors.to_string()))?;
    let report = examine(&look(&config)?);
    if flags.read.json {
        print_json(&report)?;
    } else {
        io::stdout().lock().write_all(text::render(&report).as_bytes())?;
    }
    Ok(report.exit_code())
}

fn look(config: &DoctorConfig) -> Result<Facts, Failure> {
    let started = Instant::now();
    let process = process::process()?;
    let pins = Pins::new(&config.place.bpffs);
    let (agent, enrolled) = agent(&config.place, &pins);
    let of_agent = agent.answer.as_ref().ok().and_then(|answer| answer.cgroup.as_ref()).map(PathBuf::from);
    let cgroups = cgroups::cgroups(config.cgroup.as_deref(), of_agent.as_deref());
    let target = cgroups.target.as_ref().ok().map(PathBuf::from);
    let thread = NetnsThread::start().map_err(|error| error.to_string());
    // Who only looks may try nothing, and what is refused to him says nothing about the node.
    let (ebpf, nftables) =
        if process.looks_on() { Default::default() } else { probe::kernel(target.as_deref(), &thread) };
    let place = config.places();
    Ok(Facts {
        kernel: process::kernel(),
        process,
        ebpf,
        nftables,
        kernel_settings: process::settings(),
        hooks: target.as_deref().map(|cgroup| probe::hooks(cgroup, &pins)).unwrap_or_default(),
        cgroups,
        places: places::places(&place),
        agent,
        cni: cni::cni(&place),
        redirections: namespaces::redirections(&thread, &enrolled),
        took: started.elapsed(),
    })
}

/// The agent, and the namespaces of the pods that are enrolled.
fn agent(place: &Place, pins: &Pins) -> (Agent, Vec<EnrolledNetns>) {
    let answer = ask(place, &Question::Status).and_then(answer).map_err(|failure| match failure {
        Failure::Usage(text)
        | Failure::Unavailable(text)
        | Failure::Missing(text)
        | Failure::Busy(text)
        | Failure::Failed(text) => text,
        Failure::ClosedOutput => "it hung up".to_owned(),
    });
    let pods = enrolments(place).and_then(|enrolments| view::pods(&enrolments)).ok();
    let netns = |pod: &view::PodView| EnrolledNetns {
        pod: format!("{}/{}", pod.namespace, pod.name),
        inode: pod.netns_inode,
        path: PathBuf::from(&pod.netns),
    };
    let enrolled = pods.iter().flatten().filter(|pod| pod.inbound_attached).map(netns).collect();
    let detached = view::programs(pins).into_iter().filter(|program| !program.attached);
    let agent = Agent {
        answer,
        socket: Path::exists(&place.control_socket()),
        detached: detached.map(|program| program.name.to_owned()).collect(),
        enrolled: pods.map(|pods| pods.len()),
        our_release: env!("CARGO_PKG_VERSION").to_owned(),
    };
    (agent, enrolled)
}

/// What an agent of any release says of itself: fields that it lacks are no reason not to understand the rest.
fn answer(mut answer: impl BufRead) -> Result<Answer, Failure> {
    let mut line = String::new();
    answer.read_line(&mut line).map_err(|error| broken_off(&error))?;
    let status: Value = serde_json::from_str(&line)
        .map_err(|error| Failure::Failed(format!("its answer is no JSON: {error}")))?;
    let text = |name: &str| status.get(name).and_then(Value::as_str).map(str::to_owned);
    Ok(Answer {
        version: text("version").unwrap_or_else(|| "unknown".to_owned()),
        pid: status.get("pid").and_then(Value::as_u64).unwrap_or_default(),
        cgroup: text("cgroup"),
        identity_problem: text("identityProblem"),
        backend: match text("backend").as_deref() {
            Some("nftables") => BackendName::Nftables,
            _ => BackendName::Ebpf,
        },
        backend_reason: text("backendReason"),
    })
}
