//! Which of the node's proxies a pod without a sidecar asks for: by labels of its own, or else by those of its namespace.
//!
//! Owns: the two labels, and which of them counts. Never does: know whether the node has that proxy, but for ztunnel
//! ([`NodeSettings::ztunnel`]). Called by: `decision` and `origin`; and the sources, which ask what a namespace has to do
//! with a pod.
//!
//! The selectors are those of Istio's chart for `istio.io/dataplane-mode` (istio/istio, `manifests/charts/istio-cni`,
//! `enablementSelectors`), and the same for `veer.dev/proxy`: a pod that says `none` is not to have what its namespace asks
//! for, and any other value that is not known counts as no label.

use std::collections::BTreeMap;

use super::annotation::name;
use super::capture::Driver;
use super::decision::{NodeSettings, PROXY_CONTAINER};
use super::manifest::Pod;

/// The value of [`name::DATAPLANE_MODE`] that asks for ztunnel.
const AMBIENT: &str = "ambient";
/// The value, on a pod, that refuses what its namespace asks for.
const NONE: &str = "none";

/// What a namespace's labels ask for its pods: all that is kept of a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NamespaceLabels {
    /// `veer.dev/proxy: node`.
    pub node_proxy: bool,
    /// `istio.io/dataplane-mode: ambient`.
    pub ambient: bool,
}

impl NamespaceLabels {
    /// Out of all labels of a namespace.
    pub fn of(labels: &BTreeMap<String, String>) -> Self {
        let is = |name: &str, value: &str| labels.get(name).is_some_and(|found| found == value);
        Self { node_proxy: is(name::PROXY, Driver::Node.name()), ambient: is(name::DATAPLANE_MODE, AMBIENT) }
    }
}

/// What a pod asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Asked {
    /// Whom.
    pub(super) driver: Driver,
    /// By whose label.
    pub(super) by: AskedBy,
}

/// Whose label it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AskedBy {
    /// The pod's own.
    Pod,
    /// Its namespace's.
    Namespace,
}

impl Asked {
    /// The label, and its value.
    pub(super) const fn label(self) -> (&'static str, &'static str) {
        match self.driver {
            Driver::Ztunnel => (name::DATAPLANE_MODE, AMBIENT),
            Driver::Node | Driver::Sidecar => (name::PROXY, self.driver.name()),
        }
    }
}

/// Which of the node's proxies is to serve a pod, in whatever words it asks. A sidecar that is there anyway is the pod's
/// proxy; ztunnel leaves alone whom the injector has seen.
pub(super) fn served_by(pod: &Pod, node: &NodeSettings) -> Option<Asked> {
    asked(pod, pod.namespace_labels).filter(|asked| match asked.driver {
        Driver::Ztunnel => node.ztunnel && !pod.metadata.annotations.contains_key(name::STATUS),
        Driver::Node | Driver::Sidecar => true,
    })
}

/// What a pod asks for, whether the node has it or not.
fn asked(pod: &Pod, namespace: NamespaceLabels) -> Option<Asked> {
    if pod.container(PROXY_CONTAINER).is_some() {
        return None;
    }
    let own = |name: &str| pod.metadata.labels.get(name).map(String::as_str);
    let (proxy, mode) = (own(name::PROXY), own(name::DATAPLANE_MODE));
    let by = |driver, by| Some(Asked { driver, by });
    if proxy == Some(Driver::Node.name()) {
        by(Driver::Node, AskedBy::Pod)
    } else if mode == Some(AMBIENT) {
        by(Driver::Ztunnel, AskedBy::Pod)
    } else if namespace.node_proxy && proxy != Some(NONE) {
        by(Driver::Node, AskedBy::Namespace)
    } else if namespace.ambient && mode != Some(NONE) {
        by(Driver::Ztunnel, AskedBy::Namespace)
    } else {
        None
    }
}

impl Pod {
    /// Whether labels of its namespace could change what becomes of it: not where it has a sidecar, asks by a label of its
    /// own or refuses both, or uses the node's network.
    pub fn depends_on_its_namespace(&self) -> bool {
        let one_of_them = [(true, false), (false, true)];
        let by_namespace = one_of_them.map(|(node_proxy, ambient)| {
            let asked = asked(self, NamespaceLabels { node_proxy, ambient });
            asked.is_some_and(|asked| asked.by == AskedBy::Namespace)
        });
        !self.spec.host_network && by_namespace.contains(&true)
    }
}

#[cfg(test)]
mod tests;
