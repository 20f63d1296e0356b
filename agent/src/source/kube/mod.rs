//! Pods from the API server: those of this node, as a watch tells of them.
//!
//! Owns: what is known of the node's pods, and asking once for one that is not known yet. Never does: a request for a
//! pod that the watch has told of, or anything on a timer. Called by: enrolment.
//!
//! The kubelet hears of a pod at the moment that we do, and is much slower. So an ADD nearly always finds its pod here;
//! where it does not, it waits a moment for the watch, and then asks for that one pod. While the API server is away, what is
//! known stays known: the pods of the node, to the last change before. An agent that starts then knows nothing but who
//! is enrolled, and refuses to guess about others.

mod follow;
mod outage;
mod store;
mod wire;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use kube::core::Request;
use kube::core::params::GetParams;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use veer_common::cni::PodReference;

use self::outage::{Change, Standing, State};
use self::store::{Found, Store};
use self::wire::Wire;
use super::{PodSource, SourceChanges, SourceError, SourceHealth, SourceState};
use crate::cluster::client::{ApiError, ApiServer};
use crate::model::Pod;
use crate::model::manifest::could_name_a_pod;
use crate::readiness::Condition;
use crate::wall_clock;

/// How long an ADD waits for the watch to tell of its pod.
const AWAITED: Duration = Duration::from_secs(2);
/// How long the API server may take to answer for one pod; the plugin waits longer than for both.
const ANSWERED: Duration = Duration::from_secs(5);
/// Pods that are asked for at the same time, so that a node that starts asks no more than this.
const ASKED_AT_ONCE: usize = 8;

/// The pods of one node, from the API server.
#[derive(Clone, Debug)]
pub struct Kube(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node: String,
    server: Arc<ApiServer>,
    give_back: fn(),
    store: Store,
    standing: Mutex<Standing>,
    current: Condition,
    asking: Semaphore,
    counts: Counts,
}

/// What has been done, since the start.
#[derive(Debug, Default)]
struct Counts {
    lists: AtomicU64,
    failures: AtomicU64,
    lookups: AtomicU64,
    added: AtomicU64,
    modified: AtomicU64,
    deleted: AtomicU64,
}

impl Kube {
    /// The pods of this node. Nothing is known until [`follow`](Self::follow) runs.
    /// A list is some megabytes for a moment; `give_back` is called after it. `current` is the condition that a pod which
    /// is created now would be known.
    pub fn new(node: String, server: Arc<ApiServer>, current: Condition, give_back: fn()) -> Self {
        Self(Arc::new(Inner {
            node,
            server,
            give_back,
            store: Store::new(),
            standing: Mutex::new(Standing::new(wall_clock::now())),
            current,
            asking: Semaphore::new(ASKED_AT_ONCE),
            counts: Counts::default(),
        }))
    }

    /// Watches until `stop`.
    pub async fn follow(self, stop: CancellationToken) {
        stop.run_until_cancelled(follow::follow(&self.0)).await;
    }
}

impl PodSource for Kube {
    fn name(&self) -> String {
        format!("kube, pods of node {}", self.0.node)
    }

    async fn pod(&self, reference: &PodReference) -> Result<Option<Pod>, SourceError> {
        if !could_name_a_pod(&reference.namespace, &reference.name) {
            return Ok(None);
        }
        match self.0.known(reference).await {
            Some(pod) => Ok(Some(pod)),
            None => self.0.ask(reference).await,
        }
    }

    async fn pods(&self) -> Result<Vec<Pod>, SourceError> {
        Ok(self.0.store.pods())
    }

    fn health(&self) -> Option<SourceHealth> {
        let standing = self.0.standing();
        let (state, problem) = match standing.state() {
            State::Starting(problem) => (SourceState::Starting, problem.clone()),
            State::Synced => (SourceState::Synced, None),
            State::Degraded(problem) => (SourceState::Degraded, Some(problem.clone())),
        };
        let since = standing.since().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = &self.0.counts;
        Some(SourceHealth {
            state,
            since,
            problem,
            pods: self.0.store.len(),
            lists: count(&counts.lists),
            failures: count(&counts.failures),
            lookups: count(&counts.lookups),
            changes: SourceChanges {
                added: count(&counts.added),
                modified: count(&counts.modified),
                deleted: count(&counts.deleted),
            },
        })
    }

