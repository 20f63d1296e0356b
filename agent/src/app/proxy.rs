//! The pods' proxies: the servers that the node's are told by, and whom the drivers take on when the agent starts.
//!
//! Owns: the start of it. Called by: `app`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{AppError, supervise};
use crate::cluster::redirection::Redirections;
use crate::cni::answer::Answerer;
use crate::config::AgentConfig;
use crate::model::{DEFAULT_PROXY_ID, Driver};
use crate::platform::netns::NetnsThread;
use crate::proxy::ads::{self, Ads};
use crate::proxy::config::watch;
use crate::proxy::driver::{Drivers, ProxyDriver};
use crate::proxy::place::ProxyPlace;
use crate::proxy::sidecar::Sidecar;
use crate::proxy::supervise::{Supervisor, Watched};
use crate::proxy::watch::ProxyNews;
use crate::proxy::zds::{self, Zds};
use crate::readiness::Readiness;
use crate::source::Source;

/// Between two questions for a pod that nobody could answer.
const AGAIN: Duration = Duration::from_secs(1);

/// What the node's proxies are told by.
pub(super) struct Tasks {
    node: ads::Task,
    ztunnel: zds::Task,
    /// Who starts the node's proxy, if the agent does.
    supervisor: Option<Supervisor>,
}

/// What the drivers have to do with.
pub(super) struct Around<'a> {
    /// Who enters pods' network namespaces.
    pub(super) netns: &'a NetnsThread,
    /// Whom they tell that something has changed.
    pub(super) news: &'a ProxyNews,
    /// Where the programs hang, if there are any.
    pub(super) attached: Option<&'a Path>,
    pub(super) readiness: &'a Readiness,
}

impl Tasks {
    /// The drivers, what they need to run, and how the proxy stands that the agent starts.
    pub(super) fn of(
        config: &AgentConfig,
        redirections: Redirections,
        around: &Around<'_>,
    ) -> (Drivers, Self, Watched) {
        let sidecar = Sidecar::new(around.netns.clone());
        let has_config = config.proxy_config.is_some();
        let (node, node_task) = Ads::new(config.proxy_dir.is_some(), has_config, around.news.clone());
        let (ztunnel, ztunnel_task) = Zds::new(config.ztunnel_socket.is_some(), redirections);
        let (supervisor, watched) = supervise::supervisor(config, around.attached, &node, around.readiness);
        let tasks = Self { node: node_task, ztunnel: ztunnel_task, supervisor };
        (Drivers { sidecar, node, ztunnel }, tasks, watched)
    }

    /// Starts what there is a place for: without its task, whoever asks a driver is told so. Pods that an earlier agent has enrolled come
    /// first, and then all that no such pod has is taken from a proxy that is there already.
    ///
    /// # Errors
    /// If a directory or socket cannot be made, or somebody else serves it.
    pub(super) fn start(
        self,
        config: &AgentConfig,
        answerer: &Arc<Answerer<Source>>,
        readiness: &Readiness,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<(), AppError> {
        let listening = |path| move |source| AppError::File { attempt: "listen on", path, source };
        let drivers = &answerer.drivers;
        if let Some(directory) = &config.proxy_dir {
            let files = ProxyPlace::of(directory);
            let listener = files.open().map_err(listening(files.ads()))?;
            let connected = readiness.condition("proxy", "no Envoy has connected yet");
            tasks.spawn(self.node.run(connected, stop.clone()));
            if let Some(directory) = config.proxy_config.clone() {
                let (ads, release) = (drivers.node.clone(), super::release_memory);
                tasks.spawn(watch::follow(directory, ads, release, stop.clone()));
            }
            tasks.spawn(ads::serve(listener, DEFAULT_PROXY_ID, drivers.node.clone(), stop.clone()));
        }
        if let Some(path) = &config.ztunnel_socket {
            let listener = zds::open(path).map_err(listening(path.clone()))?;
            tasks.spawn(self.ztunnel.run(stop.clone()));
            tasks.spawn(zds::serve(listener, drivers.ztunnel.clone(), stop.clone()));
        }
        let known = CancellationToken::new();
        supervise::start(self.supervisor, config.proxy_dir.as_deref(), known.clone(), tasks, stop);
        let (answerer, stop) = (Arc::clone(answerer), stop.clone());
        tasks.spawn(async move { stop.run_until_cancelled(take_on(&answerer, &known)).await });
        Ok(())
    }
}

/// Those whose driver has to know what their manifests say come last: the pod source may not be there yet.
/// `known` is cancelled when all of the node's proxy are there.
async fn take_on(answerer: &Answerer<Source>, known: &CancellationToken) {
    let drivers = &answerer.drivers;
    // Without the node's thread all else ends, too.
    let Ok(pods) = answerer.node.run(|node| node.proxied(None)).await else { return };
    let (by_ztunnel, others): (Vec<_>, Vec<_>) =
        pods.into_iter().partition(|pod| pod.driver == Driver::Ztunnel);
    for pod in &others {
        answerer.begin(pod).await;
    }
    known.cancel();
    for pod in by_ztunnel {
        let known = loop {
            match answerer.with_account(pod.clone()).await {
                Ok(known) => break known,
                Err(error) => tracing::warn!(%pod, %error, "ztunnel waits for what its manifest says"),
            }
            sleep(AGAIN).await;
        };
        answerer.begin(&known).await;
    }
    drivers.complete().await;
}
