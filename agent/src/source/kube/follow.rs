//! A watch: list, watch from there on, and begin again where it ended.
//!
//! Owns: the position in the API server's history, and the order of attempts. Never does: forget anything because the API
//! server does not answer, or know what it watches. Called by: [`Kube::follow`](super::Kube::follow), for the node's pods
//! and for namespaces.
//!
//! It is our own loop over kube's requests, and not kube's watcher: that one says that a watch has failed, but not that
//! the next one stands, until something changes; and who has new credentials to try would have to list anew.

use std::fmt::Debug;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use http::Request as HttpRequest;
use kube::core::WatchEvent;
use kube::core::params::{ListParams, VersionMatch, WatchParams};
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};

use super::watched::Watched;
use super::wire::{Versioned, WireList};
use crate::cluster::client::{ApiError, ApiServer};

/// How long a list may take.
const LISTED: Duration = Duration::from_secs(30);
/// How long the server may take to say that it watches.
const BEGUN: Duration = Duration::from_secs(10);
/// How long a watch lasts, in seconds: then the server ends it, and the next one goes on from there.
const LASTING: u32 = 290;
/// Longest silence: the server sends a bookmark each minute. After it, the connection leads nowhere.
const SILENCE: Duration = Duration::from_secs(150);
/// Least time from one watch to the next, whatever a server does.
const PACE: Duration = Duration::from_secs(1);
/// HTTP 410: the position is older than the server's history.
const GONE: u16 = 410;

/// A request, or why it cannot be made.
pub(super) type Asked = Result<HttpRequest<Vec<u8>>, kube::core::request::Error>;

/// What is watched, and where goes what is told of it.
pub(super) trait Resource: Sync {
    /// One of them, as it comes.
    type Wire: Versioned + DeserializeOwned + Debug + Clone + Send;

    /// How the watch stands.
    fn watched(&self) -> &Watched;
    /// Asks for all of them.
    fn list(&self, params: ListParams) -> Asked;
    /// Asks for what changes after this version.
    fn watch(&self, params: WatchParams, from: &str) -> Asked;
    /// These are all.
    fn replace(&self, all: Vec<Self::Wire>);
    /// One is there, or has changed.
    fn insert(&self, one: Self::Wire);
    /// One is gone.
    fn remove(&self, one: Self::Wire);
    /// The watch stands otherwise than before.
    fn wake(&self);
}

/// Why a watch has ended.
enum End {
    /// As it always does; go on from the position.
    Over,
    /// The position is not known to the server any more: list.
    Expired,
    /// This.
    Failed(ApiError),
}

/// Whom it asks, and what it asks for.
pub(super) struct Follower<'a, R> {
    pub(super) server: &'a ApiServer,
    /// A list is some megabytes for a moment; called after it.
    pub(super) give_back: fn(),
    pub(super) resource: R,
}

impl<R: Resource> Follower<'_, R> {
    /// Watches for ever.
    pub(super) async fn follow(self) {
        let mut position = None;
        loop {
            let pace = sleep(PACE);
            match self.attempt(&mut position).await {
                End::Over => pace.await,
                End::Expired => {
                    position = None;
                    pace.await;
                }
                End::Failed(error) => {
                    self.failed(error.to_string());
                    // It has answered, and will not watch from here: a server of an older backup, for one, waits for what
                    // its history never had. Without an answer the position stays good.
                    if error.code().is_some() {
                        position = None;
                    }
                    let delay = self.resource.watched().standing().delay(fastrand::f64());
                    sleep(delay).await;
                    // New credentials may be there, and connections that lead nowhere are gone with the old client.
                    if let Err(error) = self.server.renew().await {
                        self.failed(error.to_string());
                    }
                }
            }
        }
    }

    fn failed(&self, problem: String) {
        if self.resource.watched().failed(problem) {
            self.resource.wake();
        }
    }

    /// Lists, where there is no position, and watches from it until the watch ends.
    async fn attempt(&self, position: &mut Option<String>) -> End {
        let from = match position.take() {
            Some(from) => from,
            None => match self.list().await {
                Ok(version) => version,
                Err(error) => return End::Failed(error),
            },
        };
        *position = Some(from.clone());
        self.watch(&from, position).await
    }

    /// All of them, out of the API server's memory: version 0 asks for what it knows, as the kubelet does, so that the
    /// agents of all nodes at once are no burden to etcd. The watch then brings what is newer.
    async fn list(&self) -> Result<String, ApiError> {
        let params = ListParams::default().at("0").matching(VersionMatch::NotOlderThan);
        let request = self.resource.list(params).map_err(unbuilt)?;
        self.resource.watched().counts.lists.fetch_add(1, Ordering::Relaxed);
        let WireList { metadata, items } = self.server.ask(request, LISTED).await?;
        self.resource.replace(items);
        (self.give_back)();
        Ok(metadata.resource_version)
    }

    async fn watch(&self, from: &str, position: &mut Option<String>) -> End {
        let request = match self.resource.watch(WatchParams::default().timeout(LASTING), from) {
            Ok(request) => request,
            Err(error) => return End::Failed(unbuilt(error)),
        };
        let events = match self.begin(request).await {
            Ok(events) => events,
            Err(error) if error.code() == Some(GONE) => return End::Expired,
            Err(error) => return End::Failed(error),
        };
        if self.resource.watched().succeeded() {
            self.resource.wake();
        }
        let mut events = std::pin::pin!(events);
        loop {
            let event = match timeout(SILENCE, events.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(error))) => return ended(error.into()),
                Ok(None) => return End::Over,
                Err(_elapsed) => return End::Failed(ApiError::Timeout(SILENCE)),
            };
            self.resource.watched().count(&event);
            match event {
                WatchEvent::Added(wire) | WatchEvent::Modified(wire) => {
                    *position = Some(wire.version().to_owned());
                    self.resource.insert(wire);
                }
                WatchEvent::Deleted(wire) => {
                    *position = Some(wire.version().to_owned());
                    self.resource.remove(wire);
                }
                WatchEvent::Bookmark(bookmark) => *position = Some(bookmark.metadata.resource_version),
                WatchEvent::Error(status) => return ended(kube::Error::Api(status).into()),
            }
        }
    }

    async fn begin(
        &self,
        request: HttpRequest<Vec<u8>>,
    ) -> Result<impl Stream<Item = Result<WatchEvent<R::Wire>, kube::Error>>, ApiError> {
        let client = self.server.client();
        let begun = timeout(BEGUN, client.request_events::<R::Wire>(request)).await;
        Ok(begun.map_err(|_elapsed| ApiError::Timeout(BEGUN))??)
    }
}

fn ended(error: ApiError) -> End {
    if error.code() == Some(GONE) { End::Expired } else { End::Failed(error) }
}

fn unbuilt(error: kube::core::request::Error) -> ApiError {
    kube::Error::BuildRequest(error).into()
}
