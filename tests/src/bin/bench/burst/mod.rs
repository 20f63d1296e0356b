//! `bench burst`: many pods at once on a real Kubernetes node, with no plugin behind the primary CNI, with veer's, and with one
//! that runs Istio's own `istio-iptables`.
//!
//! Owns: the node, the order of the bursts, and what of each is told. In a round each variant has its burst on the same node,
//! in another order than in the round before; whatever else the machine does meets all three. Nothing is promised
//! here, so nothing is missed.

mod table;
mod variant;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use nix::sys::utsname::uname;
use serde::Serialize;
use veer_tests::supervise;

use crate::progress::Progress;
use crate::run;
use crate::statistics::{Spread, quantile};
use variant::{Node, Variant};

/// What to measure.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Options {
    /// Pods of a burst
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(2..=200))]
    pods: u16,
    /// Bursts of each variant
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Is the process that measures
    #[arg(long, hide = true)]
    pub(crate) measures: bool,
}

/// What was found. What `burst.json` holds.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) kernel: String,
    pub(crate) cpus: usize,
    /// Load average when the run began: above 0, others were at work.
    pub(crate) load_before: f64,
    pub(crate) load_after: f64,
    pub(crate) pods: u16,
    pub(crate) rounds: Vec<Round>,
    pub(crate) told: Vec<Told>,
}

/// A burst of each variant, in the order in which they were made.
#[derive(Debug, Serialize)]
pub(crate) struct Round {
    pub(crate) bursts: Vec<Burst>,
}

/// One burst.
#[derive(Debug, Serialize)]
pub(crate) struct Burst {
    pub(crate) variant: Variant,
    /// Milliseconds of each ADD of the plugin that is compared; of no plugin there is none.
    pub(crate) step_ms: Vec<f64>,
    /// Milliseconds from each pod's creation until it runs.
    pub(crate) running_ms: Vec<f64>,
}

/// Half of something was done after the one, nearly all after the other.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(crate) struct Parts<T> {
    pub(crate) p50: T,
    pub(crate) p99: T,
}

/// A variant over all rounds: the median of the rounds and their quartiles.
#[derive(Debug, Serialize)]
pub(crate) struct Told {
    pub(crate) variant: Variant,
    pub(crate) step_ms: Option<Parts<Spread>>,
    pub(crate) running_ms: Parts<Spread>,
    /// Of the rounds' ratios to no plugin.
    pub(crate) running_to_none: Option<Parts<Spread>>,
    /// Of the rounds' ratios of veer to this one.
    pub(crate) veer_to_this: Option<Parts<Spread>>,
}

/// Measures, prints the table, and writes `burst.json`.
pub(crate) fn run(options: Options, out: &Path) -> Result<ExitCode> {
    supervise::be_supervised()?;
    let progress = Progress::start();
    let load_before = run::load()?;
    progress.say("starting a Kubernetes node");
    let mut node = Node::start()?;
    progress.say("a burst that does not count, for a node on which there has been one");
    node.burst(Variant::None, options.pods.into())?;
    let mut rounds = Vec::new();
    for round in 0..options.rounds {
        let mut bursts = Vec::new();
        for variant in Variant::order(round) {
            progress.say(&format!("round {} of {}: {}", round + 1, options.rounds, variant.name()));
            bursts.push(node.burst(variant, options.pods.into())?);
        }
        rounds.push(Round { bursts });
    }
    let told = Variant::ALL.into_iter().filter_map(|variant| tell(variant, &rounds)).collect();
    let report = Report {
        kernel: uname().context("ask for the kernel's version")?.release().display().to_string(),
        cpus: std::thread::available_parallelism().context("count the CPUs")?.get(),
        load_before,
        load_after: run::load()?,
        pods: options.pods,
        rounds,
        told,
    };
    progress.say("taking it down");
    drop(node);
    run::write(&table::render(&report))?;
    fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
    let path = out.join("burst.json");
    fs::write(&path, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("write {}", path.display()))?;
    progress.say(&format!("wrote {}", path.display()));
    Ok(ExitCode::SUCCESS)
}

/// `None` without a round.
fn tell(variant: Variant, rounds: &[Round]) -> Option<Told> {
    let running = |burst: &Burst| parts(&burst.running_ms);
    let ratios = |of: Variant, to: Variant| {
        let ratio = |round: &Round| {
            let (of, to) = (round.of(of).and_then(running)?, round.of(to).and_then(running)?);
            Some(Parts { p50: of.p50 / to.p50, p99: of.p99 / to.p99 })
        };
        spread(&rounds.iter().filter_map(ratio).collect::<Vec<_>>())
    };
    let of_rounds = |parts_of: &dyn Fn(&Burst) -> Option<Parts<f64>>| {
        let found = rounds.iter().filter_map(|round| round.of(variant).and_then(parts_of));
        spread(&found.collect::<Vec<_>>())
    };
    Some(Told {
        variant,
        step_ms: of_rounds(&|burst| parts(&burst.step_ms)),
        running_ms: of_rounds(&running)?,
        running_to_none: (variant != Variant::None).then(|| ratios(variant, Variant::None)).flatten(),
        veer_to_this: (variant != Variant::Veer).then(|| ratios(Variant::Veer, variant)).flatten(),
    })
}

impl Round {
    fn of(&self, variant: Variant) -> Option<&Burst> {
        self.bursts.iter().find(|burst| burst.variant == variant)
    }
}

fn parts(values: &[f64]) -> Option<Parts<f64>> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some(Parts { p50: quantile(&sorted, 0.5)?, p99: quantile(&sorted, 0.99)? })
}

fn spread(parts: &[Parts<f64>]) -> Option<Parts<Spread>> {
    let of = |part: fn(&Parts<f64>) -> f64| Spread::of(&parts.iter().map(part).collect::<Vec<_>>());
    Some(Parts { p50: of(|parts| parts.p50)?, p99: of(|parts| parts.p99)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn burst(variant: Variant, running_ms: [f64; 2]) -> Burst {
        Burst { variant, step_ms: Vec::new(), running_ms: running_ms.to_vec() }
    }

    #[test]
    fn ratios_are_those_of_a_round() {
        let rounds = [
            Round { bursts: vec![burst(Variant::None, [10.0, 10.0]), burst(Variant::Veer, [20.0, 20.0])] },
            Round { bursts: vec![burst(Variant::Veer, [4.0, 4.0]), burst(Variant::None, [1.0, 1.0])] },
        ];
        let told = tell(Variant::Veer, &rounds).unwrap();
        assert!((told.running_to_none.unwrap().p50.median - 3.0).abs() < 1e-9);
        assert!(told.step_ms.is_none() && told.veer_to_this.is_none());
        let none = tell(Variant::None, &rounds).unwrap();
        assert!((none.running_ms.p99.median - 5.5).abs() < 1e-9 && none.running_to_none.is_none());
        assert!(tell(Variant::Iptables, &rounds).is_none());
    }
}