    async fn worth_a_look(&self) -> std::collections::BTreeSet<String> {
        self.0.store.worth_a_look().await
    }
}

impl Inner {
    fn standing(&self) -> Standing {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The pod out of what is known; if it is not, and may be soon, a moment later.
    async fn known(&self, reference: &PodReference) -> Option<Pod> {
        let mut changes = self.store.subscribe();
        let mut has_waited = false;
        let known = async {
            loop {
                changes.mark_unchanged();
                if let Found::Pod(pod) = self.store.find(reference) {
                    return Some(*pod);
                }
                if !self.standing().is_promising() {
                    return None;
                }
                if !std::mem::replace(&mut has_waited, true) {
                    tracing::info!(pod = %reference.name, "the runtime is early: waits for its pod");
                }
                if changes.changed().await.is_err() {
                    return None;
                }
            }
        };
        timeout(AWAITED, known).await.ok().flatten()
    }

    /// The pod out of the API server's answer.
    async fn ask(&self, reference: &PodReference) -> Result<Option<Pod>, SourceError> {
        let pod = || format!("{}/{}", reference.namespace, reference.name);
        let failed = |problem: String| SourceError::Api {
            server: self.server.url(),
            pod: pod(),
            problem,
            watch: watch_problem(self.standing().state()),
        };
        let path = format!("/api/v1/namespaces/{}/pods", reference.namespace);
        let request = Request::new(path).get(&reference.name, &GetParams::default());
        let request = request.map_err(|error| failed(error.to_string()))?;
        let asked = async {
            let _turn = self.asking.acquire().await;
            self.counts.lookups.fetch_add(1, Ordering::Relaxed);
            self.server.ask::<Wire>(request, ANSWERED).await
        };
        let answer = timeout(ANSWERED, asked).await.unwrap_or(Err(ApiError::Timeout(ANSWERED)));
        let seen = match answer {
            Ok(wire) => wire.reduce(),
            Err(error) if error.code() == Some(404) => return Ok(None),
            Err(error) => return Err(failed(error.to_string())),
        };
        match store::same_uid(&seen.pod, reference) {
            Found::Pod(pod) => Ok(Some(*pod)),
            Found::None => Ok(None),
            Found::Another(found) => Err(SourceError::Replaced {
                pod: pod(),
                found,
                wanted: reference.uid.clone().unwrap_or_default(),
            }),
        }
    }

    /// The server watches for us.
    fn succeeded(&self) {
        let change = self.change(|standing| standing.succeeded(wall_clock::now()));
        if let Some(Change::Synced(after)) = change {
            let pods = self.store.len();
            tracing::info!(node = %self.node, pods, after = after.as_secs_f32(), "the node's pods are known");
        }
    }

    /// An attempt has failed, or the watch has broken.
    fn failed(&self, problem: String) {
        self.counts.failures.fetch_add(1, Ordering::Relaxed);
        let change = self.change(|standing| standing.failed(wall_clock::now(), problem));
        if let Some(Change::Failing(problem)) = change {
            let pods = self.store.len();
            tracing::warn!(node = %self.node, pods, %problem, "the API server does not tell of changes; what is known stays");
        }
    }

    fn change(&self, by: impl FnOnce(&mut Standing) -> Option<Change>) -> Option<Change> {
        let change = by(&mut self.standing.lock().unwrap_or_else(PoisonError::into_inner));
        if change.is_some() {
            self.tell();
            self.store.wake();
        }
        change
    }

    /// Whether a pod that is created now would be known.
    fn tell(&self) {
        match self.standing().state() {
            State::Synced => self.current.holds(),
            State::Starting(None) => {}
            State::Starting(Some(problem)) => {
                self.current.fails(&format!("the node's pods are not known yet: {problem}"));
            }
            State::Degraded(problem) => {
                self.current.fails(&format!("the API server does not tell of new pods: {problem}"));
            }
        }
    }
}

fn watch_problem(state: &State) -> String {
    match state {
        State::Synced => "the watch has not told of it".to_owned(),
        State::Starting(None) => "the watch is being made".to_owned(),
        State::Starting(Some(problem)) | State::Degraded(problem) => format!("the watch fails: {problem}"),
    }
}
