//! Faults of the agent's process: killed, replaced by another build, started twice.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use veer_common::cni::code;
use veer_tests::bare_pod::BarePod;
use veer_tests::launch::executable;
use veer_tests::objects::Objects;
use veer_tests::pinned::Pinned;
use veer_tests::plugin::{Ended, Plugin};
use veer_tests::wait;

use super::stage::{Stage, Told};

/// Requests between two upgrades.
const BETWEEN: u64 = 30;

/// Pods that come and go while the agent is killed.
const CHURNED: u16 = 4;

/// SIGKILL at a random moment: of its start, of an enrolment, of doing nothing. Pods come and go meanwhile.
pub(crate) fn killed(stage: &mut Stage<'_>) -> Result<Told> {
    let pods = stage.bare_pods("churned", CHURNED)?;
    let started = Instant::now();
    stage.agent.kill()?;
    stage.agent.start_again()?;
    // Half of the kills hit an agent that is not ready yet.
    let longest = started.elapsed() * 2;
    let churn = Churn::default();
    let kills = stage.extent.kills;
    let plugin = stage.plugin.clone();
    let mut while_starting = 0;
    thread::scope(|scope| -> Result<()> {
        let churning = scope.spawn(|| churn.run(&plugin, &pods));
        let outcome = (0..kills).try_for_each(|_| {
            let moment = longest.mul_f64(stage.random.f64());
            let begun = Instant::now();
            let ready = || churn.is_over() || begun.elapsed() >= moment;
            wait::until("the moment of a kill", wait::LIMIT, ready)?;
            while_starting += u64::from(!stage.agent.run_dir().join("cni.sock").exists());
            stage.agent.kill()?;
            stage.agent.begin_again()
        });
        churn.stop.store(true, Ordering::SeqCst);
        churning.join().map_err(|_panic| anyhow::anyhow!("the churn panicked"))??;
        outcome
    })?;
    stage.agent.wait_ready()?;
    pods.iter().try_for_each(|pod| stage.del(pod))?;
    stage.forget(&pods)?;
    let (added, refused) = (churn.added.load(Ordering::SeqCst), churn.refused.load(Ordering::SeqCst));
    Ok(Told { times: kills, seen: format!("meanwhile {added} ADDs done, {refused} told to try again") })
}

/// ADDs and DELs one after the other, while there is an agent and while there is none.
#[derive(Debug, Default)]
struct Churn {
    stop: AtomicBool,
    added: AtomicU64,
    refused: AtomicU64,
}

impl Churn {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn run(&self, plugin: &Plugin, pods: &[BarePod]) -> Result<()> {
        let outcome = pods.iter().cycle().take_while(|_| !self.is_over()).try_for_each(|pod| {
            match plugin.run("ADD", &pod.attachment(), pod.v4())? {
                Ended::Done(_) => self.added.fetch_add(1, Ordering::SeqCst),
                Ended::Refused(error) if error.code == code::TRY_AGAIN => {
                    self.refused.fetch_add(1, Ordering::SeqCst)
                }
                Ended::Refused(error) => bail!("ADD without an agent is to be tried again, and said {error}"),
            };
            plugin.succeed("DEL", &pod.attachment(), pod.v4()).map(drop)
        });
        self.stop.store(true, Ordering::SeqCst);
        outcome
    }
}

/// To another build, whose programs are others, and back: half of the times by SIGTERM, half by SIGKILL.
pub(crate) fn upgraded(stage: &mut Stage<'_>) -> Result<Told> {
    let other = std::env::var_os("VEER_OTHER_BIN").context(
        "VEER_OTHER_BIN is not set: it names a veer whose eBPF programs are others; \
         `cargo xtask test faults` builds it with --features veer/other-build",
    )?;
    let other = executable(PathBuf::from(other), "VEER_OTHER_BIN")?;
    let ours = executable(std::env::var_os("VEER_BIN").context("VEER_BIN is not set")?.into(), "VEER_BIN")?;
    let before = tags(stage)?;
    let mut replaced: BTreeSet<u64> = BTreeSet::new();
    for turn in 0..stage.extent.upgrades {
        for program in [&other, &ours] {
            stage.load.wait_for(BETWEEN)?;
            if turn % 2 == 0 {
                stage.agent.stop()?;
            } else {
                stage.agent.kill()?;
            }
            stage.agent.use_program(program);
            stage.agent.start_again()?;
            replaced.extend(tags(stage)?.difference(&before).copied());
        }
        ensure!(tags(stage)? == before, "the programs are not those of the first build again");
    }
    ensure!(!replaced.is_empty(), "{} has the same programs: it is no other build", other.display());
    let seen = format!("there and back; {} of {} programs differ", replaced.len(), before.len());
    Ok(Told { times: 2 * stage.extent.upgrades, seen })
}

/// What tells programs apart: a hash over their instructions.
fn tags(stage: &Stage<'_>) -> Result<BTreeSet<u64>> {
    let objects = Objects::of(&Pinned::of(&stage.agent))?;
    Ok(objects.program_infos().iter().map(aya::programs::ProgramInfo::tag).collect())
}

/// Two at once: one serves, the other refuses and says why.
pub(crate) fn started_twice(stage: &mut Stage<'_>) -> Result<Told> {
    for _ in 0..stage.extent.pairs {
        stage.agent.kill()?;
        stage.agent.begin_again()?;
        let mut other = stage.agent.begin_another()?;
        let mut refused = None;
        wait::until("one of two agents to refuse", wait::LIMIT, || {
            for process in [stage.agent.process_mut(), &mut other] {
                if let Ok(Some(status)) = process.ended() {
                    refused = Some((status, process.pid()));
                }
            }
            refused.is_some()
        })?;
        let (status, pid) = refused.context("nobody refused")?;
        ensure!(status.code() == Some(70), "the one that refuses ended with {status}: {}", other.log());
        if pid == stage.agent.process().pid() {
            std::mem::swap(stage.agent.process_mut(), &mut other);
        }
        stage.agent.wait_ready()?;
        ensure!(stage.agent.log().contains("another agent runs on"), "it did not say why it refuses");
    }
    Ok(Told { times: stage.extent.pairs, seen: "one serves, the other ends with 70 and says why".to_owned() })
}

/// How long a moment is that a kill may hit.
pub(crate) fn up_to(random: &mut fastrand::Rng, longest: Duration) -> Duration {
    longest.mul_f64(random.f64())
}
