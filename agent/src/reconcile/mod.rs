//! What is lost comes back, and what was missed is made up for: the node as it ought to be against the node as it is.
//!
//! Owns: when it is looked at (at the start, at each full pass, when what has failed is due, and a pod when the source
//! has news of it), and what the last
//! look could not repair. Never does: a pod's work itself; that is `enrol`, one pod after the other, so that an ADD
//! waits for one of them and not for all. Called by: `app`.
//!
//! Nothing is polled for: a full pass is for events that nobody has sent or heard.

pub mod backoff;
mod heal;
mod moves;
mod repair;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use veer_common::cni::PodReference;

pub use self::repair::Unrepaired;

use self::backoff::Backoff;
use crate::admin::{Metrics, Repair};
use crate::cluster::notice::NoticeKind;
use crate::cni::answer::Answerer;
use crate::enrol::Node;
use crate::platform::netns::NetnsThread;
use crate::proxy::driver::Depth;
use crate::proxy::watch::ProxyWatch;
use crate::readiness::Condition;
use crate::source::PodSource;
use crate::wall_clock;

/// How long news of pods is gathered before they are looked at.
const SETTLED: Duration = Duration::from_secs(1);

/// What the last look at everything has come to, for whoever asks.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// When it ended, in seconds since the epoch; `None` before the first.
    pub ended_at: Option<u64>,
    /// What could not be repaired.
    pub unrepaired: Vec<Unrepaired>,
}

/// Where the last look is found.
pub type Report = Arc<Mutex<Look>>;

/// Brings the node to what it ought to be.
#[derive(Debug)]
pub struct Reconciler<S> {
    /// Who enrols.
    pub answerer: Arc<Answerer<S>>,
    /// Who knows how their proxies stand.
    pub proxies: Arc<ProxyWatch<S>>,
    /// The way into a netns.
    pub netns: NetnsThread,
    /// Where the runtime keeps what it knows of attachments.
    pub cni_cache: PathBuf,
    /// Time between full passes.
    pub interval: Duration,
    /// What the last pass could not repair.
    pub report: Report,
    /// What it has come to, counted.
    pub metrics: Metrics,
    /// That it has looked at everything once.
    pub settled: Condition,
    /// That what all pods share is in its place.
    pub shared: Condition,
}

impl<S: PodSource + Send + Sync + 'static> Reconciler<S> {
    /// Passes until `stop`.
    pub async fn serve(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(self.interval);
        let mut looks = 0_u64;
        loop {
            let full_pass = Instant::now() + self.interval.mul_f64(0.9 + fastrand::f64() / 5.0);
            if stop.run_until_cancelled(self.pass(&mut backoff)).await.is_none() {
                return;
            }
            looks += 1;
            if looks == 1 {
                self.settled.holds();
                tracing::info!("looked at everything");
            }
            if stop.run_until_cancelled(self.until(full_pass, &mut backoff)).await.is_none() {
                return;
            }
        }
    }

    /// Waits for the next pass, or until something that has failed is due; looks at pods that the source has news of.
    async fn until(&self, full_pass: Instant, backoff: &mut Backoff) {
        loop {
            let now = Instant::now();
            let next = backoff.next(now).map_or(full_pass, |due| due.min(full_pass));
            let news = async {
                let names = self.answerer.source.worth_a_look().await;
                // Pods come in bursts, and one look at the node serves many.
                tokio::time::sleep(SETTLED).await;
                names
            };
            match tokio::time::timeout_at(next.into(), news).await {
                Ok(names) => self.look_at(&names, backoff).await,
                Err(_elapsed) => return,
            }
        }
    }

    /// Looks at these pods alone, whatever they have failed with before.
    async fn look_at(&self, names: &BTreeSet<String>, backoff: &mut Backoff) {
        backoff.keep_only(|name| !names.contains(name));
        let mut problems = Vec::new();
        self.move_all(Some(names), backoff, &mut problems).await;
        let missing = self.missing().await.into_iter().filter(|pod| names.contains(&repair::name(pod)));
        self.repair_all(&missing.collect::<Vec<_>>(), backoff, &mut problems).await;
        let mut look = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        look.unrepaired.retain(|unrepaired| !names.contains(&unrepaired.pod));
        look.unrepaired.extend(problems);
    }

    async fn pass(&self, backoff: &mut Backoff) {
        // If the node's thread has ended, so does all else.
        drop(self.answerer.node.run(|node| node.tend_other_versions()).await);
        let mut problems = Vec::new();
        // First, because a pod whose netns was replaced is forgotten here and found again below.
        self.heal(backoff, &mut problems).await;
        if let Ok(news) = self.answerer.node.run(Node::past_mesh).await {
            self.answerer.tell_past_mesh(news).await;
        }
        self.move_all(None, backoff, &mut problems).await;
        let missing = self.missing().await;
        self.repair_all(&missing, backoff, &mut problems).await;
        self.proxies.look(None, Depth::Asked).await;
        backoff.keep_only(|name| problems.iter().any(|unrepaired| unrepaired.pod == name));
        let ended_at = Some(wall_clock::seconds());
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = Look { ended_at, unrepaired: problems };
    }

    /// Enrols those of these pods that run and are due.
    async fn repair_all(
        &self,
        missing: &[PodReference],
        backoff: &mut Backoff,
        problems: &mut Vec<Unrepaired>,
    ) {
        if missing.is_empty() {
            return;
        }
        let Some(seen) = self.seen().await else { return };
        for reference in missing {
            let name = repair::name(reference);
            if !backoff.is_due(&name, Instant::now()) {
                problems.extend(self.known(&name));
                continue;
            }
            if let Err(problem) = self.repair(reference, &seen).await {
                let wait = backoff.failed(&name, Instant::now(), fastrand::f64());
                let (again, pod) = (wait.as_secs_f32(), &name);
                tracing::error!(%pod, %problem, again, "runs without redirection");
                self.answerer.notices.tell(reference, NoticeKind::Failed, problem.as_str());
                self.metrics.reconcile_failed();
                self.metrics.repaired(Repair::Fail);
                problems.push(Unrepaired { pod: name, problem });
            }
        }
    }

    /// What the last look said of a pod that is not due.
    fn known(&self, name: &str) -> Option<Unrepaired> {
        let report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.unrepaired.iter().find(|unrepaired| unrepaired.pod == name).cloned()
    }
}
