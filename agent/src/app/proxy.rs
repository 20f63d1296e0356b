//! The pods' proxies: the server that the node's is told by, and whom the drivers take on when the agent starts.
//!
//! Owns: the start of it. Called by: `app`.

use std::path::Path;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::AppError;
use crate::enrol::NodeHandle;
use crate::model::DEFAULT_PROXY_ID;
use crate::proxy::ads::{self, Task};
use crate::proxy::driver::{Drivers, ProxyDriver};
use crate::proxy::place::ProxyPlace;

/// Starts it; the node's proxy, if there is a place for it. Pods that an earlier agent has enrolled come first, and then all
/// that no such pod has is taken from an Envoy that is there already.
///
/// # Errors
/// If its directory or socket cannot be made.
pub(super) fn start(
    directory: Option<&Path>,
    (drivers, task): (Drivers, Task),
    node: NodeHandle,
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
    tasks.spawn(async move {
        // Without the node's thread all else ends, too.
        let Ok(pods) = node.run(|node| node.proxied(None)).await else { return };
        for pod in &pods {
            drivers.begin(pod).await;
        }
        drivers.complete().await;
    });
    Ok(())
}
