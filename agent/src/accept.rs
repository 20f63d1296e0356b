//! Accepting connections, whatever they are: Unix sockets and TCP alike.
//!
//! Owns: the loop, with its breath when nothing can be accepted, and its end. Never does: know what is said.
//! Called by: `socket` and `admin`.

use std::io;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long to wait when a connection cannot be accepted: out of descriptors, most likely, and those that
/// are under way give some back.
const BREATH: Duration = Duration::from_millis(100);

/// Has `converse` talk to everyone whom `accept` brings, each on a task of its own, until `stop`; those that are under way
/// are finished. `whose` names them in the log.
pub(crate) async fn serve<T, A, F, C>(
    whose: &'static str,
    stop: &CancellationToken,
    accept: A,
    converse: impl Fn(T) -> C,
) where
    A: Fn() -> F,
    F: Future<Output = io::Result<T>>,
    C: Future<Output = ()> + Send + 'static,
{
    let connections = TaskTracker::new();
    while let Some(accepted) = stop.run_until_cancelled(accept()).await {
        match accepted {
            Ok(connection) => drop(connections.spawn(converse(connection))),
            Err(error) => {
                tracing::error!(whose, %error, "accept");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}
