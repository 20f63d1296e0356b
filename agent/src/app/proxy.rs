//! The pods' proxies: the server that the node's is told by, and whom the drivers take on when the agent starts.
//!
//! Owns: the start of it. Called by: `app`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::AppError;
use crate::cni::answer::Answerer;
use crate::model::{DEFAULT_PROXY_ID, Driver};
use crate::proxy::ads::{self, Task};
use crate::proxy::driver::{Drivers, ProxyDriver};
use crate::proxy::place::ProxyPlace;
use crate::source::Source;

/// Between two questions for a pod that nobody could answer.
const AGAIN: Duration = Duration::from_secs(1);

/// Starts it; the node's proxy, if there is a place for it. Pods that an earlier agent has enrolled come first, and then all
/// that no such pod has is taken from an Envoy that is there already.
///
/// # Errors
/// If its directory or socket cannot be made.
pub(super) fn start(
    directory: Option<&Path>,
    (drivers, task): (Drivers, Task),
    answerer: Arc<Answerer<Source>>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<(), AppError> {
    if let Some(directory) = directory {
        let files = ProxyPlace::of(directory);
        let listener = files.open();
        let listener =
            listener.map_err(|source| AppError::File { attempt: "listen on", path: files.ads(), source })?;
        // Without the task, whoever asks is told so.
        tasks.spawn(task.run(stop.clone()));
        tasks.spawn(ads::serve(listener, DEFAULT_PROXY_ID, drivers.node.clone(), stop.clone()));
    }
    let stop = stop.clone();
    tasks.spawn(async move { stop.run_until_cancelled(take_on(&drivers, &answerer)).await });
    Ok(())
}

/// Those whose driver has to know what their manifests say come last: the pod source may not be there yet.
async fn take_on(drivers: &Drivers, answerer: &Answerer<Source>) {
    // Without the node's thread all else ends, too.
    let Ok(pods) = answerer.node.run(|node| node.proxied(None)).await else { return };
    let (by_ztunnel, others): (Vec<_>, Vec<_>) =
        pods.into_iter().partition(|pod| pod.driver == Driver::Ztunnel);
    for pod in &others {
        drivers.begin(pod).await;
    }
    for pod in by_ztunnel {
        let known = loop {
            match answerer.with_account(pod.clone()).await {
                Ok(known) => break known,
                Err(error) => tracing::warn!(%pod, %error, "ztunnel waits for what its manifest says"),
            }
            sleep(AGAIN).await;
        };
        drivers.begin(&known).await;
    }
    drivers.complete().await;
}
