//! Who drives a pod's proxy: one trait, one implementation for each way.
//!
//! Owns: what is asked of a driver, what it is told of a pod, and which of them a pod's is. Never does: redirect anything,
//! or know which pods there are. Called by: `cni`, which waits for a pod to be served; the node, when one goes; `app`, at
//! the start.

use std::fmt;
use std::fs::File;

use thiserror::Error;
use veer_common::maps::NetnsCookie;

use super::ads::{Ads, ProxyError};
use super::sidecar::Sidecar;
use super::state::{ProxyHealth, Readiness, Sighting};
use super::zds::{Zds, ZdsError};
use crate::model::Driver;
use crate::platform::netns::NetnsId;
use crate::wall_clock;

/// A pod whose proxy is driven.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProxiedPod {
    /// Its netns.
    pub cookie: NetnsCookie,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// The pod's `metadata.uid`, where the runtime says it.
    pub uid: Option<String>,
    /// CNI container id.
    pub container_id: String,
    /// Who it is in the mesh. Only its manifest says so, which is read where a driver has to tell others.
    pub service_account: Option<String>,
    /// Its netns as a path, which a proxy of the node's opens.
    pub netns_path: String,
    /// The file that this is.
    pub netns: NetnsId,
    /// Whether it has IPv6, on loopback at least.
    pub has_v6: bool,
    /// Whose it is.
    pub driver: Driver,
}

/// What the datapath sees of a pod's proxy. Moments are seconds since the epoch.
#[derive(Debug)]
pub struct SeenProxy {
    /// The pod.
    pub pod: ProxiedPod,
    /// When it was enrolled.
    pub enrolled_at: u64,
    /// Whether somebody listens on both of the proxy's ports.
    pub listens: bool,
    /// When a socket of the proxy's began to listen there, last; `None` if that was before the enrolment, or never.
    pub began: Option<u64>,
    /// When one ceased to, last.
    pub ceased: Option<u64>,
    /// The pod's netns, if it is there.
    pub netns: Option<File>,
}

/// How much is done to learn how proxies stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// They are not asked themselves.
    Seen,
    /// Those are asked who say whether they are ready.
    Asked,
}

/// Drives the proxies of pods.
///
/// A pod is redirected before it is served and until it is forgotten, so that nothing of it goes past its proxy. None of
/// this is an enrolled pod's end: a driver that cannot serve says so, and the pod's connections are refused until it can.
pub trait ProxyDriver {
    /// Has a pod served, and waits until its proxy takes connections, if it is the driver who has it listen. Whoever does
    /// not wait any more changes nothing. A pod that is served already is served as it is now.
    ///
    /// # Errors
    /// Why it is not served.
    fn serve(&self, pod: &ProxiedPod) -> impl Future<Output = Result<(), DriverError>> + Send;

    /// Whether there is a proxy that could serve a pod now, as far as that is known without asking it.
    ///
    /// # Errors
    /// Why there is none.
    fn is_there(&self, _driver: Driver) -> impl Future<Output = Result<(), DriverError>> + Send {
        std::future::ready(Ok(()))
    }

    /// Takes on a pod that an earlier agent has enrolled, and waits for nothing.
    fn begin(&self, pod: &ProxiedPod) -> impl Future<Output = ()> + Send;

    /// All that an earlier agent has enrolled were begun: what a proxy has besides, it is to lose.
    fn complete(&self) -> impl Future<Output = ()> + Send;

    /// Takes a pod from its proxy, which lets its connections end; one that is not served is fine. Called on the node's
    /// thread, never on the runtime's: it may wait for room.
    fn forget(&self, pod: &ProxiedPod);

    /// How the proxies of these pods, all of them its own, stand. Without anything better to go by: as their listeners do.
    fn health(
        &self,
        seen: Vec<SeenProxy>,
        _depth: Depth,
    ) -> impl Future<Output = Vec<(NetnsCookie, ProxyHealth)>> + Send {
        let health = seen.iter().map(|seen| (seen.pod.cookie, seen.health(None, None, Readiness::NotAsked)));
        std::future::ready(health.collect())
    }
}

