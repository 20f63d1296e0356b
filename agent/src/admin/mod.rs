//! What the agent tells monitors, over HTTP: metrics on one address, health and readiness on another.
//!
//! Owns: the two sockets ([`Admin`]), what is counted while it happens ([`Metrics`]), what is read when somebody asks
//! (`scrape`), and on what it hangs that a pod created now would be redirected ([`Readiness`]). Never does: look at a
//! packet, or name a pod in a label. Called by: `app`, which gives parts of it to those who count and who have a
//! condition.
//!
//! A part with a condition of its own asks for it once, before the agent serves: [`Readiness::condition`].

mod http;
mod metrics;
mod readiness;
mod scrape;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::http::{Answer, Request};
pub use self::metrics::{Installs, Metrics, Repair};
pub use self::readiness::{Condition, Held, Readiness};
use crate::config::AdminConfig;
use crate::enrol::NodeHandle;
use crate::reconcile::Report;
use crate::source::{PodSource, SourceHealth, SourceState};

/// How long the node's thread may take to answer before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// An address that cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address} ({flag}; off serves nothing there): {source}")]
pub struct ListenError {
    flag: &'static str,
    address: SocketAddr,
    source: io::Error,
}

/// The sockets, bound, and what is told on them.
#[derive(Debug)]
pub struct Admin {
    /// What is counted.
    pub metrics: Metrics,
    /// On what readiness hangs.
    pub readiness: Readiness,
    scraped: Option<TcpListener>,
    probed: Option<TcpListener>,
}

/// Whom it asks when it is asked.
#[derive(Debug)]
pub struct View<S> {
    /// Where pods are read from.
    pub source: S,
    /// Who is enrolled.
    pub node: NodeHandle,
    /// What the last look at everything has come to.
    pub report: Report,
    /// What is counted.
    pub metrics: Metrics,
    /// On what readiness hangs.
    pub readiness: Readiness,
}

impl Admin {
    /// Binds what is not off.
    ///
    /// # Errors
    /// As the system says.
    pub fn bind(config: &AdminConfig) -> Result<Self, ListenError> {
        let bind = |flag, address: Option<SocketAddr>| {
            let bound = |address| bound(address).map_err(|source| ListenError { flag, address, source });
            address.map(bound).transpose()
        };
        Ok(Self {
            metrics: Metrics::new(),
            readiness: Readiness::default(),
            scraped: bind("--admin-addr", config.metrics)?,
            probed: bind("--health-addr", config.health)?,
        })
    }

    /// Where metrics are.
    pub fn scraped_at(&self) -> Option<String> {
        address(self.scraped.as_ref()?)
    }

    /// Where health is.
    pub fn probed_at(&self) -> Option<String> {
        address(self.probed.as_ref()?)
    }

    /// Answers until `stop`.
    ///
    /// # Errors
    /// If a socket cannot be waited for.
    pub fn serve<S: PodSource + Send + Sync + 'static>(
        self,
        (source, node, report): (S, NodeHandle, Report),
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> io::Result<()> {
        let Self { metrics, readiness, scraped, probed } = self;
        let view = Arc::new(View { source, node, report, metrics, readiness });
        if let Some(listener) = scraped {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let view = Arc::clone(&view);
            let answer = move |request| {
                let view = Arc::clone(&view);
                async move { view.metrics(&request).await }
            };
            tasks.spawn(http::serve(listener, stop.clone(), answer));
        }
        if let Some(listener) = probed {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let answer = move |request| {
                let view = Arc::clone(&view);
                async move { view.health(&request).await }
            };
            tasks.spawn(http::serve(listener, stop.clone(), answer));
        }
        Ok(())
    }
}

fn address(listener: &TcpListener) -> Option<String> {
    listener.local_addr().ok().map(|address| address.to_string())
}

fn bound(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl<S: PodSource + Sync> View<S> {
    async fn metrics(&self, request: &Request) -> Answer {
        match request.path.as_str() {
            "/metrics" => match scrape::text(self).await {
                Ok(text) => Answer::open_metrics(text),
                Err(error) => Answer::text(500, format!("encode the metrics: {error}\n")),
            },
            _ => Answer::text(404, "there is /metrics\n".to_owned()),
        }
    }

    async fn health(&self, request: &Request) -> Answer {
        match request.path.as_str() {
            "/healthz" => match self.node_answers().await {
                Ok(()) => Answer::text(200, "alive\n".to_owned()),
                Err(problem) => Answer::text(503, format!("node: {problem}\n")),
            },
            "/readyz" => {
                let conditions = self.conditions().await;
                let is_ready = conditions.iter().all(Held::holds);
                let verbose = request.query.split('&').any(|part| part == "verbose" || part == "verbose=1");
                let told = conditions.iter().filter(|held| verbose || !held.holds()).map(Held::text);
                let mut lines: Vec<String> = told.collect();
                lines.extend(is_ready.then(|| "ready\n".to_owned()));
                Answer::text(if is_ready { 200 } else { 503 }, lines.concat())
            }
            _ => Answer::text(404, "there are /healthz and /readyz\n".to_owned()),
        }
    }

    /// All conditions, those of the parts that are asked only now among them.
    async fn conditions(&self) -> Vec<Held> {
        let mut conditions = self.readiness.held();
        conditions.push(Held { name: "node", problem: self.node_answers().await.err() });
        conditions.push(Held { name: "pods", problem: self.source.health().as_ref().and_then(not_current) });
        conditions
    }

    async fn node_answers(&self) -> Result<(), String> {
        match timeout(PATIENCE, self.node.run(|_node| ())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_elapsed) => Err(format!("its thread has not answered for {} s", PATIENCE.as_secs())),
        }
    }
}

/// Why a pod that is created now might not be known.
fn not_current(health: &SourceHealth) -> Option<String> {
    (health.state != SourceState::Synced).then(|| health.text())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::SourceChanges;

    #[test]
    fn only_a_source_that_hears_of_each_change_knows_a_pod_that_is_created_now() {
        let health = |state| SourceHealth {
            state,
            since: 0,
            problem: Some("connection refused".to_owned()),
            pods: 3,
            lists: 1,
            failures: 1,
            lookups: 0,
            changes: SourceChanges::default(),
        };
        assert_eq!(not_current(&health(SourceState::Synced)), None);
        for state in [SourceState::Starting, SourceState::Degraded] {
            assert!(
                not_current(&health(state)).is_some_and(|problem| problem.ends_with("connection refused"))
            );
        }
    }
}
