//! Whether the suite would see a loss: a suite that cannot fail says nothing.
//!
//! Owns: breaking the datapath of the scene's pods for a moment, one part after the other, under the load, and
//! wanting requests to be lost and pods to be wrong; then it is whole again, and nothing more is lost.

use anyhow::{Context, Result, bail, ensure};
use veer_common::maps::{NetnsCookie, name};
use veer_tests::filling;
use veer_tests::pinned::Pinned;

use super::census::Census;
use super::stage::Stage;

/// Requests that meet a broken datapath, and a whole one again.
const MEANWHILE: u64 = 60;

/// What is taken off its hook: outbound connections of either family, and inbound ones.
const BROKEN: [Hook; 3] = [Hook::Cgroup("veer_connect4"), Hook::Cgroup("veer_connect6"), Hook::Netns];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hook {
    /// A program of the pods' cgroup.
    Cgroup(&'static str),
    /// The inbound program of the pod that answers.
    Netns,
}

/// Tries it out; says what was seen.
pub(crate) fn try_out(stage: &mut Stage<'_>, before: &Census) -> Result<String> {
    let mut seen = Vec::new();
    for hook in BROKEN {
        let mark = stage.load.mark();
        hook.detach(stage)?;
        stage.load.wait_for(MEANWHILE)?;
        let wrong = stage.wrong_pods();
        let since = stage.load.since(mark);
        let (lost, requests) = (since.lost.len(), since.requests);
        ensure!(lost > 0, "of {requests} requests none was lost, without {hook:?}: the count is blind");
        ensure!(!wrong.is_empty(), "nothing is said to be wrong, without {hook:?}");
        seen.push(format!("{lost} of {requests}"));
        stage.agent.kill()?;
        stage.agent.start_again()?;
        stage.agent.wait_settled()?;
        is_whole_again(stage).with_context(|| format!("with {hook:?} back"))?;
    }
    sees_a_leak(stage, before)?;
    Ok(format!("the count sees what is lost without a hook: {}", seen.join(", ")))
}

impl Hook {
    fn detach(self, stage: &Stage<'_>) -> Result<()> {
        let pinned = Pinned::of(&stage.agent);
        match self {
            Self::Cgroup(program) => pinned.detach(program),
            Self::Netns => pinned.detach_netns(cookie_of_b(stage)?),
        }
    }
}

fn cookie_of_b(stage: &Stage<'_>) -> Result<NetnsCookie> {
    let pod = stage.agent.json(&["pods", "test/b"])?;
    pod.get("netnsCookie").and_then(serde_json::Value::as_u64).context("veer pods tells no cookie")
}

fn is_whole_again(stage: &Stage<'_>) -> Result<()> {
    // Whatever was on its way through the gap is over then.
    drop(stage.load.pause());
    let mark = stage.load.mark();
    stage.load.wait_for(MEANWHILE)?;
    let (lost, wrong) = (stage.load.since(mark).lost, stage.wrong_pods());
    if lost.is_empty() && wrong.is_empty() {
        return Ok(());
    }
    bail!("{} requests were lost: {}; {}", lost.len(), lost.join("; "), wrong.join("; "))
}

/// Entries of nobody's are counted as left behind.
fn sees_a_leak(stage: &Stage<'_>, before: &Census) -> Result<()> {
    let _paused = stage.load.pause();
    let pinned = Pinned::of(&stage.agent);
    filling::fill(&pinned, name::COUNTERS)?;
    let leak = Census::take(&stage.agent).map(|now| now.differs_by(before));
    filling::empty(&pinned, name::COUNTERS)?;
    ensure!(leak?.entries > 0, "a full map is no leak: the census is blind");
    Ok(())
}
