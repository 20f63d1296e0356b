//! The directories that the agent needs, and the agent that runs.

use super::facts::{Agent, Answer, Facts, PinsProblem, Places, Problem};
use super::{AS_ROOT, Area, Finding, number};
use crate::model::BackendName;

const AREA: Area = Area::Agent;

/// Directories and agent.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let looks_on = facts.process.looks_on();
    let mut findings = vec![bpffs(&facts.places, looks_on), run_dir(&facts.places, looks_on)];
    findings.extend(versions(&facts.places));
    findings.extend(agent(&facts.agent, &facts.places, looks_on));
    findings
}

fn bpffs(places: &Places, looks_on: bool) -> Finding {
    const NAME: &str = "bpffs";
    let pins = &places.pins;
    let elsewhere = places.bpffs_mounts.first();
    match &places.pins_usable {
        Ok(()) => Finding::ok(AREA, NAME, format!("programs, links and maps can be pinned in {pins}")),
        Err(PinsProblem::Unusable(problem)) if looks_on && problem.denied => {
            Finding::untold(AREA, NAME, &format!("whether {pins} can be written to"))
        }
        Err(PinsProblem::Unusable(Problem { words, .. })) => Finding::error(
            AREA,
            NAME,
            format!("{pins} is on a bpffs, and cannot be written to: {words}"),
            "mount it for the agent with its writes: a hostPath of /sys/fs/bpf, without readOnly",
        ),
        Err(PinsProblem::NotBpffs) => {
            let advice = elsewhere.map_or_else(
                || "mount -t bpf bpf /sys/fs/bpf, on the node and into the agent's container".to_owned(),
                |mount| format!("one is mounted at {mount}: --bpffs {mount}/veer"),
            );
            Finding::error(
                AREA,
                NAME,
                format!("{pins} is not on a bpffs: nothing that is attached would outlive the agent"),
                advice,
            )
        }
    }
}

fn run_dir(places: &Places, looks_on: bool) -> Finding {
    const NAME: &str = "run-dir";
    let directory = &places.run_dir;
    match &places.run_dir_usable {
        Ok(()) => Finding::ok(AREA, NAME, format!("sockets can be made in {directory}")),
        Err(problem) if looks_on && problem.denied => {
            Finding::untold(AREA, NAME, &format!("whether sockets can be made in {directory}"))
        }
        Err(Problem { words, .. }) => Finding::error(
            AREA,
            NAME,
            format!("no sockets can be made in {directory}: {words}"),
            "name a directory of the node's own with --run-dir, and mount it into the agent's container",
        ),
    }
}

fn versions(places: &Places) -> Option<Finding> {
    let others: Vec<&str> =
        places.versions.iter().map(String::as_str).filter(|found| *found != places.our_version).collect();
    if others.is_empty() {
        return None;
    }
    Some(Finding::warning(
        AREA,
        "abi",
        format!(
            "{} holds pins of another ABI ({}; this binary has {}): pods that were enrolled by that release \
             stay with it, and are not shown by this one",
            places.pins,
            others.join(", "),
            places.our_version
        ),
        format!(
            "finish the upgrade; once no pod of it is left, the agent removes it, or you do: rm -r {}",
            others.iter().map(|other| format!("{}/{other}", places.pins)).collect::<Vec<_>>().join(" ")
        ),
    ))
}

fn agent(agent: &Agent, places: &Places, looks_on: bool) -> Vec<Finding> {
    const NAME: &str = "agent";
    let enrolled = agent.enrolled.unwrap_or(0);
    match &agent.answer {
        Ok(answer) => running(agent, places, answer, enrolled),
        Err(_) if looks_on => vec![Finding::warning(
            AREA,
            NAME,
            "cannot tell whether an agent runs: its socket answers to root alone",
            AS_ROOT,
        )],
        Err(words) if agent.socket => vec![Finding::error(
            AREA,
            NAME,
            format!("the agent's socket is there, and nobody answers on it: {words}"),
            "look at the agent's log; restart it: enrolled pods do not notice",
        )],
        Err(_) if enrolled > 0 => vec![Finding::warning(
            AREA,
            NAME,
            format!(
                "no agent runs, and {} enrolled: they stay redirected, and new pods cannot start",
                number(enrolled, "pod is", "pods are")
            ),
            format!("start `veer agent` with --run-dir {} and --bpffs {}", places.run_dir, places.pins),
        )],
        Err(_) => vec![Finding::ok(AREA, NAME, "none runs here; this is what one would find")],
    }
}

fn running(agent: &Agent, places: &Places, answer: &Answer, enrolled: usize) -> Vec<Finding> {
    const NAME: &str = "agent";
    let Answer { version, pid, .. } = answer;
    let mut findings = Vec::new();
    let says = format!(
        "running (pid {pid}, release {version}), {} enrolled; what is said here was tried beside it, and has \
         not touched it",
        number(enrolled, "pod", "pods")
    );
    findings.push(if *version == agent.our_release {
        Finding::ok(AREA, NAME, says)
    } else {
        Finding::warning(
            AREA,
            NAME,
            format!("{says}; this binary is release {}", agent.our_release),
            "ask the running agent's own binary, or finish the upgrade",
        )
    });
    if answer.backend == BackendName::Nftables {
        let reason = answer.backend_reason.as_deref().unwrap_or("it does not say why");
        let says = format!("it redirects new pods by nftables, in their own namespaces: {reason}");
        findings.push(Finding::ok(AREA, "datapath", says));
    } else if !places.versions.contains(&places.our_version) {
        findings.push(Finding::warning(
            AREA,
            "datapath",
            format!(
                "it has pinned nothing of ABI {} in {}: it is of another release, or has another directory",
                places.our_version, places.pins
            ),
            "name its directory with --bpffs, or ask its own binary",
        ));
    } else if !agent.detached.is_empty() {
        findings.push(Finding::error(
            AREA,
            "datapath",
            format!("not attached: {}", agent.detached.join(", ")),
            "restart the agent, which attaches them",
        ));
    }
    findings
}