/// Why a pod is not served.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum DriverError {
    /// The node's Envoy.
    #[error(transparent)]
    Node(#[from] ProxyError),
    /// The node's ztunnel.
    #[error(transparent)]
    Ztunnel(#[from] ZdsError),
}

/// All of them: a pod is its own driver's business alone.
#[derive(Clone, Debug)]
pub struct Drivers {
    /// Pods that have a proxy of their own.
    pub sidecar: Sidecar,
    /// Pods that the node's Envoy serves.
    pub node: Ads,
    /// Pods that the node's ztunnel serves.
    pub ztunnel: Zds,
}

impl ProxyDriver for Drivers {
    async fn serve(&self, pod: &ProxiedPod) -> Result<(), DriverError> {
        match pod.driver {
            Driver::Sidecar => self.sidecar.serve(pod).await,
            Driver::Node => ProxyDriver::serve(&self.node, pod).await,
            Driver::Ztunnel => ProxyDriver::serve(&self.ztunnel, pod).await,
        }
    }

    async fn is_there(&self, driver: Driver) -> Result<(), DriverError> {
        match driver {
            Driver::Sidecar => self.sidecar.is_there(driver).await,
            Driver::Node => self.node.is_there(driver).await,
            Driver::Ztunnel => self.ztunnel.is_there(driver).await,
        }
    }

    async fn begin(&self, pod: &ProxiedPod) {
        match pod.driver {
            Driver::Sidecar => self.sidecar.begin(pod).await,
            Driver::Node => ProxyDriver::begin(&self.node, pod).await,
            Driver::Ztunnel => ProxyDriver::begin(&self.ztunnel, pod).await,
        }
    }

    async fn complete(&self) {
        self.sidecar.complete().await;
        ProxyDriver::complete(&self.node).await;
        ProxyDriver::complete(&self.ztunnel).await;
    }

    fn forget(&self, pod: &ProxiedPod) {
        match pod.driver {
            Driver::Sidecar => self.sidecar.forget(pod),
            Driver::Node => ProxyDriver::forget(&self.node, pod),
            Driver::Ztunnel => ProxyDriver::forget(&self.ztunnel, pod),
        }
    }

    async fn health(&self, seen: Vec<SeenProxy>, depth: Depth) -> Vec<(NetnsCookie, ProxyHealth)> {
        let (mut sidecars, mut of_node, mut of_ztunnel) = (Vec::new(), Vec::new(), Vec::new());
        for seen in seen {
            match seen.pod.driver {
                Driver::Sidecar => sidecars.push(seen),
                Driver::Node => of_node.push(seen),
                Driver::Ztunnel => of_ztunnel.push(seen),
            }
        }
        let mut health = self.sidecar.health(sidecars, depth).await;
        health.extend(self.node.health(of_node, depth).await);
        health.extend(self.ztunnel.health(of_ztunnel, depth).await);
        health
    }
}

impl SeenProxy {
    /// How the proxy stands by its listeners, by how it stood before, whether something else of it lives, and by what it
    /// says itself.
    pub fn health(
        &self,
        before: Option<&ProxyHealth>,
        lives: Option<bool>,
        readiness: Readiness,
    ) -> ProxyHealth {
        ProxyHealth::of_listeners(&Sighting {
            enrolled_at: self.enrolled_at,
            listens: self.listens,
            began: self.began,
            ceased: self.ceased,
            lives,
            readiness,
            before,
            now: wall_clock::seconds(),
        })
    }
}

impl ProxiedPod {
    /// What all names of its resources have in common: `shop/cart-1|4711`. The cookie keeps a pod apart from an earlier
    /// one of its name, whose listeners may be draining still.
    pub fn owner(&self) -> String {
        format!("{self}|{}", self.cookie)
    }
}

impl fmt::Display for ProxiedPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
