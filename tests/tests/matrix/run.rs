//! One policy: the same cells in each place, and the comparison.

use std::collections::HashSet;
use std::io::Write;
use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::istio_init;
use veer_tests::launch::Launch;
use veer_tests::mesh::PATIENCE;
use veer_tests::monitor::Monitor;
use veer_tests::wait;

use crate::cell::{self, By, Cell, From, identities};
use crate::judge::{IMPROVEMENTS, Judgement, canonical, explained, judge};
use crate::place::{Outcome, Place};
use crate::policy::Policy;

/// How veer redirects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Backend {
    Ebpf,
    Nftables,
}

impl Backend {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Nftables => "nftables",
        }
    }
}

/// What the kernel said of a cell, and what is explained.
type Told = Vec<(Value, Value)>;

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

/// Runs all cells of a policy everywhere. Datagrams are for the policies that do something with them.
pub(crate) fn policy(policy: &Policy, connections: &[Cell], datagrams: &[Cell]) -> Result<Vec<Tally>> {
    let context = || format!("policy {}", policy.name);
    let mut cells = connections.to_vec();
    if policy.dns || policy.name == "plain" {
        cells.extend(datagrams);
    }
    if policy.exclude_interfaces.as_deref().is_some_and(|names| names.contains("net1")) {
        cells.extend(cell::by_second_interface());
    }
    // The last decision to wait for is that on a connection.
    cells.extend(connections.first());
    let reference = under_istio_init(policy, &cells).with_context(context)?;
    // Such a pod is redirected by rules wherever it is.
    if policy.reroute.is_some() {
        let (by_rules, _counted) = under_nftables(policy, &cells).with_context(context)?;
        return Ok(vec![tally(policy, Backend::Nftables, &cells, &reference, &by_rules, None)]);
    }
    let (veer, reasons, counted) = under_ebpf(policy, &cells).with_context(context)?;
    let (by_rules, counted_by_rules) = under_nftables(policy, &cells).with_context(context)?;
    let by_programs = tally(policy, Backend::Ebpf, &cells, &reference, &veer, Some(&reasons));
    let mut by_rules = tally(policy, Backend::Nftables, &cells, &reference, &by_rules, None);
    if count_the_same(policy) && !is_counted_alike(&counted, &counted_by_rules) {
        by_rules.differences.push(format!("counts\n  eBPF     {counted}\n  nftables {counted_by_rules}"));
    }
    Ok(vec![by_programs, by_rules])
}

fn under_istio_init(policy: &Policy, cells: &[Cell]) -> Result<Vec<Outcome>> {
    let cgroup = Cgroup::new()?;
    let mut place = Place::new(&cgroup)?;
    let arguments = policy.arguments();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    istio_init::apply_in(place.pod.netns(), &policy.node.environment(), &arguments)?;
    place.listen(policy)?;
    place.open_all(policy, cells).context("under istio-init")
}

/// The outcomes; for each cell what the kernel said and what is explained; and what was counted.
fn under_ebpf(policy: &Policy, cells: &[Cell]) -> Result<(Vec<Outcome>, Vec<Told>, Value)> {
    let cgroup = Cgroup::new()?;
    let flags = policy.node.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let agent = Agent::start_with(&cgroup, Launch::new(), &flags)?;
    let mut place = Place::new(&cgroup)?;
    agent.enrol_as(&place.pod, &policy.manifest(&place.pod))?;
    place.listen(policy)?;
    let monitor = Monitor::start(&agent, &["--json"])?;
    let outcomes = place.open_all(policy, cells).context("under eBPF")?;
    let decisions = decisions(&monitor, cells)?;
    let lines: Vec<String> = decisions.iter().flatten().map(Value::to_string).collect();
    let mut reports = explain(&agent, &lines.join("\n"))?.into_iter();
    let told = decisions.into_iter().map(|decisions| decisions.into_iter().zip(&mut reports).collect());
    Ok((outcomes, told.collect(), counts(&agent)?))
}

/// Rules tell nobody what they decide on a cell, so there are the outcomes and the counts alone.
fn under_nftables(policy: &Policy, cells: &[Cell]) -> Result<(Vec<Outcome>, Value)> {
    let cgroup = Cgroup::new()?;
    let mut flags = policy.node.flags();
    flags.push("--backend=nftables".to_owned());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let agent = Agent::start_with(&cgroup, Launch::new(), &flags)?;
    let mut place = Place::new(&cgroup)?;
    agent.enrol_as(&place.pod, &policy.manifest(&place.pod))?;
    place.listen(policy)?;
    let outcomes = place.open_all(policy, cells).context("under nftables")?;
    Ok((outcomes, counts(&agent)?))
}

/// How often each reason was counted.
fn counts(agent: &Agent) -> Result<Value> {
    let pod = agent.json(&["pods", "test/pod"])?;
    pod.get("reasons").cloned().context("a pod without reasons")
}

