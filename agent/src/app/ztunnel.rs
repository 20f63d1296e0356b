//! The node's ztunnel: the socket that it is told at.
//!
//! Owns: the start of it. Called by: `app`.

use std::path::Path;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::AppError;
use crate::proxy::zds::{self, Task, Zds};

/// Starts it, if there is a socket for it.
///
/// # Errors
/// If the socket cannot be made, or somebody else serves it.
pub(super) fn start(
    socket: Option<&Path>,
    (ztunnel, task): (Zds, Task),
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<(), AppError> {
    // Without the task, whoever asks is told so.
    let Some(path) = socket else { return Ok(()) };
    let listener = zds::open(path);
    let listener =
        listener.map_err(|source| AppError::File { attempt: "listen on", path: path.to_owned(), source })?;
    tasks.spawn(task.run(stop.clone()));
    tasks.spawn(zds::serve(listener, ztunnel, stop.clone()));
    Ok(())
}
