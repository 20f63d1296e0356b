//! What pods have sent past the mesh before their proxy listened (`--before-proxy=direct`), to be told of once for each pod.
//!
//! Owns: who was told of, and the words. Never does: look at a connection: the pods' counters have it, and are read at each
//! full pass, and before a pod goes. Called by: the reconciler and the CNI server, who tell.

use std::collections::BTreeSet;

use veer_common::cni::PodReference;
use veer_common::maps::NetnsCookie;
use veer_common::reason::Reason;

use super::figures::{ProxyState, Standing};
use super::node::Node;
use super::registry::Enrolled;
use crate::wall_clock;

/// Pods that have gone and were not told of yet; further ones are in the log alone.
const MOST_GONE: usize = 256;
/// An Event is kept for so long, in seconds: of an older pod an earlier agent has told.
const TOLD_BEFORE: u64 = 3600;

/// What a pod has sent past the mesh.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PastMesh {
    /// The pod; without its uid where an earlier agent has enrolled it.
    pub pod: PodReference,
    /// Its netns' cookie.
    pub cookie: NetnsCookie,
    /// Connections and datagrams.
    pub connections: u64,
    /// Whether its proxy has listened since, so that there will be no more.
    pub is_over: bool,
}

/// Who was told of.
#[derive(Debug, Default)]
pub(super) struct Told {
    pods: BTreeSet<NetnsCookie>,
    gone: Vec<PastMesh>,
}

impl PastMesh {
    /// What it means, for whoever describes the pod.
    pub fn text(&self) -> String {
        let (count, plural) = (self.connections, if self.connections == 1 { "" } else { "s" });
        let until =
            if self.is_over { "before its proxy listened" } else { "and its proxy has never listened" };
        format!(
            "{count} connection{plural} of this pod went past the mesh {until}: direct, without mTLS and seen by no policy \
             of the mesh, as --before-proxy=direct has it; with refuse they fail"
        )
    }
}

impl Node {
    /// Pods whose connections went past the mesh, each once: those whose proxy has listened since, and those that are gone.
    pub fn past_mesh(&mut self) -> Vec<PastMesh> {
        let mut news = self.gone_past_mesh();
        let over = self.registry.iter().filter(|pod| !self.told.pods.contains(&pod.cookie));
        let over: Vec<_> =
            over.filter_map(|pod| self.past_mesh_of(pod)).filter(|past| past.is_over).collect();
        for past in over {
            self.told.pods.insert(past.cookie);
            news.push(past);
        }
        news
    }

    /// Takes back that a pod was told: nobody could say yet who it is.
    pub fn tell_again(&mut self, cookie: NetnsCookie) {
        self.told.pods.remove(&cookie);
    }

    /// Those alone that are gone.
    pub fn gone_past_mesh(&mut self) -> Vec<PastMesh> {
        std::mem::take(&mut self.told.gone)
    }

    /// Of the pods that an earlier agent has left, the older ones were told of.
    pub(super) fn begin_past_mesh(&mut self) {
        let now = wall_clock::seconds();
        let is_old = |pod: &&Enrolled| now.saturating_sub(pod.enrolled_at) > TOLD_BEFORE;
        self.told.pods = self.registry.iter().filter(is_old).map(|pod| pod.cookie).collect();
    }

    /// Looks at a pod for the last time.
    pub(super) fn end_past_mesh(&mut self, cookie: NetnsCookie) {
        if self.told.pods.remove(&cookie) || self.told.gone.len() >= MOST_GONE {
            return;
        }
        let past = self.registry.get(cookie).and_then(|pod| self.past_mesh_of(pod));
        self.told.gone.extend(past);
    }

    /// What a pod has sent past the mesh, if anything.
    fn past_mesh_of(&self, pod: &Enrolled) -> Option<PastMesh> {
        let backend = self.backends.get(pod.backend);
        let counters = backend.counters(pod).ok()?;
        let connections = counters.0.get(Reason::BeforeProxy as usize).copied().filter(|count| *count > 0)?;
        let standing = backend.standing(pod);
        let is_over = matches!(
            standing,
            Ok(Some(Standing { proxy: ProxyState::Listening | ProxyState::NotListening, .. }))
        );
        Some(PastMesh { pod: pod.pod.clone(), cookie: pod.cookie, connections, is_over })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_told_how_many_went_where_and_what_that_means() {
        let pod = PodReference { namespace: "shop".to_owned(), name: "cart".to_owned(), uid: None };
        let past =
            |connections, is_over| PastMesh { pod: pod.clone(), cookie: 1, connections, is_over }.text();
        let text = past(7, true);
        assert!(
            text.starts_with("7 connections of this pod went past the mesh before its proxy listened"),
            "{text}"
        );
        assert!(text.contains("without mTLS and seen by no policy"), "{text}");
        assert!(
            past(1, false).starts_with("1 connection of this pod went past the mesh and its proxy has never")
        );
    }
}
