//! Enrolled pods that have lost something: one after the other, so that an ADD waits for one of them at the most.
//!
//! Owns: the order, and asking for a manifest where only that tells what was lost. Never does: act on a pod; that is
//! `enrol`. Called by: the reconciler.

use std::time::Instant;

use veer_common::cni::PodReference;
use veer_common::maps::NetnsCookie;

use super::backoff::Backoff;
use super::{Reconciler, Unrepaired, repair};
use crate::enrol::heal::{Lists, findings};
use crate::enrol::{EnrolError, Node};
use crate::model::Capture;
use crate::plan::Action;
use crate::source::PodSource;

/// What all pods share, where a pod's name would be.
const SHARED: &str = "all pods";

impl<S: PodSource + Send + Sync + 'static> Reconciler<S> {
    /// Looks at everything that is enrolled, and brings back what is lost.
    pub(super) async fn heal(&self, backoff: &mut Backoff, problems: &mut Vec<Unrepaired>) {
        match self.heal_shared().await {
            Ok(()) => self.shared.holds(),
            Err(error) => {
                tracing::error!(%error, "bring back what all pods share");
                self.metrics.reconcile_failed();
                self.shared.fails(&error.to_string());
                problems.push(Unrepaired { pod: SHARED.to_owned(), problem: error.to_string() });
            }
        }
        let looked = self.answerer.node.run(|node| {
            let pods = node.registry().iter().map(|pod| (pod.cookie, pod.pod.clone())).collect::<Vec<_>>();
            Ok::<_, EnrolError>((pods, node.lists()?))
        });
        let (pods, mut lists) = match looked.await.and_then(|looked| looked) {
            Ok(looked) => looked,
            Err(error) => return tracing::error!(%error, "look at the enrolled pods"),
        };
        for (cookie, pod) in pods {
            let name = repair::name(&pod);
            if !backoff.is_due(&name, Instant::now()) {
                problems.extend(self.known(&name));
            } else if let Err(error) = self.heal_pod(cookie, &pod, &mut lists).await {
                let wait = backoff.failed(&name, Instant::now(), fastrand::f64());
                tracing::error!(pod = %name, %error, again = wait.as_secs_f32(), "give it back what it has lost");
                self.metrics.reconcile_failed();
                problems.push(Unrepaired { pod: name, problem: error.to_string() });
            }
        }
    }

    async fn heal_shared(&self) -> Result<(), EnrolError> {
        for healed in self.answerer.node.run(Node::heal_shared).await?? {
            tracing::warn!("brought back: {healed}");
        }
        Ok(())
    }

    async fn heal_pod(
        &self,
        cookie: NetnsCookie,
        pod: &PodReference,
        lists: &mut Lists,
    ) -> Result<(), EnrolError> {
        let lists = lists.remove(&cookie).unwrap_or_default();
        // Reports of changes may have been lost.
        let looked = self.answerer.node.run(move |node| (node.refresh(cookie), node.examine(cookie, &lists)));
        let (refreshed, actions) = looked.await?;
        let actions = actions?;
        if actions.is_empty() {
            return refreshed;
        }
        let capture = self.capture(pod, &actions).await;
        let done = self.answerer.node.run(move |node| node.heal(cookie, capture.as_ref())).await??;
        // It may have gone, or be well again, by now.
        if !done.is_empty() && done != [Action::Forget] {
            tracing::warn!(pod = %repair::name(pod), "brought back: {}", findings(&done));
        }
        refreshed
    }

    /// What the manifest asks for, where only that tells what was lost.
    async fn capture(&self, pod: &PodReference, actions: &[Action]) -> Option<Capture> {
        if !actions.iter().any(|action| action.needs_manifest()) {
            return None;
        }
        match self.answerer.capture(pod).await {
            Ok(capture) => Some(capture),
            Err(problem) => {
                tracing::warn!(pod = %repair::name(pod), %problem, "what it has lost is not in its manifest");
                None
            }
        }
    }
}
