//! The supervisor of the node's proxy, where the agent starts it.
//!
//! Owns: the start of it, and what is said where it is not wanted. Called by: `app`.

use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::AgentConfig;
use crate::platform::cgroup::Cgroup;
use crate::platform::proxy::{self, Running};
use crate::proxy::ads::Ads;
use crate::proxy::place::ProxyPlace;
use crate::proxy::supervise::{Supervisor, Watched, watched};
use crate::readiness::Readiness;

/// The supervisor, if there is to be one, and the way to see how what it looks after stands. `attached` is where the programs
/// hang; without them it is where they would.
pub(super) fn supervisor(
    config: &AgentConfig,
    attached: Option<&Path>,
    ads: &Ads,
    readiness: &Readiness,
) -> (Option<Supervisor>, Watched) {
    let wanted = config.proxy_dir.as_deref().map(ProxyPlace::of).zip(config.proxy_command.clone());
    let cgroup = wanted.as_ref().and_then(|_| cgroup(config, attached));
    let (told, watched) = watched(cgroup.clone());
    let supervisor = wanted.map(|(place, command)| {
        let condition = readiness.condition("proxy-process", "the node's proxy is not looked at yet");
        Supervisor { place, command, cgroup, ads: ads.clone(), condition, told }
    });
    (supervisor, watched)
}

/// Starts it, once all pods are known: an Envoy that takes over has to hear of all of them.
pub(super) fn start(
    supervisor: Option<Supervisor>,
    directory: Option<&Path>,
    known: CancellationToken,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let Some(supervisor) = supervisor else {
        directory.into_iter().for_each(leave_alone);
        return;
    };
    let stop = stop.clone();
    tasks.spawn(async move {
        if stop.run_until_cancelled(known.cancelled()).await.is_none() {
            return;
        }
        if let Err(error) = supervisor.run(stop).await {
            tracing::error!(%error, "the node's proxy is not looked after");
        }
    });
}

/// One that an earlier agent has started may serve pods: it goes on, and nobody starts another when it ends.
fn leave_alone(directory: &Path) {
    let running = Running::find(&ProxyPlace::of(directory).envoy()).map(|(running, _)| running);
    for one in running.unwrap_or_default() {
        tracing::warn!(
            pid = one.pid(),
            "the node's proxy that an earlier agent has started goes on, and this agent does not look after it: it was started \
             without --proxy-command. SIGTERM to the proxy ends it"
        );
    }
}

fn cgroup(config: &AgentConfig, attached: Option<&Path>) -> Option<PathBuf> {
    let above = match attached {
        Some(path) => Ok(path.to_owned()),
        None => Cgroup::find(config.cgroup.as_deref()).map(|cgroup| cgroup.path),
    };
    let above =
        above.inspect_err(|error| tracing::warn!(%error, "the node's proxy has no cgroup of its own"));
    let path = above.ok()?;
    let made = proxy::cgroup(&path);
    made.inspect_err(|error| {
        tracing::error!(above = %path.display(), %error, "make the cgroup of the node's proxy; it is in the agent's own");
    })
    .ok()
}
