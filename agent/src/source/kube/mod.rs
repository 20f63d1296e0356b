//! Pods from the API server: those of this node, as a watch tells of them.
//!
//! Owns: what is known of the node's pods, and asking once for one that is not known yet. Never does: a request for a
//! pod that the watch has told of, or anything on a timer. Called by: enrolment.
//!
//! The kubelet hears of a pod at the moment that we do, and is much slower. So an ADD nearly always finds its pod here;
//! where it does not, it waits a moment for the watch, and then asks for that one pod. While the API server is away, what is
//! known stays known: the pods of the node, to the last change before. An agent that starts then knows nothing but who
//! is enrolled, and refuses to guess about others.
//!
//! Where namespaces count ([`Namespaces`]) a second watch tells of them, and all of this holds for a pod's namespace as it
//! does for the pod: nothing orders the two watches, so the first pod of a new namespace may be there before it.

mod follow;
mod outage;
mod resources;
mod store;
mod watched;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use http::Request as HttpRequest;
use kube::core::Request;
use kube::core::params::GetParams;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use veer_common::cni::PodReference;

use self::follow::Follower;
use self::outage::{Standing, State};
use self::resources::NAMESPACES;
use self::store::{Found, Store};
use self::watched::Watched;
use self::wire::{Wire, WireNamespace};
use super::{Namespaces, NamespacesHealth, PodSource, SourceChanges, SourceError, SourceHealth, SourceState};
use crate::cluster::client::{ApiError, ApiServer};
use crate::model::Pod;
use crate::model::manifest::could_name_a_pod;
use crate::readiness::Condition;

/// How long an ADD waits for the watches to tell of its pod and namespace.
const AWAITED: Duration = Duration::from_secs(2);
/// How long the API server may take to answer for one pod and its namespace; the plugin waits longer than for both times.
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
    pods: Watched,
    /// Where they count.
    namespaces: Option<Watched>,
    asking: Semaphore,
}

/// The conditions that a pod which is created now would be known.
#[derive(Debug)]
pub struct Current {
    /// That pods are.
    pub pods: Condition,
    /// That namespaces are, where they count.
    pub namespaces: Option<Condition>,
}

impl Kube {
    /// The pods of this node. Nothing is known until [`follow`](Self::follow) runs.
    /// A list is some megabytes for a moment; `give_back` is called after it. Namespaces count if they have a condition.
    pub fn new(node: String, server: Arc<ApiServer>, current: Current, give_back: fn()) -> Self {
        let Current { pods, namespaces } = current;
        let counting = if namespaces.is_some() { Namespaces::Read } else { Namespaces::Unread };
        Self(Arc::new(Inner {
            node,
            server,
            give_back,
            store: Store::new(counting),
            pods: Watched::new("the node's pods", pods),
            namespaces: namespaces.map(|current| Watched::new("namespaces", current)),
            asking: Semaphore::new(ASKED_AT_ONCE),
        }))
    }

