//! A node that fills up: each pod a netns of its own, enrolled over the agent's socket. The last ones come in turns with those
//! of a node that was empty until then, so that both meet the same machine: a minute apart it differs by a fifth.

use std::fs;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use veer_common::cni::{Reply, Verb};
use veer_tests::agent::Agent;
use veer_tests::attachment;
use veer_tests::bare_pod::BarePod;
use veer_tests::cgroup::Cgroup;

use super::microseconds;
use crate::report::{Timing, milliseconds};
use crate::statistics::{self, Spread};

/// Some enrolments of one node that followed each other.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Window {
    /// From the request to its answer, in milliseconds.
    pub(crate) answered: Timing,
    /// What the agent ran for it, in milliseconds of CPU: its own code, and the kernel's on its behalf.
    pub(crate) ran: Timing,
    /// What of that was its own code, on average. The kernel tells one from the other at its clock's ticks alone, every
    /// 4 ms mostly: of a hundred pods it is known to an eighth, of a thousand to a twentieth.
    pub(crate) own_ms: f64,
}

/// What one enrolment took, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Enrolment {
    answered: f64,
    ran: f64,
    own: f64,
}

/// A node that is being filled.
#[derive(Debug)]
pub(crate) struct Filling<'a> {
    agent: &'a Agent,
    /// Where the agent is alone.
    own: &'a Cgroup,
    pods: Vec<BarePod>,
    enrolments: Vec<Enrolment>,
}

/// What enrolments cost where there are many pods and where there are few.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Enrolments {
    /// All of the full node.
    pub(crate) all: Window,
    /// The last of the full node.
    pub(crate) full: Window,
    /// The first of the other one, in turns with those.
    pub(crate) few: Window,
    /// CPU of the full node's to that of the other's, of each turn.
    pub(crate) ratio: Spread,
}

/// The pods, until they are dropped.
#[derive(Debug)]
pub(crate) struct Pods(Vec<BarePod>);

/// What a cgroup's processes have run so far, in microseconds.
#[derive(Clone, Copy, Debug)]
struct Ran {
    all: u64,
    user: u64,
}

impl<'a> Filling<'a> {
    /// A node without pods.
    pub(crate) const fn new(agent: &'a Agent, own: &'a Cgroup) -> Self {
        Self { agent, own, pods: Vec::new(), enrolments: Vec::new() }
    }

    /// One pod more.
    pub(crate) fn enrol(&mut self, name: &str) -> Result<()> {
        let pod = BarePod::new(name, u16::try_from(self.pods.len())?)?;
        let before = Ran::of(self.own)?;
        let start = Instant::now();
        let add = Verb::Add(pod.attachment());
        let reply = attachment::ask(&self.agent.run_dir(), add, Some(pod.netns().as_fd()))?;
        let answered = milliseconds(start.elapsed());
        let after = Ran::of(self.own)?;
        if reply != Reply::Done {
            bail!("ADD of {name} answered {reply:?}");
        }
        let since = |count: u64, before: u64| milliseconds(microseconds(count.saturating_sub(before)));
        let (ran, own) = (since(after.all, before.all), since(after.user, before.user));
        self.enrolments.push(Enrolment { answered, ran, own });
        self.pods.push(pod);
        Ok(())
    }

    /// Takes turns with another node.
    pub(crate) fn enrol_in_turns(
        &mut self,
        names: &[String],
        other: &mut Filling<'_>,
        names_of_other: &[String],
    ) -> Result<()> {
        for (turn, (name, name_of_other)) in names.iter().zip(names_of_other).enumerate() {
            // Neither is always the one that comes first.
            if turn % 2 == 0 {
                self.enrol(name)?;
                other.enrol(name_of_other)?;
            } else {
                other.enrol(name_of_other)?;
                self.enrol(name)?;
            }
        }
        Ok(())
    }

    /// All of this node, and its last ones compared with those of a node that has taken turns with it.
    pub(crate) fn compared_with(&self, few: &Filling<'_>) -> Result<Enrolments> {
        let from = self.enrolments.len().saturating_sub(few.enrolments.len());
        let last = self.enrolments.get(from..).unwrap_or_default();
        let ratios: Vec<f64> =
            last.iter().zip(&few.enrolments).map(|(full, few)| full.ran / few.ran).collect();
        Ok(Enrolments {
            all: Window::of(&self.enrolments)?,
            full: Window::of(last)?,
            few: Window::of(&few.enrolments)?,
            ratio: Spread::of(&ratios).context("no pod was enrolled in turns")?,
        })
    }

    /// Keeps the pods alone.
    pub(crate) fn into_pods(self) -> Pods {
        Pods(self.pods)
    }
}

impl Pods {
    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

impl Window {
    fn of(enrolments: &[Enrolment]) -> Result<Self> {
        let values = |of: fn(&Enrolment) -> f64| enrolments.iter().map(of).collect::<Vec<_>>();
        Ok(Self {
            answered: Timing::of(values(|enrolment| enrolment.answered))?,
            ran: Timing::of(values(|enrolment| enrolment.ran))?,
            own_ms: statistics::mean(&values(|enrolment| enrolment.own)),
        })
    }
}

impl Ran {
    fn of(cgroup: &Cgroup) -> Result<Self> {
        let path = cgroup.path().join("cpu.stat");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
            value.with_context(|| format!("{} has no {name}", path.display()))
        };
        Ok(Self { all: field("usage_usec")?, user: field("user_usec")? })
    }
}
