//! What was found: medians, ratios, and whether they are what veer promises. Pure.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::footprint::Footprint;
use crate::order::{BLOCK, Cpus, Slice, Workload};
use crate::scene::Direction;
use crate::statistics::Spread;

/// How much longer than direct a workload may take; of others nothing was promised.
const PROMISED: [(Workload, f64); 3] =
    [(Workload::Connect, 1.10), (Workload::Request, 1.05), (Workload::Bulk, 1.05)];

/// Everything that is told. What `bench.json` holds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) paths: Vec<PathResult>,
    pub(crate) joining: Joining,
    pub(crate) agent: Footprint,
    pub(crate) targets: Vec<Target>,
}

/// Where it was found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpus: usize,
    pub(crate) ends: Cpus,
    /// Load average when the run began: above 0, others were at work.
    pub(crate) load_before: f64,
    /// When it ended, the bench itself included.
    pub(crate) load_after: f64,
}

/// A workload in a direction.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PathResult {
    pub(crate) direction: Direction,
    pub(crate) workload: Workload,
    /// Nanoseconds of an operation.
    pub(crate) direct_ns: Spread,
    pub(crate) iptables: Compared,
    pub(crate) veer: Compared,
    /// What all of it is computed from.
    pub(crate) rounds: Vec<Round>,
}

/// A case beside the direct one.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(crate) struct Compared {
    /// Nanoseconds of an operation.
    pub(crate) ns: Spread,
    /// Of the rounds' ratios to direct, each of medians.
    pub(crate) ratio: Spread,
    /// The same of means: with interruptions.
    pub(crate) ratio_of_means: Spread,
}

/// One slice of each case.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(crate) struct Round {
    pub(crate) direct: Slice,
    pub(crate) iptables: Slice,
    pub(crate) veer: Slice,
}

/// How long a pod waits, in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Joining {
    /// A request on the agent's socket and its answer.
    pub(crate) agent_add: Timing,
    /// The plugin's whole process, the agent's work included.
    pub(crate) plugin_add: Timing,
    /// The rules for IPv4.
    pub(crate) iptables_restore: Timing,
    /// The rules for IPv6.
    pub(crate) ip6tables_restore: Timing,
}

/// Something timed often.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Timing {
    pub(crate) ms: Spread,
    pub(crate) samples: Vec<f64>,
}

/// A promise and what became of it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Target {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) limit: f64,
    pub(crate) found: f64,
    pub(crate) met: bool,
}

/// Milliseconds of a duration.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Bits per second when one block takes this many nanoseconds.
pub(crate) fn bits_per_second(ns_of_block: f64) -> f64 {
    f64::from(BLOCK) * 8.0 / (ns_of_block / 1e9)
}

impl Report {
    /// Judges what was found.
    pub(crate) fn new(machine: Machine, paths: Vec<PathResult>, joining: Joining, agent: Footprint) -> Self {
        let mut targets: Vec<_> = paths.iter().filter_map(Target::of_path).collect();
        let few = agent.few.pods;
        let rows = [
            ("veer-cni ADD as a process".to_owned(), "ms", 5.0, joining.plugin_add.ms.median),
            (format!("agent with {few} pods"), "MB", 30.0, agent.few.resident_mb()),
            ("agent when idle, of one CPU".to_owned(), "%", 0.1, agent.idle_cpu * 100.0),
        ];
        targets.extend(rows.map(|(what, unit, limit, found)| Target::new(what, unit, limit, found)));
        Self { machine, paths, joining, agent, targets }
    }
}

impl PathResult {
    /// Compares the rounds.
    pub(crate) fn of(direction: Direction, workload: Workload, rounds: Vec<Round>) -> Result<Self> {
        let spread = |value: &dyn Fn(&Round) -> f64| {
            Spread::of(&rounds.iter().map(value).collect::<Vec<_>>()).context("no round was measured")
        };
        let compared = |case: fn(&Round) -> Slice| -> Result<Compared> {
            Ok(Compared {
                ns: spread(&|round| case(round).median_ns)?,
                ratio: spread(&|round| case(round).median_ns / round.direct.median_ns)?,
                ratio_of_means: spread(&|round| case(round).mean_ns / round.direct.mean_ns)?,
            })
        };
        let direct_ns = spread(&|round| round.direct.median_ns)?;
        let (iptables, veer) = (compared(|round| round.iptables)?, compared(|round| round.veer)?);
        Ok(Self { direction, workload, direct_ns, iptables, veer, rounds })
    }
}

