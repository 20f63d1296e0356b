//! What the agent tells monitors, over HTTP: metrics on one address, health and readiness on another.
//!
//! Owns: the two sockets ([`Admin`]), what is counted while it happens ([`Metrics`]), what is read when somebody asks
//! (`scrape`), and what proxies tell of themselves ([`Proxies`]). Never does: look at a packet, name a pod in a label, or decide what ready means (that is
//! [`readiness`](crate::readiness)). Called by: `app`, which gives the metrics to those who count.

mod http;
mod metrics;
mod proxies;
mod scrape;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::http::{Answer, Request};
pub use self::metrics::{Installs, Metrics, Repair};
pub use self::proxies::Proxies;
use self::proxies::asked::{self, Asked};
use self::proxies::ready::NotReady;
use crate::config::AdminConfig;
use crate::enrol::NodeHandle;
use crate::proxy::supervise::Watched;
use crate::proxy::watch::ProxyWatch;
use crate::readiness::probe::Probe;
use crate::readiness::{Held, Readiness};
use crate::reconcile::Report;
use crate::source::PodSource;

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
    /// How the pods' proxies stand.
    pub standing: Arc<ProxyWatch<S>>,
    /// What is counted.
    pub metrics: Metrics,
    /// On what readiness hangs.
    pub readiness: Readiness,
    /// And what of it has to be asked.
    pub probe: Arc<Probe>,
    /// Whom it asks for their metrics.
    pub proxies: Arc<Proxies>,
    /// How the node's proxy stands, if the agent starts it.
    pub proxy: Watched,
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
        view: View<S>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> io::Result<()> {
        let Self { scraped, probed, .. } = self;
        let view = Arc::new(view);
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

impl<S: PodSource + Send + Sync + 'static> View<S> {
    async fn metrics(&self, request: &Request) -> Answer {
        match request.path.as_str() {
            "/metrics" => match scrape::text(self).await {
                Ok(text) => Answer::open_metrics(text),
                Err(error) => Answer::text(500, format!("encode the metrics: {error}\n")),
            },
            "/stats/prometheus" => match Asked::parse(&request.query) {
                Ok(asked) => match Arc::clone(&self.proxies).metrics(asked).await {
                    Ok(pieces) => Answer::prometheus(pieces),
                    Err(problem) => Answer::text(404, format!("{problem}\n")),
                },
                Err(problem) => Answer::text(400, format!("{problem}\n")),
            },
            _ => Answer::text(404, "there are /metrics and /stats/prometheus\n".to_owned()),
        }
    }

    async fn health(&self, request: &Request) -> Answer {
        match request.path.as_str() {
            "/healthz" => match self.probe.node_answers().await {
                Ok(()) => Answer::text(200, "alive\n".to_owned()),
                Err(problem) => Answer::text(503, format!("node: {problem}\n")),
            },
            "/readyz" if request.query.starts_with("pod=") => self.pod_ready(&request.query).await,
            "/readyz" => {
                let conditions = self.conditions().await;
                let is_ready = conditions.iter().all(Held::holds);
                let verbose = request.query.split('&').any(|part| part == "verbose" || part == "verbose=1");
                let told = conditions.iter().filter(|held| verbose || !held.holds()).map(Held::text);
                let mut lines: Vec<String> = told.collect();
                lines.extend(is_ready.then(|| "ready".to_owned()));
                Answer::text(if is_ready { 200 } else { 503 }, lines.join("\n") + "\n")
            }
            _ => Answer::text(404, "there are /healthz and /readyz\n".to_owned()),
        }
    }

    /// Whether one pod's proxy takes connections.
    async fn pod_ready(&self, query: &str) -> Answer {
        let (namespace, name) = match asked::pod(query.trim_start_matches("pod=")) {
            Ok(pod) => pod,
            Err(problem) => return Answer::text(400, format!("{problem}\n")),
        };
        match self.proxies.ready(&namespace, &name).await {
            Ok(()) => Answer::text(200, "ready\n".to_owned()),
            Err(NotReady::Unknown(problem)) => Answer::text(404, format!("{problem}\n")),
            Err(NotReady::Not(problem)) => Answer::text(503, format!("{problem}\n")),
        }
    }

    /// All conditions, those among them that have to be asked.
    async fn conditions(&self) -> Vec<Held> {
        self.probe.ask().await;
        self.readiness.held()
    }
}
