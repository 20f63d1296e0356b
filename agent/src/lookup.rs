//! What the agent knows of one pod, for `veer explain`: its manifest of now, where its settings come from, and
//! whether the kernel still holds what the manifest says.
//!
//! Owns: putting the pod source, the decision and the registry together. Never does: change anything, or
//! decide what is shown. Called by: the control socket.

use veer_common::cni::PodReference;
use veer_common::maps::NetnsCookie;

use crate::capture::{MapEntries, differences};
use crate::cni::answer::Answerer;
use crate::enrol::NodeHandle;
use crate::explain::causes::{Manifest, PodFacts};
use crate::model::{
    BackendName, BeforeProxy, Decision, NodeSettings, Origins, PassReason, ProxyIdentity, decide,
};
use crate::proxy::driver::Drivers;
use crate::source::PodSource;

/// What facts are found in.
#[derive(Debug)]
pub struct Lookup<S> {
    /// Where pods are read from.
    pub source: S,
    /// What holds for all pods of the node.
    pub settings: NodeSettings,
    /// The node.
    pub node: NodeHandle,
    /// Who drives the pods' proxies.
    pub drivers: Drivers,
}

/// What the registry and the maps have of an enrolled pod.
struct Held {
    cookie: NetnsCookie,
    backend: BackendName,
    entries: MapEntries,
    origins: Option<Origins>,
}

impl<S: PodSource> Lookup<S> {
    /// In what requests are answered from.
    pub fn of(answerer: &Answerer<S>) -> Self
    where
        S: Clone,
    {
        let Answerer { source, settings, node, drivers, .. } = answerer;
        Self {
            source: source.clone(),
            settings: settings.clone(),
            node: node.clone(),
            drivers: drivers.clone(),
        }
    }

    /// Everything that is known of a pod.
    pub async fn facts(&self, pod: &PodReference) -> PodFacts {
        let held = self.held(pod).await;
        let manifest = self.manifest(pod, held.as_ref()).await;
        PodFacts {
            source: self.source.name(),
            enrolled: held.is_some(),
            at_enrolment: held.and_then(|held| held.origins),
            manifest,
        }
    }

    async fn held(&self, pod: &PodReference) -> Option<Held> {
        let pod = pod.clone();
        let held = self.node.run(move |node| {
            let registry = node.registry();
            let enrolled = registry.of_pod(&pod.namespace, &pod.name)?;
            let (cookie, backend) = (enrolled.cookie, enrolled.backend);
            let origins = registry.origins(cookie).cloned();
            let entries = node.map_entries(cookie);
            Some(entries.map(|entries| Some(Held { cookie, backend, entries: entries?, origins })))
        });
        match held.await.ok()?? {
            Ok(held) => held,
            Err(error) => {
                tracing::error!(%error, "read the entries of a pod");
                None
            }
        }
    }

    async fn manifest(&self, reference: &PodReference, held: Option<&Held>) -> Manifest {
        let passed = |reason: PassReason| Manifest::Passed {
            reason: reason.name().to_owned(),
            sentence: reason.sentence().to_owned(),
        };
        // As at ADD, it needs no manifest to know.
        if self.settings.excluded_namespaces.contains(&reference.namespace) {
            return passed(PassReason::NamespaceExcluded);
        }
        let pod = match self.source.pod(reference).await {
            Ok(Some(pod)) => pod,
            Ok(None) => return Manifest::Unknown,
            Err(error) => return Manifest::Unreadable { problem: error.to_string() },
        };
        match decide(&pod, &self.settings) {
            Ok(Decision::Pass(reason)) => passed(reason),
            Ok(Decision::Capture(mut capture)) => {
                if held.is_some_and(|held| held.backend == BackendName::Nftables) {
                    // Rules know nothing else; that is no change of the manifest's or the node's.
                    capture.proxy_identity = ProxyIdentity::Uid;
                    capture.before_proxy = BeforeProxy::Refuse;
                }
                let changed =
                    held.map(|held| differences(held.cookie, &held.entries, &capture)).unwrap_or_default();
                Manifest::Captured { origins: Origins::of(&pod, &self.settings), changed }
            }
            Err(errors) => {
                Manifest::Invalid { errors: errors.errors.iter().map(ToString::to_string).collect() }
            }
        }
    }
}
