//! The watch: list, watch from there on, and begin again where it ended.
//!
//! Owns: the position in the API server's history, and the order of attempts. Never does: forget a pod because the API
//! server does not answer. Called by: [`Kube::follow`](super::Kube::follow).
//!
//! It is our own loop over kube's requests, and not kube's watcher: that one says that a watch has failed, but not that
//! the next one stands, until a pod changes; and who has new credentials to try would have to list anew.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use http::Request as HttpRequest;
use kube::core::params::{ListParams, VersionMatch, WatchParams};
use kube::core::{Request, WatchEvent};
use tokio::time::{sleep, timeout};

use super::Inner;
use super::wire::{Wire, WireList};
use crate::cluster::client::ApiError;

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

/// Why a watch has ended.
enum End {
    /// As it always does; go on from the position.
    Over,
    /// The position is not known to the server any more: list.
    Expired,
    /// This.
    Failed(ApiError),
}

/// Watches for ever.
pub(super) async fn follow(kube: &Inner) {
    let mut position = None;
    loop {
        let pace = sleep(PACE);
        match attempt(kube, &mut position).await {
            End::Over => pace.await,
            End::Expired => {
                position = None;
                pace.await;
            }
            End::Failed(error) => {
                kube.failed(error.to_string());
                // It has answered, and will not watch from here: a server of an older backup, for one, waits for what
                // its history never had. Without an answer the position stays good.
                if error.code().is_some() {
                    position = None;
                }
                let delay = kube.standing().delay(fastrand::f64());
                sleep(delay).await;
                // New credentials may be there, and connections that lead nowhere are gone with the old client.
                if let Err(error) = kube.server.renew().await {
                    kube.failed(error.to_string());
                }
            }
        }
    }
}

/// Lists, where there is no position, and watches from it until the watch ends.
async fn attempt(kube: &Inner, position: &mut Option<String>) -> End {
    let from = match position.take() {
        Some(from) => from,
        None => match list(kube).await {
            Ok(version) => version,
            Err(error) => return End::Failed(error),
        },
    };
    *position = Some(from.clone());
    watch(kube, &from, position).await
}

/// The field selector: pods that have ended are nobody's any more.
fn selection(node: &str) -> String {
    format!("spec.nodeName={node},status.phase!=Succeeded,status.phase!=Failed")
}

/// All pods of the node, out of the API server's memory: version 0 asks for what it knows, as the kubelet does, so that
/// the agents of all nodes at once are no burden to etcd. The watch then brings what is newer.
async fn list(kube: &Inner) -> Result<String, ApiError> {
    let params =
        ListParams::default().fields(&selection(&kube.node)).at("0").matching(VersionMatch::NotOlderThan);
    let request = Request::new("/api/v1/pods").list(&params).map_err(unbuilt)?;
    kube.counts.lists.fetch_add(1, Ordering::Relaxed);
    let WireList { metadata, items } = kube.server.ask(request, LISTED).await?;
    kube.store.replace(items.into_iter().map(Wire::reduce));
    (kube.give_back)();
    Ok(metadata.resource_version)
}

async fn watch(kube: &Inner, from: &str, position: &mut Option<String>) -> End {
    let params = WatchParams::default().fields(&selection(&kube.node)).timeout(LASTING);
    let request = match Request::new("/api/v1/pods").watch(&params, from) {
        Ok(request) => request,
        Err(error) => return End::Failed(unbuilt(error)),
    };
    let events = match begin(kube, request).await {
        Ok(events) => events,
        Err(error) if error.code() == Some(GONE) => return End::Expired,
        Err(error) => return End::Failed(error),
    };
    kube.succeeded();
    let mut events = std::pin::pin!(events);
    loop {
        let event = match timeout(SILENCE, events.next()).await {
            Ok(Some(Ok(event))) => event,
            Ok(Some(Err(error))) => return ended(error.into()),
            Ok(None) => return End::Over,
            Err(_elapsed) => return End::Failed(ApiError::Timeout(SILENCE)),
        };
        count(kube, &event);
        match event {
            WatchEvent::Added(wire) | WatchEvent::Modified(wire) => {
                *position = Some(wire.version().to_owned());
                kube.store.insert(wire.reduce());
            }
            WatchEvent::Deleted(wire) => {
                *position = Some(wire.version().to_owned());
                kube.store.remove(&wire.reduce());
            }
            WatchEvent::Bookmark(bookmark) => *position = Some(bookmark.metadata.resource_version),
            WatchEvent::Error(status) => return ended(kube::Error::Api(status).into()),
        }
    }
}

fn count(kube: &Inner, event: &WatchEvent<Wire>) {
    let counter = match event {
        WatchEvent::Added(_) => &kube.counts.added,
        WatchEvent::Modified(_) => &kube.counts.modified,
        WatchEvent::Deleted(_) => &kube.counts.deleted,
        WatchEvent::Bookmark(_) | WatchEvent::Error(_) => return,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

async fn begin(
    kube: &Inner,
    request: HttpRequest<Vec<u8>>,
) -> Result<impl Stream<Item = Result<WatchEvent<Wire>, kube::Error>>, ApiError> {
    let client = kube.server.client();
    let begun = timeout(BEGUN, client.request_events::<Wire>(request)).await;
    Ok(begun.map_err(|_elapsed| ApiError::Timeout(BEGUN))??)
}

fn ended(error: ApiError) -> End {
    if error.code() == Some(GONE) { End::Expired } else { End::Failed(error) }
}

fn unbuilt(error: kube::core::request::Error) -> ApiError {
    kube::Error::BuildRequest(error).into()
}
