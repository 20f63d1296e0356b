//! What the agent itself costs: time for a pod, memory for few and for many, CPU while nothing happens.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use veer_common::cni::Reply;
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::manifest::Manifest;
use veer_tests::pod::{TestPod, World};
use veer_tests::wait;

use crate::progress::Progress;
use crate::report::milliseconds;
use crate::run::Extent;

/// Pods after which memory is looked at first.
const FEW: usize = 2;
/// Age at which the agent believes a manifest's time stamp, and a little more.
const SETTLED: Duration = Duration::from_millis(2200);
/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(3);

/// What the agent costs.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(crate) struct Footprint {
    /// With [`FEW`] pods.
    pub(crate) few: Memory,
    /// With all of them.
    pub(crate) many: Memory,
    /// Part of one CPU, with all pods enrolled and nothing going on.
    pub(crate) idle_cpu: f64,
}

/// Memory of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) pods: usize,
    pub(crate) resident_kb: u64,
    /// What of it is not the program's own file.
    pub(crate) anonymous_kb: u64,
}

impl Memory {
    /// In megabytes of 10^6 bytes.
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
    pub(crate) fn resident_mb(self) -> f64 {
        (self.resident_kb * 1024) as f64 / 1e6
    }
}

/// Enrols pods over the agent's socket, each in a netns of its own; gives the milliseconds of each.
pub(crate) fn measure(extent: Extent, progress: &Progress) -> Result<(Vec<f64>, Footprint)> {
    progress.say(&format!("enrolling {} pods over the agent's socket", extent.enrolments));
    let cgroup = Cgroup::new()?;
    let agent = Agent::start(&cgroup)?;
    let world = World::new()?;
    let pid = agent.process().pid();
    let names = announce(&agent, extent.enrolments)?;
    let mut pods = Vec::new();
    let mut took = Vec::new();
    let mut few = None;
    for name in &names {
        let pod = TestPod::new(&world, &cgroup, name)?;
        let start = Instant::now();
        let reply = agent.add(&pod)?;
        took.push(milliseconds(start.elapsed()));
        if reply != Reply::Done {
            bail!("ADD of {name} answered {reply:?}; the agent's log:\n{}", agent.log());
        }
        pods.push(pod);
        if pods.len() == FEW {
            few = Some(memory(pid, FEW)?);
        }
    }
    let many = memory(pid, pods.len())?;
    progress.say("watching the agent do nothing");
    let idle_cpu = idle_cpu(pid)?;
    Ok((took, Footprint { few: few.context("too few pods to look at memory")?, many, idle_cpu }))
}

/// Gives the agent the manifests of as many pods, and waits until it takes each for settled: it reads a file
/// that is younger than two seconds once more for each ADD, which no pod of a cluster would pay for.
pub(crate) fn announce(agent: &Agent, pods: usize) -> Result<Vec<String>> {
    let names: Vec<_> = (0..pods).map(|number| format!("pod-{number}")).collect();
    for name in &names {
        agent.write_manifest(&Manifest::new("test", name))?;
    }
    let_settle()?;
    Ok(names)
}

/// Waits until the manifests that were written are settled.
pub(crate) fn let_settle() -> Result<()> {
    let written = Instant::now();
    wait::until("the manifests to settle", wait::LIMIT, || written.elapsed() >= SETTLED)
}

/// Looks at a process.
pub(crate) fn memory(pid: u32, pods: usize) -> Result<Memory> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        value.and_then(|kb| kb.parse().ok()).with_context(|| format!("{path} has no {name}"))
    };
    Ok(Memory { pods, resident_kb: field("VmRSS:")?, anonymous_kb: field("RssAnon:")? })
}

fn idle_cpu(pid: u32) -> Result<f64> {
    let (start, before) = (Instant::now(), cpu_time(pid)?);
    wait::until("nothing to happen", wait::LIMIT, || start.elapsed() >= IDLE)?;
    // A thread that ended in between takes its time with it; nothing is what it did since.
    let ran = cpu_time(pid)?.saturating_sub(before);
    Ok(ran.as_secs_f64() / start.elapsed().as_secs_f64())
}

/// What all threads have run so far: nanoseconds, where other files of /proc count ticks of 10 ms.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/task");
    let mut total = Duration::ZERO;
    for thread in fs::read_dir(&path).with_context(|| format!("list {path}"))? {
        let path = thread?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let ran = text.split(' ').next().and_then(|ran| ran.parse().ok());
        total += Duration::from_nanos(ran.with_context(|| format!("{}: {text:?}", path.display()))?);
    }
    Ok(total)
}
