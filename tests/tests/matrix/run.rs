//! One policy: the same cells in each place, and the comparison.

use std::io::Write;
use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::istio_init;
use veer_tests::launch::Launch;
use veer_tests::monitor::Monitor;

use crate::cell::Cell;
use crate::judge::{IMPROVEMENTS, Judgement, canonical, explained, judge};
use crate::place::{Outcome, Place};
use crate::policy::Policy;

/// How veer redirects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Backend {
    Ebpf,
}

impl Backend {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
        }
    }
}

/// What the kernel said of a connection, and what is explained.
type Told = (Value, Value);

/// What a policy's cells came to under a backend.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) backend: Backend,
    pub(crate) cells: usize,
    pub(crate) agree: usize,
    /// By index in [`IMPROVEMENTS`].
    pub(crate) better: [usize; IMPROVEMENTS.len()],
    pub(crate) explained: usize,
    pub(crate) differences: Vec<String>,
}

/// Runs all cells of a policy everywhere.
pub(crate) fn policy(policy: &Policy, cells: &[Cell]) -> Result<Vec<Tally>> {
    let context = || format!("policy {}", policy.name);
    let reference = under_istio_init(policy, cells).with_context(context)?;
    let (veer, reasons) = under_ebpf(policy, cells).with_context(context)?;
    Ok(vec![tally(policy, Backend::Ebpf, cells, &reference, &veer, &reasons)])
}

fn under_istio_init(policy: &Policy, cells: &[Cell]) -> Result<Vec<Outcome>> {
    let cgroup = Cgroup::new()?;
    let mut place = Place::new(&cgroup)?;
    let arguments = policy.arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    istio_init::apply_in(place.pod.netns(), &policy.node.environment(), &arguments)?;
    place.listen(policy)?;
    cells.iter().map(|cell| place.open(cell).with_context(|| format!("under istio-init: {cell}"))).collect()
}

/// The outcomes, and for each cell what the kernel said and what is explained.
fn under_ebpf(policy: &Policy, cells: &[Cell]) -> Result<(Vec<Outcome>, Vec<Told>)> {
    let cgroup = Cgroup::new()?;
    let flags = policy.node.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let agent = Agent::start_with(&cgroup, Launch::new(), &flags)?;
    let mut place = Place::new(&cgroup)?;
    agent.enrol_as(&place.pod, &policy.manifest(&place.pod))?;
    place.listen(policy)?;
    let monitor = Monitor::start(&agent, &["--json"])?;
    let mut outcomes = Vec::with_capacity(cells.len());
    for cell in cells {
        outcomes.push(place.open(cell).with_context(|| format!("under eBPF: {cell}"))?);
    }
    let decisions = without_repetitions(monitor.wait_for_decisions(cells.len())?);
    if decisions.len() != cells.len() {
        let to = |decision: &Value| decision.get("destination").and_then(Value::as_str).map(str::to_owned);
        let strays = cells.iter().zip(&decisions).find(|(cell, decision)| {
            to(decision)
                .is_none_or(|to| to.parse::<SocketAddr>().ok().map(canonical) != Some(canonical(cell.to)))
        });
        bail!("{} decisions on {} connections, from here on: {strays:?}", decisions.len(), cells.len());
    }
    let lines: Vec<String> = decisions.iter().map(Value::to_string).collect();
    let reports = explain(&agent, &lines.join("\n"))?;
    Ok((outcomes, decisions.into_iter().zip(reports).collect()))
}

/// Without what is decided again: a SYN that nobody listens for is judged each time that it is sent, and on a busy
/// machine the refusal may be too late for the second.
fn without_repetitions(mut decisions: Vec<Value>) -> Vec<Value> {
    let is_inbound =
        |decision: &Value| decision.get("direction").is_some_and(|direction| direction == "inbound");
    decisions.dedup_by(|later, first| {
        let same = |field: &str| later.get(field) == first.get(field);
        is_inbound(later) && ["direction", "source", "destination", "reason"].into_iter().all(same)
    });
    decisions
}

/// What `veer explain` says of each of the monitor's lines.
fn explain(agent: &Agent, lines: &str) -> Result<Vec<Value>> {
    let mut command = agent.command(&["explain", "--event=-", "--json"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start veer explain")?;
    let mut stdin = child.stdin.take().context("no pipe to veer explain")?;
    let lines = lines.to_owned();
    // It answers while it reads, so somebody else has to write.
    let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output().context("wait for veer explain")?;
    if !output.status.success() || !matches!(writer.join(), Ok(Ok(()))) {
        bail!("veer explain ended with {}", output.status);
    }
    let text = String::from_utf8(output.stdout)?;
    text.lines().map(|line| serde_json::from_str(line).context("decode what is explained")).collect()
}

fn tally(
    policy: &Policy,
    backend: Backend,
    cells: &[Cell],
    istio: &[Outcome],
    veer: &[Outcome],
    reasons: &[Told],
) -> Tally {
    let mut tally = Tally {
        backend,
        cells: cells.len(),
        agree: 0,
        better: [0; IMPROVEMENTS.len()],
        explained: 0,
        differences: Vec::new(),
    };
    for (index, (cell, (istio, veer))) in cells.iter().zip(istio.iter().zip(veer)).enumerate() {
        match judge(policy, cell, istio, veer) {
            Judgement::Agree => tally.agree += 1,
            Judgement::Better(kind) => {
                if let Some(count) = tally.better.get_mut(kind) {
                    *count += 1;
                }
            }
            Judgement::Differ => {
                tally.differences.push(format!("{cell}\n  istio-init {istio:?}\n  veer       {veer:?}"));
            }
        }
        match reasons.get(index).map(|(decision, report)| explained(cell, veer, decision, report)) {
            Some(Ok(())) => tally.explained += 1,
            Some(Err(why)) => tally.differences.push(format!("{cell}\n  {why}\n  {veer:?}")),
            None => {}
        }
    }
    tally
}
