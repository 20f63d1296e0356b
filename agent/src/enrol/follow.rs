//! Pods whose addresses, interfaces or routes change after their enrolment: Multus adds an interface, IPv6 arrives
//! late.
//!
//! Owns: which number the kernel reports a pod by, and the looking anew when it does. Never does: poll, or hold
//! a netns: it is found by the path that the runtime named, and a pod that is not there any more is left as it is.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;

use tokio_util::sync::CancellationToken;
use veer_common::address::Address;
use veer_common::maps::NetnsCookie;

use super::error::EnrolError;
use super::node::{Node, NodeHandle};
use super::steps;
use crate::capture::InterfaceAddress;
use crate::platform::netlink;
use crate::platform::netlink::changes::{self, AddressChanges, Changed, FollowedChanges, NetnsNumber};

/// Brings pods up to date as the kernel reports changes, until `stop`.
pub async fn serve(changes: AddressChanges, node: NodeHandle, stop: CancellationToken) {
    let changes = match changes.follow() {
        Ok(changes) => changes,
        Err(error) => return gave_up(&error),
    };
    // Whoever is in the middle of a change when told to stop loses nothing: the next agent looks at all pods.
    stop.run_until_cancelled(follow(&changes, &node)).await.unwrap_or_default();
}

async fn follow(changes: &FollowedChanges, node: &NodeHandle) {
    loop {
        let done = match changes.next().await {
            Ok(Changed::Some { numbered, own }) => {
                node.run(move |node| node.refresh_changed(&numbered, own)).await
            }
            Ok(Changed::Unknown) => {
                tracing::info!("more changes of addresses than the kernel could report, looking at all pods");
                node.run(Node::refresh_all).await
            }
            Err(error) => return gave_up(&error),
        };
        // The node's thread has ended.
        if done.is_err() {
            return;
        }
    }
}

fn gave_up(error: &io::Error) {
    tracing::error!(%error, "addresses that pods gain or lose are not followed any more; restart the agent");
}

impl Node {
    /// Remembers by which number the kernel reports a pod.
    pub(super) fn follow(&mut self, cookie: NetnsCookie, number: io::Result<NetnsNumber>) {
        match number {
            Ok(number) => {
                self.numbers.retain(|_, other| *other != cookie);
                self.numbers.insert(number, cookie);
            }
            Err(error) => {
                tracing::warn!(cookie, %error, "addresses that this pod gains or loses are not followed");
            }
        }
    }

    /// Looks at the pods with these numbers anew, and at the node itself. Others than pods have numbers, too.
    fn refresh_changed(&mut self, numbers: &BTreeSet<NetnsNumber>, own: bool) {
        if own && let Err(error) = self.refresh_node_addresses() {
            tracing::error!(%error, "bring the node's addresses up to date");
        }
        let cookies: Vec<_> = numbers.iter().filter_map(|number| self.numbers.get(number)).copied().collect();
        for cookie in cookies {
            self.refresh_or_report(cookie);
        }
    }

    /// Looks at all pods anew.
    pub(super) fn refresh_all(&mut self) {
        if let Err(error) = self.refresh_node_addresses() {
            tracing::error!(%error, "bring the node's addresses up to date");
        }
        let cookies: Vec<_> = self.registry.iter().map(|pod| pod.cookie).collect();
        for cookie in cookies {
            self.refresh_or_report(cookie);
        }
    }

    /// A pod that cannot be looked at keeps what it has.
    fn refresh_or_report(&mut self, cookie: NetnsCookie) {
        if let Err(error) = self.refresh(cookie) {
            let pod = self.registry.get(cookie).map(super::Enrolled::full_name).unwrap_or_default();
            tracing::error!(%pod, %error, "bring its addresses up to date");
        }
    }

    /// Looks at a pod anew.
    ///
    /// # Errors
    /// If that cannot be done, or what has changed has no room; the pod keeps what it has.
    pub fn refresh(&mut self, cookie: NetnsCookie) -> Result<(), EnrolError> {
        let Some(before) = self.registry.get(cookie).cloned() else { return Ok(()) };
        // Its DEL is on the way.
        let Some(netns) = steps::open_netns(&before) else { return Ok(()) };
        if !self.numbers.values().any(|followed| *followed == cookie) {
            self.follow(cookie, changes::number_of(netns.as_fd()));
        }
        let addresses = self
            .netns
            .run(netns.as_fd(), netlink::addresses)?
            .map_err(|source| EnrolError::Inspect { attempt: "read the addresses", source })?;
        if let Some(pod) =
            self.backends.get_mut(before.backend).readdress(&before, netns.as_fd(), addresses)?
        {
            tracing::info!(pod = %pod.full_name(), addresses = pod.lists.own_addresses.len(), "its addresses, interfaces or routes have changed");
            self.registry.insert(pod);
        }
        Ok(())
    }
}

/// The addresses of a pod whose IPv6 is captured: ::6 is about to become one, if it is not.
pub(super) fn with_passthrough(mut addresses: Vec<InterfaceAddress>) -> Vec<InterfaceAddress> {
    addresses.push(InterfaceAddress {
        interface: "lo".to_owned(),
        address: Address::PASSTHROUGH_V6.into(),
        scope: 0,
        flags: 0,
    });
    addresses
}
