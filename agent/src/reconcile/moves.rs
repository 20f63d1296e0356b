//! Enrolled pods whose manifest, or whose namespace, names another driver by now, or none.
//!
//! Owns: finding them. A pod with a sidecar never moves: nobody takes a container out of a pod that runs. Never does: the
//! moving itself, which is the answerer's. Called by: the reconciler, at each full pass and when the source has news.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::backoff::Backoff;
use super::{Reconciler, Unrepaired};
use crate::cluster::notice::NoticeKind;
use crate::enrol::{EnrolError, Enrolled};
use crate::model::{Capture, Decision, Driver, Origins, Pod, decide};
use crate::source::PodSource;

/// What is to become of a pod.
enum Move {
    /// It leaves the mesh.
    Out,
    /// Its driver is another one, or it never got to the end of its way in.
    To(Box<Capture>, Box<Origins>),
}

impl<S: PodSource + Send + Sync + 'static> Reconciler<S> {
    /// Moves those that are to be moved, of these names or of all.
    pub(super) async fn move_all(
        &self,
        names: Option<&BTreeSet<String>>,
        backoff: &mut Backoff,
        problems: &mut Vec<Unrepaired>,
    ) {
        for (pod, towards) in self.to_be_moved(names).await {
            let name = pod.full_name();
            if !backoff.is_due(&name, Instant::now()) {
                problems.extend(self.known(&name));
                continue;
            }
            if let Err(error) = self.move_one(&pod, towards).await {
                let wait = backoff.failed(&name, Instant::now(), fastrand::f64());
                tracing::error!(pod = %name, %error, again = wait.as_secs_f32(), "move it to another driver");
                self.metrics.reconcile_failed();
                problems.push(Unrepaired { pod: name, problem: error.to_string() });
            }
        }
    }

    async fn move_one(&self, pod: &Enrolled, towards: Move) -> Result<(), EnrolError> {
        let (name, before) = (pod.full_name(), pod.driver.name());
        match towards {
            Move::Out => {
                self.answerer.withdraw(pod).await?;
                tracing::info!(pod = %name, driver = before, "left the mesh while it runs");
            }
            Move::To(capture, origins) => {
                let now = capture.driver.name();
                self.answerer.move_running(pod, *capture, origins).await?;
                tracing::info!(pod = %name, before, now, "its proxy is driven by another one while it runs");
                let text = format!("its proxy is driven by {now} from here on, and was by {before}");
                self.answerer.notices.tell(&pod.pod, NoticeKind::Enrolled, text);
            }
        }
        Ok(())
    }

    async fn to_be_moved(&self, names: Option<&BTreeSet<String>>) -> Vec<(Enrolled, Move)> {
        let enrolled = self.answerer.node.run(|node| {
            let movable = node.registry().iter().filter(|pod| pod.driver != Driver::Sidecar);
            movable.map(|pod| (pod.clone(), node.is_asleep(pod))).collect::<Vec<_>>()
        });
        let Ok(enrolled) = enrolled.await else { return Vec::new() };
        if enrolled.is_empty() {
            return Vec::new();
        }
        // Who cannot be asked says nothing new of anybody.
        let Ok(pods) = self.answerer.source.pods().await else { return Vec::new() };
        let known: BTreeMap<String, Pod> = pods.into_iter().map(|pod| (pod.full_name(), pod)).collect();
        let meant = enrolled
            .into_iter()
            .filter(|(pod, _)| names.is_none_or(|names| names.contains(&pod.full_name())));
        meant
            .filter_map(|(enrolled, is_asleep)| {
                let pod = known.get(&enrolled.full_name())?;
                let towards = self.towards(&enrolled, is_asleep, pod)?;
                Some((enrolled, towards))
            })
            .collect()
    }

    fn towards(&self, enrolled: &Enrolled, is_asleep: bool, pod: &Pod) -> Option<Move> {
        match decide(pod, &self.answerer.settings) {
            Ok(Decision::Pass(_)) => Some(Move::Out),
            Ok(Decision::Capture(capture)) if is_asleep || capture.driver != enrolled.driver => {
                Some(Move::To(capture, Box::new(Origins::of(pod, &self.answerer.settings))))
            }
            // What is wrong with its annotations it is told at its next ADD.
            Ok(Decision::Capture(_)) | Err(_) => None,
        }
    }
}
