//! Kubernetes Events on pods: what `kubectl describe pod` shows of us.
//!
//! Owns: their form (`events.k8s.io/v1`), and writing them, one after the other. Never does: write anything else of a pod, or
//! make anybody wait: who has something to tell puts a [`Notice`] into a queue. Called by: `app`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::core::Request;
use kube::core::params::PostParams;
use serde::de::IgnoredAny;
use tokio::sync::mpsc::Receiver;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::client::{ApiError, ApiServer};
use super::notice::{Counts, Notice, Notices, Pace, Said};

/// Who says it.
const CONTROLLER: &str = "veer.dev/agent";
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts while it is away.
const AGAIN: Duration = Duration::from_secs(5);
/// Attempts: an outage of a minute loses nothing that fits into the queue.
const ATTEMPTS: u32 = 15;
/// Longest text in bytes that the API server takes.
const LONGEST: usize = 1024;
/// HTTP 409: it is there already.
const CONFLICT: u16 = 409;
/// Attempts where the API server says no: one that has just started does not know its roles yet.
const ATTEMPTS_FORBIDDEN: u32 = 4;

/// Writes what is in the queue.
#[derive(Debug)]
pub struct Writer {
    node: String,
    server: Arc<ApiServer>,
    queue: Receiver<Notice>,
    counts: Arc<Counts>,
}

/// A queue, and who writes what is in it.
pub fn writer(node: String, server: Arc<ApiServer>) -> (Notices, Writer) {
    let (notices, queue, counts) = Notices::queue();
    (notices, Writer { node, server, queue, counts })
}

impl Writer {
    /// Writes until `stop`.
    pub async fn serve(mut self, stop: CancellationToken) {
        stop.run_until_cancelled(self.write_all()).await;
    }

    async fn write_all(&mut self) {
        let (mut said, mut pace) = (Said::default(), Pace::new(Instant::now()));
        let mut last_problem = String::new();
        while let Some(notice) = self.queue.recv().await {
            if !said.is_news(&notice, Instant::now()) {
                self.counts.repeated.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            sleep(pace.take(Instant::now())).await;
            match self.write(&notice).await {
                Ok(()) => {
                    self.counts.written.fetch_add(1, Ordering::Relaxed);
                    last_problem.clear();
                }
                Err(error) => {
                    self.counts.dropped.fetch_add(1, Ordering::Relaxed);
                    let problem = error.to_string();
                    if problem != last_problem {
                        tracing::warn!(%problem, "write an event of a pod; the log has what it says");
                    }
                    last_problem = problem;
                }
            }
        }
    }

    async fn write(&self, notice: &Notice) -> Result<(), ApiError> {
        let event = event(notice, &self.node);
        let mut attempts = 0;
        loop {
            attempts += 1;
            let outcome = self.send(&notice.pod.namespace, &event).await;
            let Err(error) = outcome else { return Ok(()) };
            if error.code() == Some(CONFLICT) && notice.kind.is_said_once() {
                return Ok(());
            }
            let most = match error.code() {
                // What it has judged, it judges so again; 429 says when to come back.
                Some(403) => ATTEMPTS_FORBIDDEN,
                Some(400..=428 | 430..=499) => 1,
                Some(_) | None => ATTEMPTS,
            };
            if attempts >= most {
                return Err(error);
            }
            sleep(AGAIN).await;
        }
    }

    async fn send(&self, namespace: &str, event: &Event) -> Result<(), ApiError> {
        let body = serde_json::to_vec(event).map_err(ApiError::Answer)?;
        let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
        let request = Request::new(path).create(&PostParams::default(), body);
        let request = request.map_err(|error| ApiError::from(kube::Error::BuildRequest(error)))?;
        self.server.ask::<IgnoredAny>(request, PATIENCE).await.map(|_written| ())
    }
}

fn event(notice: &Notice, node: &str) -> Event {
    let Notice { pod, kind, text } = notice;
    let some = |text: &str| Some(text.to_owned());
    let now = Timestamp::now();
    Event {
        metadata: ObjectMeta {
            // As client-go names them. `generateName` would have to be a name by itself, and this one ends in a dot.
            name: Some(name(notice, now)),
            namespace: some(&pod.namespace),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        action: some("Redirect"),
        reason: some(kind.reason()),
        note: some(shortened(text)),
        type_: some(if kind.is_warning() { "Warning" } else { "Normal" }),
        reporting_controller: some(CONTROLLER),
        // No more than 128 characters; nodes of longer names are told by their beginning.
        reporting_instance: Some(node.chars().take(128).collect()),
        regarding: Some(ObjectReference {
            api_version: some("v1"),
            kind: some("Pod"),
            namespace: some(&pod.namespace),
            name: some(&pod.name),
            uid: pod.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}

/// By the time; what is said only once by the pod's uid, so that the API server knows it again.
fn name(notice: &Notice, now: Timestamp) -> String {
    let Notice { pod, kind, .. } = notice;
    match pod.uid.as_deref().filter(|_| kind.is_said_once()) {
        Some(uid) => format!("{}.{}", pod.name, uid.replace('-', "")),
        None => format!("{}.{:x}", pod.name, now.as_nanosecond()),
    }
}

fn shortened(text: &str) -> &str {
    let end = (0..=LONGEST.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.get(..end).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use veer_common::cni::PodReference;

    use super::*;
    use crate::cluster::notice::NoticeKind;

    #[test]
    fn an_event_says_of_whom_by_whom_and_how_bad() {
        let pod = PodReference {
            namespace: "shop".to_owned(),
            name: "cart".to_owned(),
            uid: Some("u-1".to_owned()),
        };
        let once = Notice { pod: pod.clone(), kind: NoticeKind::BeforeProxy, text: String::new() };
        assert_eq!(name(&once, Timestamp::now()), "cart.u1");
        let notice = Notice { pod, kind: NoticeKind::Failed, text: "ä".repeat(600) };
        let event = serde_json::to_value(event(&notice, "node-1")).unwrap();
        assert_eq!(event["regarding"]["uid"], "u-1");
        assert_eq!((&event["type"], &event["reason"]), (&"Warning".into(), &"VeerFailed".into()));
        assert_eq!(event["reportingInstance"], "node-1");
        assert_eq!(event["note"].as_str().map(str::len), Some(1024));
        assert!(event["eventTime"].as_str().is_some_and(|time| time.ends_with('Z')), "{event}");
    }
}
