//! Faults of bpf(2), at each single call: the kernel refuses it, or the agent dies at it.

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use veer_common::cni::{Reply, Verb};
use veer_tests::bpf_gate::{BpfGate, Fate};
use veer_tests::launch::Launch;
use veer_tests::wait;

use super::stage::{Stage, Told};

/// What the kernel says when it has no memory for a map's entry or a program, and when it may not.
const ERRNOS: [Errno; 2] = [Errno::ENOMEM, Errno::EPERM];

/// A number of which no call is: it lets all go, and they are counted.
const NONE: (u64, Fate) = (u64::MAX, Fate::Kill);

/// All of `calls`, or as many at random as the extent says.
fn some_of(stage: &mut Stage<'_>, calls: u64) -> Vec<u64> {
    let mut chosen = stage.random.choose_multiple(0..calls, stage.extent.calls);
    chosen.sort_unstable();
    chosen
}

/// Calls at the begin and at the end of a DEL, where each removes another thing. In between are those for the
/// slots of listeners, which are all alike.
const EDGE: u16 = 10;

/// Each call of an ADD, and of a DEL, refused. An ADD must fail and leave nothing, or succeed wholly.
pub(crate) fn refused(stage: &mut Stage<'_>) -> Result<Told> {
    let gate = BpfGate::new()?;
    stage.relaunch(Launch::new().before_bpf_gate(&gate))?;
    let pods = stage.bare_pods("refused", 1)?;
    let [pod] = pods.as_slice() else { return Err(anyhow::anyhow!("one pod was made")) };
    let before = stage.entries()?;
    gate.choose(NONE.0, NONE.1);
    ensure!(stage.ask_add(pod)? == Reply::Done, "ADD without any refusal");
    let calls = gate.open();
    stage.del(pod)?;
    let (mut times, mut failed) = (0, 0);
    for number in some_of(stage, calls) {
        for errno in ERRNOS {
            gate.choose(number, Fate::Fail(errno));
            let reply = stage.ask_add(pod)?;
            gate.open();
            times += 1;
            if reply == Reply::Done {
                ensure!(
                    stage.is_enrolled(pod)?,
                    "ADD said done with call {number} refused, and CHECK finds a fault"
                );
                stage.del(pod)?;
            } else {
                failed += 1;
                ensure!(
                    !stage.is_enrolled(pod)?,
                    "call {number} refused: ADD failed, and the pod is enrolled"
                );
            }
            let left = stage.entries()?;
            ensure!(
                left == before,
                "call {number} of ADD refused by {errno}: before {before:?}, after {left:?}"
            );
        }
    }
    stage.forget(&pods)?;
    Ok(Told { times, seen: format!("of {calls} calls of an ADD; {failed} ADDs failed and left nothing") })
}

/// Each call of a DEL refused. What cannot be taken away stays until the agent's next start, and no longer.
pub(crate) fn refused_in_del(stage: &mut Stage<'_>) -> Result<Told> {
    let gate = BpfGate::new()?;
    stage.relaunch(Launch::new().before_bpf_gate(&gate))?;
    let pods = stage.bare_pods("kept", 2 * EDGE)?;
    let counted = pods.first().context("no pod was made")?;
    stage.add(counted)?;
    gate.choose(NONE.0, NONE.1);
    stage.del(counted)?;
    let (calls, edge) = (gate.open(), u64::from(EDGE));
    let mut chosen = some_of(stage, calls);
    // Last, and for each another pod: what they leave is not taken away by the next ADD.
    chosen.extend((0..edge.min(calls)).chain(calls.saturating_sub(edge)..calls));
    for (number, pod) in chosen.iter().rev().zip(pods.iter().cycle()).collect::<Vec<_>>().into_iter().rev() {
        stage.add(pod)?;
        gate.choose(*number, Fate::Fail(Errno::EPERM));
        stage.del(pod)?;
        gate.open();
    }
    stage.forget(&pods)?;
    let times = u64::try_from(chosen.len()).unwrap_or_default();
    Ok(Told { times, seen: format!("of {calls} calls of a DEL; the next agent removes what stayed") })
}