    /// Watches until `stop`.
    pub async fn follow(self, stop: CancellationToken) {
        let Inner { node, server, give_back, store, pods, namespaces, .. } = &*self.0;
        let (server, give_back) = (&**server, *give_back);
        let pods = Follower { server, give_back, resource: resources::Pods { node, store, watched: pods } };
        let namespaces = async {
            if let Some(watched) = namespaces {
                let resource = resources::Namespaces { store, watched };
                Follower { server, give_back, resource }.follow().await;
            }
        };
        stop.run_until_cancelled(futures_util::future::join(pods.follow(), namespaces)).await;
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
        let by = |patience| Instant::now() + patience;
        match self.0.known(reference).await {
            Found::Pod(pod) => Ok(Some(*pod)),
            Found::WithoutNamespace(pod) => self.0.ask_namespace(*pod, by(ANSWERED)).await,
            Found::Another(_) | Found::None => self.0.ask(reference, by(ANSWERED)).await,
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
        let counts = &self.0.pods.counts;
        let of_namespaces = self.0.namespaces.as_ref().map(|watched| &watched.counts);
        let namespaces = of_namespaces.map(|counts| NamespacesHealth {
            known: self.0.store.namespaces().unwrap_or_default(),
            lists: count(&counts.lists),
            lookups: count(&counts.lookups),
        });
        Some(SourceHealth {
            state,
            since,
            problem,
            pods: self.0.store.len(),
            namespaces,
            lists: count(&counts.lists),
            failures: count(&counts.failures) + of_namespaces.map_or(0, |counts| count(&counts.failures)),
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
    /// How both watches stand.
    fn standing(&self) -> Standing {
        let pods = self.pods.standing();
        match &self.namespaces {
            Some(namespaces) => pods.worse(namespaces.standing()),
            None => pods,
        }
    }

    /// The pod out of what is known; if it is not, and may be soon, a moment later.
    async fn known(&self, reference: &PodReference) -> Found {
        let mut changes = self.store.subscribe();
        let mut has_waited = false;
        let known = async {
            loop {
                changes.mark_unchanged();
                let found = self.store.find(reference);
                let lacks = match &found {
                    Found::Pod(_) => return found,
                    Found::WithoutNamespace(_) => self.namespaces.as_ref(),
                    Found::Another(_) | Found::None => Some(&self.pods),
                };
                if !lacks.is_some_and(|watched| watched.standing().is_promising()) {
                    return found;
                }
                if !std::mem::replace(&mut has_waited, true) {
                    tracing::info!(pod = %reference.name, "the runtime is early: waits for its pod");
                }
                if changes.changed().await.is_err() {
                    return found;
                }
            }
        };
        timeout(AWAITED, known).await.unwrap_or_else(|_elapsed| self.store.find(reference))
    }

    /// The pod out of the API server's answer.
    async fn ask(&self, reference: &PodReference, by: Instant) -> Result<Option<Pod>, SourceError> {
        let pod = || format!("{}/{}", reference.namespace, reference.name);
        let path = format!("/api/v1/namespaces/{}/pods", reference.namespace);
        let request = Request::new(path).get(&reference.name, &GetParams::default());
        let answer = self.ask_once::<Wire>(request, &self.pods, by).await;
        let failed = |problem| self.failed(format!("pod {}", pod()), problem, &self.pods);
        let Some(wire) = answer.map_err(failed)? else { return Ok(None) };
        match self.store.in_namespace(store::same_uid(wire.reduce().pod, reference)) {
            Found::Pod(pod) => Ok(Some(*pod)),
            Found::WithoutNamespace(pod) => self.ask_namespace(*pod, by).await,
            Found::None => Ok(None),
            Found::Another(found) => Err(SourceError::Replaced {
                pod: pod(),
                found,
                wanted: reference.uid.clone().unwrap_or_default(),
            }),
        }
    }

    /// A pod with what its namespace asks for, out of the API server's answer. The next one is asked for again, if the watch
    /// has not told of it by then: what it tells is never older.
    async fn ask_namespace(&self, mut pod: Pod, by: Instant) -> Result<Option<Pod>, SourceError> {
        let Some(watched) = &self.namespaces else { return Ok(Some(pod)) };
        let name = &pod.metadata.namespace;
        let request = Request::new(NAMESPACES).get_metadata(name, &GetParams::default());
        let answer = self.ask_once::<WireNamespace>(request, watched, by).await;
        let of = || format!("namespace {name}, by which pod {} is decided on", pod.full_name());
        let failed = |problem| self.failed(of(), problem, watched);
        let Some(wire) = answer.map_err(failed)? else { return Ok(None) };
        pod.namespace_labels = wire.reduce().1;
        Ok(Some(pod))
    }

    /// One object; `None` if there is none. The error is in words.
    async fn ask_once<T: DeserializeOwned>(
        &self,
        request: Result<HttpRequest<Vec<u8>>, kube::core::request::Error>,
        watched: &Watched,
        by: Instant,
    ) -> Result<Option<T>, String> {
        let request = request.map_err(|error| error.to_string())?;
        let asked = async {
            let _turn = self.asking.acquire().await;
            watched.counts.lookups.fetch_add(1, Ordering::Relaxed);
            self.server.ask::<T>(request, ANSWERED).await
        };
        match timeout_at(by, asked).await.unwrap_or(Err(ApiError::Timeout(ANSWERED))) {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.code() == Some(404) => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    fn failed(&self, object: String, problem: String, watched: &Watched) -> SourceError {
        SourceError::Api { server: self.server.url(), object, problem, watch: watched.problem() }
    }
}

#[cfg(test)]
mod tests;
