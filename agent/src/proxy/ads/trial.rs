//! Who is served, with what of users' own, and whether Envoy takes that. Pure.
//!
//! Users' resources are on trial until Envoy has taken them for one pod. If it refuses them for a pod before, all pods go back
//! to what it took last, so that a filter that Envoy does not like harms nobody: what Envoy has of a pod it keeps when it
//! refuses, and what comes next is what it has. Its words are kept. A pod that is refused with either is refused for something
//! of its own (one of its apps has the port), and the trial goes on without it. Without anything that was ever taken nobody goes back to
//! pods without filters: these may be what guards them.
//! Never does: I/O. Called by: `proxy::ads`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::config::UserConfig;
use super::super::delta::{Delta, Owner, Response, State};
use super::super::driver::ProxiedPod;
use super::super::resources::Resources;

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Served {
    pub(super) delta: Delta,
    pods: BTreeMap<Owner, ProxiedPod>,
    /// What pods are served with; nobody is without.
    config: Option<Arc<UserConfig>>,
    /// What Envoy took last.
    proven: Option<Arc<UserConfig>>,
    /// Why what users want is not [`Self::config`].
    pub(super) problem: Option<String>,
    /// Who was refused already when the trial began: it says nothing of what is on trial.
    refused_before: BTreeSet<Owner>,
    /// Who has refused what was taken back, and what that was, as long as it is not known whether that was the reason.
    suspect: Option<(Owner, Arc<UserConfig>)>,
    /// Clusters that nobody names any more once all pods have what is wanted now.
    retired: BTreeSet<Owner>,
    /// Whether all pods are known.
    is_complete: bool,
}

impl Served {
    /// Nobody, so far. With `has_config`, what users add comes later.
    pub(super) fn new(has_config: bool) -> Self {
        let config = (!has_config).then(Arc::default);
        Self { proven: config.clone(), config, ..Self::default() }
    }

    /// A pod is to be served.
    pub(super) fn serve(&mut self, pod: ProxiedPod) -> Vec<Response> {
        let owner = pod.owner();
        let wanted = self.config.as_ref().map(|config| Resources::of(&pod, config));
        self.pods.insert(owner.clone(), pod);
        wanted.map(|wanted| self.delta.want(&owner, wanted)).unwrap_or_default()
    }

    /// A pod is not to be served any more.
    pub(super) fn forget(&mut self, owner: &str) -> Vec<Response> {
        self.pods.remove(owner);
        self.delta.forget(owner)
    }

    /// All pods of the node are known.
    pub(super) fn complete(&mut self) -> Vec<Response> {
        self.is_complete = true;
        // Nothing is taken from an Envoy before it is known what it is to have.
        if self.config.is_some() { self.delta.complete() } else { Vec::new() }
    }

    /// What users want from now on.
    pub(super) fn configure(&mut self, config: &Arc<UserConfig>) -> Vec<Response> {
        self.problem = None;
        self.suspect = None;
        if self.config.as_ref() == Some(config) {
            return Vec::new();
        }
        let is_refused = |owner: &&Owner| matches!(self.delta.state(owner), State::Refused(_));
        self.refused_before = self.pods.keys().filter(is_refused).cloned().collect();
        let is_first = self.config.is_none();
        let mut responses = self.want(config);
        if is_first && self.is_complete {
            responses.extend(self.delta.complete());
        }
        responses
    }

    /// Serves everybody with it. Clusters come first, because routes name them.
    fn want(&mut self, config: &Arc<UserConfig>) -> Vec<Response> {
        let before = self.config.replace(Arc::clone(config));
        let mut responses = Vec::new();
        for cluster in config.clusters() {
            self.retired.remove(&cluster.name);
            responses.extend(self.delta.want(&cluster.name, Resources::of_nobody(cluster)));
        }
        let is_wanted = |name: &Owner| config.clusters().iter().any(|cluster| cluster.name == *name);
        let before = before.iter().flat_map(|before| before.clusters()).map(|cluster| cluster.name.clone());
        self.retired.extend(before.filter(|name| !is_wanted(name)));
        for (owner, pod) in &self.pods {
            responses.extend(self.delta.want(owner, Resources::of(pod, config)));
        }
        responses
    }

    /// What users want cannot be read: nothing is tried any more.
    pub(super) fn misconfigured(&mut self, problem: String) {
        self.suspect = None;
        self.problem = Some(problem);
    }

    /// What follows from what Envoy has said.
    pub(super) fn judge(&mut self) -> Vec<Response> {
        let mut responses = self.judge_trial();
        let is_pending = |owner: &Owner| self.delta.state(owner) == State::Pending;
        if !self.retired.is_empty() && self.delta.connected() > 0 && !self.pods.keys().any(is_pending) {
            for name in std::mem::take(&mut self.retired) {
                responses.extend(self.delta.forget(&name));
            }
        }
        responses
    }

    fn judge_trial(&mut self) -> Vec<Response> {
        if let Some(again) = self.judge_suspect() {
            return again;
        }
        let Some(config) = self.config.clone().filter(|config| self.proven.as_ref() != Some(config)) else {
            return Vec::new();
        };
        let is_served = |owner: &Owner| self.delta.state(owner) == State::Served;
        let has_clusters = config.clusters().iter().all(|cluster| is_served(&cluster.name));
        if has_clusters && self.pods.keys().any(is_served) {
            self.proven = Some(config);
            return Vec::new();
        }
        let of_clusters = config.clusters().iter().map(|cluster| &cluster.name);
        let of_pods = self.pods.keys().filter(|owner| !self.refused_before.contains(*owner));
        let refusal = of_clusters.chain(of_pods).find_map(|owner| match self.delta.state(owner) {
            State::Refused(words) => Some((owner.clone(), words)),
            State::NoProxy | State::Pending | State::Served => None,
        });
        if let (Some((owner, words)), Some(proven)) = (refusal, self.proven.clone()) {
            tracing::error!(%words, "Envoy refuses --proxy-config; pods go on with what it took last");
            self.problem = Some(format!("Envoy refuses it: {words}"));
            self.suspect = self.pods.contains_key(&owner).then_some((owner, config));
            return self.want(&proven);
        }
        Vec::new()
    }

    /// Whether who has refused refuses what Envoy took before as well. Then, and if it has gone, the trial goes on without it.
    fn judge_suspect(&mut self) -> Option<Vec<Response>> {
        let (owner, config) = self.suspect.clone()?;
        if self.pods.contains_key(&owner) {
            match self.delta.state(&owner) {
                State::NoProxy | State::Pending => return None,
                State::Served => {
                    self.suspect = None;
                    return None;
                }
                State::Refused(_words) => {}
            }
        }
        tracing::info!(
            pod = owner,
            "who refused --proxy-config has gone, or refuses what was taken before as well; it is tried again"
        );
        self.suspect = None;
        self.problem = None;
        self.refused_before.insert(owner);
        Some(self.want(&config))
    }

    /// Whether it is known what users add. Before that nobody is served.
    pub(super) const fn knows_config(&self) -> bool {
        self.config.is_some()
    }

    /// Whether nobody can be served, because nothing that users add could be read.
    pub(super) fn is_without_config(&self) -> bool {
        self.config.is_none() && self.problem.is_some()
    }

    /// Who is to be served.
    pub(super) fn pods(&self) -> impl Iterator<Item = &Owner> {
        self.pods.keys()
    }
}

#[cfg(test)]
mod tests;
