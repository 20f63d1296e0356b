//! What the node says of us: the condition `VeerReady`, and, where it is asked for, the taint that keeps pods away from a node
//! that could not redirect them.
//!
//! Owns: the condition and our own taint, whoever has put it there. Never does: touch another one, or evict a pod: the
//! taint that it puts back is `NoSchedule`. Called by: `app`.
//!
//! A condition is written when it changes and each five minutes, as the node problem detector does it: who reads it sees by
//! its age whether anybody still says so. While not all is known, and nothing fails, nothing is written: the start of an
//! agent is no news, and one that ends says nothing, because its successor does, seconds later.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::core::Request;
use kube::core::params::{GetParams, Patch, PatchParams};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::client::{ApiError, ApiServer};
use crate::readiness::{Changes, Readiness, Verdict};

/// The taint's key.
pub const TAINT: &str = "veer.dev/agent-not-ready";
/// The condition's type.
const CONDITION: &str = "VeerReady";
/// How often a condition is written that does not change.
const HEARTBEAT: Duration = Duration::from_mins(5);
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts.
const AGAIN: Duration = Duration::from_secs(5);
/// HTTP 409: somebody else has written in between.
const CONFLICT: u16 = 409;
/// Between two attempts where the API server says no: rights do not come by asking often, but an API server that has just
/// started does not know its roles yet.
const AGAIN_FORBIDDEN: Duration = Duration::from_secs(30);
/// HTTP 403.
const FORBIDDEN: u16 = 403;

/// Least time between two writings: conditions that change all the time are not the API server's burden.
const PACE: Duration = Duration::from_secs(1);
/// How often a taint is tried where somebody else writes the node at the same moments; then it is left until [`AGAIN`].
const TRIES: u32 = 6;
/// Wait before the second of them; each further one is twice as long.
const FIRST: Duration = Duration::from_millis(50);

/// Keeps the node's condition and taint what they ought to be.
#[derive(Debug)]
pub struct NodeMarks {
    /// The node's name.
    pub node: String,
    /// The API server.
    pub server: Arc<ApiServer>,
    /// Whether the taint is ours to keep.
    pub taint: bool,
    /// What to say.
    pub readiness: Readiness,
}

impl NodeMarks {
    /// Writes until `stop`.
    pub async fn serve(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.keep()).await;
    }

    async fn keep(&self) {
        let mut changes = self.readiness.changes();
        let mut written: Option<(bool, Timestamp)> = None;
        let mut last_problem = String::new();
        loop {
            let verdict = self.next(&mut changes, None).await;
            let is_ready = verdict == Verdict::Ready;
            let now = Timestamp::now();
            let since = written.filter(|(was, _)| *was == is_ready).map_or(now, |(_, since)| since);
            let outcome = self.write(&verdict, since).await;
            let wait = match &outcome {
                Ok(()) => {
                    written = Some((is_ready, since));
                    HEARTBEAT
                }
                Err(error) if error.code() == Some(FORBIDDEN) => AGAIN_FORBIDDEN,
                Err(_) => AGAIN,
            };
            let problem = outcome.err().map_or_else(String::new, |error| error.to_string());
            if !problem.is_empty() && problem != last_problem {
                tracing::warn!(node = %self.node, %problem, "write the node's condition or taint");
            }
            last_problem = problem;
            sleep(PACE).await;
            drop(timeout(wait, self.next(&mut changes, Some(&verdict))).await);
        }
    }

    /// What is to be said, once that is known and is not what was said before.
    async fn next(&self, changes: &mut Changes, before: Option<&Verdict>) -> Verdict {
        loop {
            match self.readiness.verdict() {
                Some(verdict) if before != Some(&verdict) => return verdict,
                Some(_) | None => changes.next().await,
            }
        }
    }

    /// The taint first where the node is not ready, so that fewer pods come; last where it is.
    async fn write(&self, verdict: &Verdict, since: Timestamp) -> Result<(), ApiError> {
        let is_ready = *verdict == Verdict::Ready;
        if self.taint && !is_ready {
            self.set_taint(true).await?;
        }
        self.set_condition(verdict, since).await?;
        if self.taint && is_ready {
            self.set_taint(false).await?;
        }
        Ok(())
    }

    async fn set_condition(&self, verdict: &Verdict, since: Timestamp) -> Result<(), ApiError> {
        let (status, reason, message) = told(verdict);
        // Conditions are merged by their type: others stay.
        let patch = json!({"status": {"conditions": [{
            "type": CONDITION,
            "status": status,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": seconds(Timestamp::now()),
            "lastTransitionTime": seconds(since),
        }]}});
        let params = PatchParams::default();
        let request =
            Request::new(NODES).patch_subresource("status", &self.node, &params, &Patch::Strategic(patch));
        self.server.ask::<IgnoredAny>(request.map_err(unbuilt)?, PATIENCE).await.map(|_node| ())
    }

    /// Taints are one list that is written as a whole, so what was read goes with it: if somebody else has written in
    /// between, it is read again, a few times.
    async fn set_taint(&self, is_wanted: bool) -> Result<(), ApiError> {
        let mut wait = FIRST;
        for attempt in 1.. {
            match self.try_taint(is_wanted).await {
                Err(error) if error.code() == Some(CONFLICT) && attempt < TRIES => {
                    // Whoever else lost against the same writer tries again, too.
                    sleep(wait.mul_f64(0.5 + fastrand::f64())).await;
                    wait *= 2;
                }
                outcome => return outcome,
            }
        }
        Ok(())
    }

    async fn try_taint(&self, is_wanted: bool) -> Result<(), ApiError> {
        let request = Request::new(NODES).get(&self.node, &GetParams::default()).map_err(unbuilt)?;
        let node: WireNode = self.server.ask(request, PATIENCE).await?;
        let Some(taints) = changed(node.spec.taints, is_wanted) else { return Ok(()) };
        let version = node.metadata.resource_version;
        let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}});
        let request = Request::new(NODES).patch(&self.node, &PatchParams::default(), &Patch::Merge(patch));
        self.server.ask::<IgnoredAny>(request.map_err(unbuilt)?, PATIENCE).await?;
        let action = if is_wanted { "put back" } else { "removed" };
        tracing::info!(node = %self.node, taint = TAINT, action, "the node's taint");
        Ok(())
    }
}

