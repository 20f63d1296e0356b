//! What the node says of us: the condition `VeerReady`, and, where it is asked for, the taint that keeps pods away from a node
//! that could not redirect them.
//!
//! Owns: the condition and our own taint, whoever has put it there. Never does: touch another one, or evict a pod: the
//! taint that it puts back is `NoSchedule`. Called by: `app`.
//!
//! A condition is written when it changes and five minutes, as the node problem detector does it: who reads it sees by
//! its age whether anybody still says so. An agent that ends says nothing: its successor does, seconds later.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::core::Request;
use kube::core::params::{GetParams, Patch, PatchParams};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::client::{ApiError, ApiServer};

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

/// Whether a pod that is created now would be enrolled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Readiness {
    /// Whether it would.
    pub is_ready: bool,
    /// One word in CamelCase, for machines.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// Keeps the node's condition and taint what they ought to be.
#[derive(Debug)]
pub struct NodeMarks {
    /// The node's name.
    pub node: String,
    /// The API server.
    pub server: Arc<ApiServer>,
    /// Whether the taint is ours to keep.
    pub taint: bool,
    /// What to say; nothing while it is not known, so that the start of an agent is no news.
    pub readiness: watch::Receiver<Option<Readiness>>,
}

impl NodeMarks {
    /// Writes until `stop`.
    pub async fn serve(mut self, stop: CancellationToken) {
        stop.run_until_cancelled(self.keep()).await;
    }

    async fn keep(&mut self) {
        let mut written: Option<(bool, Timestamp)> = None;
        let mut last_problem = String::new();
        loop {
            let Some(readiness) = self.readiness.borrow_and_update().clone() else {
                if self.readiness.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let now = Timestamp::now();
            let since = written.filter(|(was, _)| *was == readiness.is_ready).map_or(now, |(_, since)| since);
            let outcome = self.write(&readiness, since).await;
            let wait = match &outcome {
                Ok(()) => {
                    written = Some((readiness.is_ready, since));
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
            if let Ok(Err(_closed)) = timeout(wait, self.readiness.changed()).await {
                return;
            }
        }
    }

    /// The taint first where the node is not ready, so that fewer pods come; last where it is.
    async fn write(&self, readiness: &Readiness, since: Timestamp) -> Result<(), ApiError> {
        if self.taint && !readiness.is_ready {
            self.set_taint(true).await?;
        }
        self.set_condition(readiness, since).await?;
        if self.taint && readiness.is_ready {
            self.set_taint(false).await?;
        }
        Ok(())
    }

    async fn set_condition(&self, readiness: &Readiness, since: Timestamp) -> Result<(), ApiError> {
        // Conditions are merged by their type: others stay.
        let patch = json!({"status": {"conditions": [{
            "type": CONDITION,
            "status": if readiness.is_ready { "True" } else { "False" },
            "reason": readiness.reason,
            "message": readiness.message,
            "lastHeartbeatTime": seconds(Timestamp::now()),
            "lastTransitionTime": seconds(since),
        }]}});
        let params = PatchParams::default();
        let request =
            Request::new(NODES).patch_subresource("status", &self.node, &params, &Patch::Strategic(patch));
        self.server.ask::<IgnoredAny>(request.map_err(unbuilt)?, PATIENCE).await.map(|_node| ())
    }

    /// Taints are one list that is written as a whole, so what was read goes with it: if somebody else has written in
    /// between, it is read again.
    async fn set_taint(&self, is_wanted: bool) -> Result<(), ApiError> {
        loop {
            let request = Request::new(NODES).get(&self.node, &GetParams::default()).map_err(unbuilt)?;
            let node: WireNode = self.server.ask(request, PATIENCE).await?;
            let Some(taints) = changed(node.spec.taints, is_wanted) else { return Ok(()) };
            let version = node.metadata.resource_version;
            let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}});
            let request =
                Request::new(NODES).patch(&self.node, &PatchParams::default(), &Patch::Merge(patch));
            match self.server.ask::<IgnoredAny>(request.map_err(unbuilt)?, PATIENCE).await {
                Ok(_node) => {
                    let action = if is_wanted { "put back" } else { "removed" };
                    tracing::info!(node = %self.node, taint = TAINT, action, "the node's taint");
                    return Ok(());
                }
                Err(error) if error.code() == Some(CONFLICT) => sleep(Duration::from_millis(100)).await,
                Err(error) => return Err(error),
            }
        }
    }
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
    fn times_are_written_as_kubernetes_reads_them() {
        assert_eq!(seconds(Timestamp::from_second(1_700_000_000).unwrap()), "2023-11-14T22:13:20Z");
    }
}