impl Timing {
    /// Of these milliseconds.
    pub(crate) fn of(samples: Vec<f64>) -> Result<Self> {
        Ok(Self { ms: Spread::of(&samples).context("nothing was timed")?, samples })
    }
}

impl Target {
    fn new(what: String, unit: &'static str, limit: f64, found: f64) -> Self {
        Self { what, unit, limit, found, met: found <= limit }
    }

    /// How much longer than direct the same work may take.
    fn of_path(path: &PathResult) -> Option<Self> {
        let (_, limit) = PROMISED.into_iter().find(|(workload, _)| *workload == path.workload)?;
        let what = format!("{} {}, time to direct's", path.direction.name(), path.workload.name());
        Some(Self::new(what, "x", limit, path.veer.ratio.median))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::footprint::Memory;

    fn slice(median_ns: f64) -> Slice {
        Slice { median_ns, mean_ns: 2.0 * median_ns }
    }

    fn round(direct: f64, iptables: f64, veer: f64) -> Round {
        Round { direct: slice(direct), iptables: slice(iptables), veer: slice(veer) }
    }

    fn timing(ms: f64) -> Timing {
        Timing::of(vec![ms, 0.9 * ms, 1.2 * ms]).unwrap()
    }

    /// A report with plausible numbers, for whoever renders one.
    pub(crate) fn report() -> Report {
        let workloads = [
            (Workload::Connect, 21_000.0),
            (Workload::Life, 30_000.0),
            (Workload::Request, 6_000.0),
            (Workload::Bulk, 1_300_000.0),
        ];
        let path = |direction, (workload, ns)| {
            let rounds = (0..10).map(|n| {
                let drift = 1.0 + 0.01 * f64::from(n);
                round(ns * drift, ns * 1.34, ns * 1.03)
            });
            PathResult::of(direction, workload, rounds.collect()).unwrap()
        };
        let paths = Direction::ALL
            .iter()
            .flat_map(|direction| workloads.map(|workload| path(*direction, workload)))
            .collect();
        let joining = Joining {
            agent_add: timing(1.2),
            plugin_add: timing(5.5),
            iptables_restore: timing(13.0),
            ip6tables_restore: timing(12.0),
        };
        let memory = |pods, resident_kb| Memory { pods, resident_kb, anonymous_kb: resident_kb / 2 };
        let agent = Footprint { few: memory(2, 8_000), many: memory(50, 9_000), idle_cpu: 0.0 };
        let ends = Cpus { client: 2, server: 3 };
        let machine = Machine { kernel: "6.18.44".into(), cpus: 4, ends, load_before: 0.2, load_after: 1.1 };
        Report::new(machine, paths, joining, agent)
    }

    #[test]
    fn a_ratio_is_of_one_round_so_drift_does_not_count() {
        let rounds = vec![round(10.0, 20.0, 11.0), round(100.0, 200.0, 110.0), round(1000.0, 2000.0, 1100.0)];
        let result = PathResult::of(Direction::Outbound, Workload::Connect, rounds).unwrap();
        assert!((result.direct_ns.median - 100.0).abs() < 1e-9);
        for ratio in [result.veer.ratio, result.veer.ratio_of_means] {
            assert!((ratio.p25 - 1.1).abs() < 1e-9 && (ratio.p75 - 1.1).abs() < 1e-9, "{ratio:?}");
        }
        assert!((result.iptables.ratio.median - 2.0).abs() < 1e-9);
        assert!(PathResult::of(Direction::Outbound, Workload::Connect, vec![]).is_err());
    }

    #[test]
    fn each_promise_is_judged_by_its_own_limit() {
        let report = report();
        let missed: Vec<_> =
            report.targets.iter().filter(|target| !target.met).map(|target| target.what.as_str()).collect();
        assert_eq!(missed, ["veer-cni ADD as a process"]);
        assert_eq!(report.targets.len(), 9);
    }

    #[test]
    fn a_block_in_a_millisecond_is_67_gigabits() {
        assert!((bits_per_second(1e6) - 67_108_864_000.0).abs() < 1.0);
    }
}