/// Status, a word for machines, and a text for people. The word is the first thing that is wrong; the text has all.
fn told(verdict: &Verdict) -> (&'static str, &'static str, String) {
    match verdict {
        Verdict::Ready => ("True", "PodsAreRedirected", "pods that are created are redirected".to_owned()),
        Verdict::NotReady { first, problem } => {
            let reason = match *first {
                "cni" => "NotInCniConfiguration",
                "datapath" => "DatapathBroken",
                "node" => "AgentStuck",
                "pods" => "PodsNotKnown",
                "socket" => "PluginNotAnswered",
                _ => "NotReady",
            };
            ("False", reason, shortened(problem).to_owned())
        }
    }
}

/// A verifier's log, for one, is longer than anybody reads in a node's description.
fn shortened(text: &str) -> &str {
    const LONGEST: usize = 1024;
    let end = (0..=LONGEST.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.get(..end).unwrap_or(text)
}

const NODES: &str = "/api/v1/nodes";

#[derive(Debug, Deserialize)]
struct WireNode {
    metadata: WireMetadata,
    #[serde(default)]
    spec: WireSpec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireMetadata {
    resource_version: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireSpec {
    /// As they come, so that they go back as they came.
    taints: Vec<Value>,
}

/// The taints with or without ours; `None` if that is no change.
fn changed(mut taints: Vec<Value>, is_wanted: bool) -> Option<Vec<Value>> {
    let is_ours = |taint: &Value| taint.get("key").is_some_and(|key| key == TAINT);
    let is_there = taints.iter().any(is_ours);
    if is_there == is_wanted {
        return None;
    }
    if is_wanted {
        taints.push(json!({"key": TAINT, "effect": "NoSchedule"}));
    } else {
        taints.retain(|taint| !is_ours(taint));
    }
    Some(taints)
}

/// As Kubernetes writes times that are no micro times.
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn unbuilt(error: kube::core::request::Error) -> ApiError {
    kube::Error::BuildRequest(error).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_taint_comes_and_goes() {
        let other = || json!({"key": "a", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"});
        let registered = || json!({"key": TAINT, "value": "true", "effect": "NoExecute"});
        let put_back = json!({"key": TAINT, "effect": "NoSchedule"});
        assert_eq!(changed(vec![other()], true), Some(vec![other(), put_back]));
        assert_eq!(changed(vec![registered(), other()], false), Some(vec![other()]));
        assert_eq!(changed(vec![registered()], true), None, "as the kubelet has registered it");
        assert_eq!(changed(vec![other()], false), None);
    }

    #[test]
    fn the_first_thing_that_is_wrong_is_the_reason_and_all_are_the_message() {
        let verdict =
            Verdict::NotReady { first: "cni", problem: format!("cni: gone; pods: {}", "ä".repeat(600)) };
        let (status, reason, message) = told(&verdict);
        assert_eq!((status, reason), ("False", "NotInCniConfiguration"));
        assert!(message.starts_with("cni: gone; pods: ") && message.len() <= 1024, "{message}");
        assert_eq!(told(&Verdict::Ready).0, "True");
    }

    #[test]
    fn times_are_written_as_kubernetes_reads_them() {
        assert_eq!(seconds(Timestamp::from_second(1_700_000_000).unwrap()), "2023-11-14T22:13:20Z");
    }
}
