//! Pods that enter the mesh, leave it, or go from one driver to another while they run.
//!
//! Owns: the order. A pod that runs dials and is dialled at every moment, so nothing of it may be redirected to a port on which
//! nobody listens: its policy captures nothing while a proxy that the agent drives begins or ceases to listen in it
//! ([`Presence`]), and what is opened then goes where it is dialled, as before it came into the mesh. What is open
//! already stays what it is. Never does: wait with the node's thread held: an ADD or DEL of the runtime's may come between any
//! two steps, so each looks whether the pod is there still. Called by: the reconciler.

use std::time::Duration;

use veer_common::maps::NetnsCookie;

use super::answer::Answerer;
use crate::enrol::node::Enrolling;
use crate::enrol::{EnrolError, Enrolled, Node};
use crate::model::{Capture, Driver, Origins, Presence};
use crate::proxy::driver::{ProxiedPod, ProxyDriver};
use crate::source::PodSource;

/// How long a proxy has at least to accept what was redirected to it last, and to ask where that was dialled.
const ACCEPTED: Duration = Duration::from_secs(1);
/// How often it is looked at whether it has.
const LOOKS: u32 = 10;
/// When it is looked at first whether a proxy has ceased to listen, twice as long later each time, and the pause that is too long.
const CEASED: Duration = Duration::from_millis(10);
const CEASED_AT_MOST: Duration = Duration::from_secs(5);

impl<S: PodSource> Answerer<S> {
    /// Enrols a pod that runs: its proxy listens before anything is redirected to it.
    pub(super) async fn enrol_running(&self, enrolling: Enrolling) -> Result<(), EnrolError> {
        if enrolling.capture.driver == Driver::Sidecar {
            return self.enrol(enrolling).await;
        }
        let container = enrolling.attachment.container_id.clone();
        let capture = enrolling.capture.clone();
        let asleep = Enrolling { capture: capture.asleep(Presence::Entering), ..enrolling };
        self.enrol(asleep).await?;
        let of = container.clone();
        let cookie =
            self.node.run(move |node| node.registry().of_container(&of).map(|pod| pod.cookie)).await?;
        match cookie {
            Some(cookie) => self.recapture(cookie, container, capture, None).await,
            None => Ok(()),
        }
    }

    /// Has a pod that is enrolled driven by whom its manifest names now. One whose entrance was broken off, as by the
    /// end of an agent, enters to the end.
    ///
    /// # Errors
    /// Why its driver does not serve it. Where that is known before, it stays as it was; else nothing of it is redirected, and
    /// the next attempt begins here.
    pub async fn move_running(
        &self,
        pod: &Enrolled,
        capture: Capture,
        origins: Box<Origins>,
    ) -> Result<(), EnrolError> {
        let (cookie, container) = (pod.cookie, pod.container_id.clone());
        let (of, wanted) = (pod.clone(), capture.clone());
        let (fits, is_asleep) =
            self.node.run(move |node| (node.fits(&of, &wanted), node.is_asleep(&of))).await?;
        fits?;
        if !is_asleep {
            // Until there is somebody to go to, it is better off with whom it has.
            self.drivers.is_there(capture.driver).await?;
        }
        if pod.driver != capture.driver {
            // Two proxies cannot have the same ports.
            self.fall_asleep(pod, &capture).await?;
        }
        let asleep = capture.asleep(Presence::Entering);
        self.recapture(cookie, container.clone(), asleep, None).await?;
        let of = container.clone();
        for pod in self.node.run(move |node| node.proxied(Some(&of))).await? {
            let pod = self.with_account(pod.clone()).await.unwrap_or(pod);
            let served = self.drivers.serve(&pod).await;
            self.forget_if_gone(&pod).await;
            served?;
        }
        self.recapture(cookie, container, capture, Some(origins)).await
    }

    /// Takes a pod that runs out of the mesh.
    ///
    /// # Errors
    /// As the kernel says; the next attempt begins anew.
    pub async fn withdraw(&self, pod: &Enrolled) -> Result<(), EnrolError> {
        let capture = Capture::of_nothing(pod.driver, &self.settings);
        self.fall_asleep(pod, &capture).await?;
        let (cookie, container) = (pod.cookie, pod.container_id.clone());
        self.node
            .run(move |node| {
                if is_there(node, cookie, &container) {
                    node.forget(cookie);
                }
            })
            .await
    }

    /// Redirects nothing of a pod any more, and then takes it from its driver.
    async fn fall_asleep(&self, pod: &Enrolled, capture: &Capture) -> Result<(), EnrolError> {
        let (cookie, container) = (pod.cookie, pod.container_id.clone());
        let asleep = Capture { driver: pod.driver, ..capture.asleep(Presence::Leaving) };
        self.recapture(cookie, container.clone(), asleep, None).await?;
        for _ in 0..LOOKS {
            tokio::time::sleep(ACCEPTED).await;
            let waiting = self.node.run(move |node| node.not_accepted(cookie)).await?;
            if waiting.is_none_or(|waiting| waiting == 0) {
                break;
            }
        }
        let drivers = self.drivers.clone();
        self.node
            .run(move |node| {
                let proxied: Vec<ProxiedPod> = node.proxied(Some(&container));
                for pod in proxied.iter().filter(|pod| pod.cookie == cookie) {
                    drivers.forget(pod);
                }
            })
            .await?;
        // Who is not there hears nothing of it, and may well listen on.
        if self.drivers.is_there(pod.driver).await.is_ok() {
            self.until_none_listens(cookie).await?;
        }
        Ok(())
    }

    /// Waits until the proxy that was told so has ceased to listen. One that does not is told of by the next one, whose ports are
    /// taken.
    async fn until_none_listens(&self, cookie: NetnsCookie) -> Result<(), EnrolError> {
        let mut pause = CEASED;
        while pause < CEASED_AT_MOST {
            if self.node.run(move |node| node.is_listened_in(cookie)).await? != Some(true) {
                break;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Ok(())
    }

    /// Redirects a pod otherwise, if it is there still.
    async fn recapture(
        &self,
        cookie: NetnsCookie,
        container: String,
        capture: Capture,
        origins: Option<Box<Origins>>,
    ) -> Result<(), EnrolError> {
        let change = move |node: &mut Node| {
            if is_there(node, cookie, &container) {
                node.recapture(cookie, &capture, origins)
            } else {
                Ok(())
            }
        };
        self.node.run(change).await?
    }
}

/// Whether the pod of this container has this netns still.
fn is_there(node: &Node, cookie: NetnsCookie, container: &str) -> bool {
    node.registry().get(cookie).is_some_and(|pod| pod.container_id == container)
}
