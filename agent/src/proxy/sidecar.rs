//! Proxies that are in their pods: kubelet starts them and the pod's own agent configures them.
//!
//! Owns: how they stand. What the datapath sees of their listeners comes with the question; whether one that lost them
//! lives still, and what its readiness says, is looked up in its netns. Never does: wait for one, or ask it unasked: a
//! sidecar begins after the pod's ADD. Called by: [`Drivers`](super::driver::Drivers).

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::time::timeout;
use veer_common::address::Port;
use veer_common::maps::NetnsCookie;

use super::driver::{Depth, DriverError, ProxiedPod, ProxyDriver, SeenProxy};
use super::readiness;
use super::state::{ProxyHealth, Readiness};
use crate::platform::netlink;
use crate::platform::netns::NetnsThread;

/// Where Envoy's admin interface listens (`proxyAdminPort`), which draining its listeners does not close.
const ADMIN: Port = Port::new(15000);
/// Pods that are looked at or asked at once.
const AT_ONCE: usize = 16;
/// How long a sidecar may take to say whether it is ready: kubelet's own default.
const ANSWERED: Duration = Duration::from_secs(1);

/// The driver.
#[derive(Clone, Debug)]
pub struct Sidecar {
    netns: NetnsThread,
    /// How each stood when it was looked at last.
    known: Arc<Mutex<HashMap<NetnsCookie, ProxyHealth>>>,
}

impl Sidecar {
    /// With the way into a netns.
    pub fn new(netns: NetnsThread) -> Self {
        Self { netns, known: Arc::default() }
    }

    async fn health_of(&self, seen: SeenProxy, depth: Depth) -> (NetnsCookie, ProxyHealth) {
        let cookie = seen.pod.cookie;
        let before = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&cookie).cloned();
        let was_ready = before.as_ref().is_some_and(|before| before.state.has_been_ready());
        let has_listened = seen.ceased.is_some() || was_ready;
        let lives = if !seen.listens && has_listened { self.lives(&seen).await } else { None };
        let readiness = if seen.listens && depth == Depth::Asked {
            self.ready(&seen).await.map_or(Readiness::Silent, Readiness::Status)
        } else {
            Readiness::NotAsked
        };
        let health = seen.health(before.as_ref(), lives, readiness);
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(cookie, health.clone());
        (cookie, health)
    }

    /// Whether its admin interface listens; `None` if nobody can tell.
    async fn lives(&self, seen: &SeenProxy) -> Option<bool> {
        let (thread, netns) = (self.netns.clone(), seen.netns.as_ref()?.try_clone().ok()?);
        let look = move || thread.run(netns.as_fd(), || netlink::listeners(&[ADMIN])).ok()?.ok();
        let found = tokio::task::spawn_blocking(look).await.ok()??;
        Some(!found.is_empty())
    }

    /// What its readiness says; `None` without an answer.
    async fn ready(&self, seen: &SeenProxy) -> Option<u16> {
        let netns = seen.netns.as_ref()?;
        timeout(ANSWERED, readiness::status(&self.netns, netns)).await.ok()?
    }
}

impl ProxyDriver for Sidecar {
    async fn serve(&self, _pod: &ProxiedPod) -> Result<(), DriverError> {
        Ok(())
    }

    async fn begin(&self, _pod: &ProxiedPod) {}

    async fn complete(&self) {}

    fn forget(&self, pod: &ProxiedPod) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(&pod.cookie);
    }

    async fn health(&self, seen: Vec<SeenProxy>, depth: Depth) -> Vec<(NetnsCookie, ProxyHealth)> {
        let asked = stream::iter(seen).map(|seen| self.health_of(seen, depth));
        asked.buffer_unordered(AT_ONCE).collect().await
    }
}