/// Whether the two backends are to count the same. Rules do not see that nobody listens at the proxy's port, see
/// nothing of a family that is not captured, and count a datagram when it is sent rather than when it is addressed.
const fn count_the_same(policy: &Policy) -> bool {
    !policy.proxy_is_away && !policy.v4_only && !policy.dns
}

/// What the kernel decided for each cell: for a connection one decision, for a datagram as many as it took, which is
/// none where the pod's datagrams are nobody's business.
fn decisions(monitor: &Monitor, cells: &[Cell]) -> Result<Vec<Vec<Value>>> {
    let connections = cells.iter().filter(|cell| cell.by == By::Tcp).count();
    let mut heard = Vec::new();
    wait::until("the decisions on all connections", PATIENCE, || {
        heard = monitor
            .wait_for_decisions(connections)
            .map_or_else(|_| Vec::new(), |heard| without_repetitions(without_strays(heard, cells)));
        heard.iter().filter(|decision| !is_datagram(decision)).count() >= connections
    })?;
    let mut heard = heard.into_iter().peekable();
    let mut assigned = Vec::with_capacity(cells.len());
    for cell in cells {
        let mut own = Vec::new();
        while let Some(decision) = heard.next_if(|decision| is_on(decision, cell)) {
            own.push(decision);
            if cell.by == By::Tcp {
                break;
            }
        }
        if cell.by == By::Tcp && own.is_empty() {
            bail!("no decision on {cell}; the next is {:?}", heard.peek());
        }
        assigned.push(own);
    }
    match heard.next() {
        Some(stray) => bail!("a decision on no cell: {stray}"),
        None => Ok(assigned),
    }
}

fn is_datagram(decision: &Value) -> bool {
    decision.get("protocol").is_some_and(|protocol| protocol == "udp")
}

fn is_on(decision: &Value, cell: &Cell) -> bool {
    let destination = decision.get("destination").and_then(Value::as_str).and_then(|text| text.parse().ok());
    let is_same_user = match cell.from {
        From::Pod { who, .. } => identities().get(who).is_some_and(|(_, user)| {
            let id = |name: &str| decision.get(name).and_then(Value::as_u64);
            (id("uid"), id("gid")) == (Some(user.uid.into()), Some(user.gid.into()))
        }),
        From::World(_) => decision.get("direction").is_some_and(|direction| direction == "inbound"),
    };
    let is_same_protocol = is_datagram(decision) == (cell.by != By::Tcp);
    destination.map(canonical) == Some(canonical(cell.to)) && is_same_user && is_same_protocol
}

/// Without segments that came too late for their connection, as they do on a busy machine: those are looked up as a
/// SYN is. Nobody has dialled where they go.
fn without_strays(mut decisions: Vec<Value>, cells: &[Cell]) -> Vec<Value> {
    let dialled: HashSet<SocketAddr> = cells
        .iter()
        .filter(|cell| matches!(cell.from, From::World(_)))
        .map(|cell| canonical(cell.to))
        .collect();
    decisions.retain(|decision| {
        let text = |field: &str| decision.get(field).and_then(Value::as_str);
        let to = text("destination").and_then(|to| to.parse().ok()).map(canonical);
        text("direction") != Some("inbound") || to.is_some_and(|to| dialled.contains(&to))
    });
    decisions
}

/// Whether the programs have counted what the rules have, and strays besides: what arrives and is left alone is
/// counted where it is looked up.
fn is_counted_alike(programs: &Value, rules: &Value) -> bool {
    const WHEN_LOOKED_UP: [&str; 4] =
        ["excluded-interface-inbound", "excluded-inbound-port", "not-included-inbound", "tunnel-port"];
    let (Some(programs), Some(rules)) = (programs.as_object(), rules.as_object()) else { return false };
    programs.keys().chain(rules.keys()).all(|reason| {
        let count = |counts: &Map<String, Value>| counts.get(reason).and_then(Value::as_u64).unwrap_or(0);
        let (programs, rules) = (count(programs), count(rules));
        programs == rules || (programs > rules && WHEN_LOOKED_UP.contains(&reason.as_str()))
    })
}

/// Without what is decided again: a SYN that nobody listens for is judged each time that it is sent, and on a busy
/// machine the refusal may be too late for the second.
fn without_repetitions(mut decisions: Vec<Value>) -> Vec<Value> {
    let mut heard = HashSet::new();
    decisions.retain(|decision| {
        let text = |field: &str| decision.get(field).and_then(Value::as_str).map(str::to_owned);
        let is_inbound = text("direction").as_deref() == Some("inbound");
        !is_inbound || heard.insert(["source", "destination", "reason"].map(text))
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
    reasons: Option<&[Told]>,
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
        match judge(backend, policy, cell, istio, veer) {
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
        let Some(reasons) = reasons else { continue };
        let told = reasons.get(index).map_or(&[][..], Vec::as_slice);
        match explained(cell, veer, told) {
            Ok(()) => tally.explained += 1,
            Err(why) => tally.differences.push(format!("{cell}\n  {why}\n  {veer:?}")),
        }
    }
    tally
}