/// Each call of the agent's start refused: it starts all the same, or ends and says why.
pub(crate) fn refused_at_start(stage: &mut Stage<'_>) -> Result<Told> {
    let gate = BpfGate::new()?;
    stage.relaunch(Launch::new().before_bpf_gate(&gate))?;
    let calls = calls_of_a_start(stage, &gate)?;
    let (mut times, mut ended) = (0, 0);
    for number in some_of(stage, calls) {
        stage.agent.kill()?;
        let Some(errno) = ERRNOS.get(usize::from(stage.random.bool())) else { continue };
        gate.choose(number, Fate::Fail(*errno));
        stage.agent.begin_again()?;
        if let Some(status) = ready_or_ended(stage)? {
            ended += 1;
            let log = stage.agent.log();
            ensure!(
                status.code() == Some(70),
                "call {number} refused by {errno}: ended with {status}\n{log}"
            );
            let reason = log.lines().last().unwrap_or_default();
            ensure!(
                reason.starts_with("veer: "),
                "call {number} refused by {errno}: the last line is {reason:?}"
            );
        }
        gate.open();
        times += 1;
    }
    Ok(Told { times, seen: format!("of {calls} calls of a start; {ended} agents ended and said why") })
}

/// The agent dies at each call of its start, and at each of an ADD: the next one puts it right.
pub(crate) fn died(stage: &mut Stage<'_>) -> Result<Told> {
    let gate = BpfGate::new()?;
    stage.relaunch(Launch::new().before_bpf_gate(&gate))?;
    let pods = stage.bare_pods("orphan", 1)?;
    let [pod] = pods.as_slice() else { return Err(anyhow::anyhow!("one pod was made")) };
    let at_start = calls_of_a_start(stage, &gate)?;
    let mut times = 0;
    for number in some_of(stage, at_start) {
        stage.agent.kill()?;
        gate.choose(number, Fate::Kill);
        stage.agent.begin_again()?;
        ready_or_ended(stage)?;
        gate.open();
        times += 1;
    }
    stage.agent.kill()?;
    stage.agent.start_again()?;
    stage.agent.wait_settled()?;
    let before = stage.entries()?;
    gate.choose(NONE.0, NONE.1);
    stage.add(pod)?;
    let in_add = gate.open();
    stage.del(pod)?;
    let mut died_in_add = 0;
    for number in some_of(stage, in_add) {
        gate.choose(number, Fate::Kill);
        let reply = stage.ask_add(pod);
        if reply.is_ok() {
            // The ADD that was counted had a look of the agent's own at the node in between.
            gate.open();
            stage.del(pod)?;
            continue;
        }
        stage.agent.process_mut().wait()?;
        gate.open();
        stage.agent.start_again()?;
        stage.agent.wait_settled()?;
        // Whether it was brought to its end or not.
        stage.del(pod)?;
        let left = stage.entries()?;
        ensure!(left == before, "died at call {number} of ADD: before {before:?}, after {left:?}");
        times += 1;
        died_in_add += 1;
    }
    stage.forget(&pods)?;
    ensure!(died_in_add > 0, "the agent died in no ADD, of {in_add} calls");
    Ok(Told { times, seen: format!("at {at_start} calls of a start, {in_add} of an ADD") })
}

fn calls_of_a_start(stage: &mut Stage<'_>, gate: &BpfGate) -> Result<u64> {
    stage.agent.kill()?;
    gate.choose(NONE.0, NONE.1);
    stage.agent.start_again()?;
    stage.agent.wait_settled()?;
    Ok(gate.open())
}

/// Waits until the agent serves or has ended; how it ended, if it did.
fn ready_or_ended(stage: &mut Stage<'_>) -> Result<Option<std::process::ExitStatus>> {
    let mut status = None;
    wait::until("the agent to serve or to end", wait::LIMIT, || {
        status = stage.agent.process_mut().ended().ok().flatten();
        status.is_some() || stage.agent.ask(Verb::Status).is_ok()
    })?;
    Ok(status)
}
