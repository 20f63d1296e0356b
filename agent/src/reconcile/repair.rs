//! Pods that run and are not redirected: those that started before veer, or while it was broken.
//!
//! Owns: finding them, and an ADD for each as the runtime would have made it. Never does: touch a pod that another
//! mesh redirects, or what its connections are that are open already. Called by: the reconciler.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};
use veer_common::cni::{PodReference, Reply};

use super::Reconciler;
use crate::admin::Repair;
use crate::cni::answer::Occasion;
use crate::doctor::redirection::Mesh;
use crate::locate::{NotLocated, Seen, locate};
use crate::model::{Decision, Pod, decide};
use crate::platform::probe::namespaces;
use crate::platform::runtime;
use crate::source::PodSource;

/// A pod that runs, is to be redirected, and is not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Unrepaired {
    /// `namespace/name`.
    pub pod: String,
    /// Why, and what to do.
    pub problem: String,
}

impl<S: PodSource + Send + Sync + 'static> Reconciler<S> {
    /// The pods of the source that are to be redirected and are not enrolled.
    pub(super) async fn missing(&self) -> Vec<PodReference> {
        let pods = match self.answerer.source.pods().await {
            Ok(pods) => pods,
            Err(error) => {
                tracing::error!(%error, "list the pods, to find those that are not redirected");
                return Vec::new();
            }
        };
        let enrolled = self.answerer.node.run(|node| {
            let names = node.registry().iter().map(|pod| (pod.pod.namespace.clone(), pod.pod.name.clone()));
            names.collect::<BTreeSet<_>>()
        });
        let Ok(enrolled) = enrolled.await else { return Vec::new() };
        let is_missing = |pod: &Pod| {
            let name = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
            !enrolled.contains(&name) && self.is_wanted(pod)
        };
        pods.into_iter().filter(is_missing).map(|pod| reference(&pod)).collect()
    }

    /// Whether it is to be redirected, or would be if its annotations were right.
    fn is_wanted(&self, pod: &Pod) -> bool {
        let settings = &self.answerer.settings;
        let is_excluded = settings.excluded_namespaces.contains(&pod.metadata.namespace);
        !is_excluded && !matches!(decide(pod, settings), Ok(Decision::Pass(_)))
    }

    /// What runs on the node.
    pub(super) async fn seen(&self) -> Option<Seen> {
        let (cache, netns) = (self.cni_cache.clone(), self.netns.clone());
        let seen = tokio::task::spawn_blocking(move || runtime::seen(&cache, &netns)).await;
        match seen.map_err(std::io::Error::other).and_then(|seen| seen) {
            Ok(seen) => Some(seen),
            Err(error) => {
                tracing::error!(%error, "look for pods that are not redirected");
                None
            }
        }
    }

    /// Enrols a pod that runs. `Ok` if it is enrolled now, or does not run here after all.
    pub(super) async fn repair(&self, pod: &PodReference, seen: &Seen) -> Result<(), String> {
        let located = match locate(pod, seen) {
            Ok(located) => located,
            Err(NotLocated::NotRunning) => return Ok(()),
            Err(problem) => return Err(problem.to_string()),
        };
        // It ended while it was looked for.
        let Some(netns) = runtime::open(&located) else { return Ok(()) };
        if self.is_of_another_version(&netns).await? {
            return Ok(());
        }
        self.is_untouched(&netns).await?;
        let is_gone = || runtime::open(&located).is_none();
        match self.answerer.add(located.attachment.clone(), Some(netns), is_gone, Occasion::Running).await {
            Reply::Done => {
                self.metrics.repaired(Repair::Success);
                tracing::warn!(pod = %name(pod), "was running without redirection, and is redirected from here on");
                Ok(())
            }
            Reply::Passed { .. } => {
                self.metrics.repaired(Repair::Skip);
                Ok(())
            }
            Reply::Failed { msg, .. } => Err(msg),
        }
    }

    /// Whether programs of another ABI version redirect it, which it is left to.
    async fn is_of_another_version(&self, netns: &OwnedFd) -> Result<bool, String> {
        let netns = netns.try_clone().map_err(|error| error.to_string())?;
        let version = self.answerer.node.run(move |node| node.other_version_of(netns.as_fd())).await;
        let version = version.and_then(|version| version).map_err(|error| error.to_string())?;
        Ok(version.is_some())
    }

    /// Two redirections in one netns would send each other's connections in circles.
    async fn is_untouched(&self, netns: &OwnedFd) -> Result<(), String> {
        let (thread, netns) = (self.netns.clone(), netns.try_clone().map_err(|error| error.to_string())?);
        let looked = tokio::task::spawn_blocking(move || {
            thread.run(netns.as_fd(), namespaces::chains).map_err(|error| error.to_string())?
        });
        let chains = looked.await.map_err(|error| error.to_string())??;
        match chains.iter().find_map(Mesh::of) {
            None => Ok(()),
            Some(mesh) => Err(format!(
                "{} redirects it already; delete the pod, and its successor is redirected by veer",
                mesh.name()
            )),
        }
    }
}

/// `namespace/name`.
pub(super) fn name(pod: &PodReference) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

fn reference(pod: &Pod) -> PodReference {
    let metadata = &pod.metadata;
    PodReference {
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
    }
}
