//! What the datapath sees of the pods' proxies, for their drivers.
//!
//! Owns: reading it. Never does: judge. Called by: [`ProxyWatch`](crate::proxy::watch::ProxyWatch).

use std::os::fd::AsFd;

use veer_common::maps::{Counters, NetnsCookie};
use veer_common::reason::{PROXY_BEGAN, PROXY_CEASED};

use super::ebpf::DEFAULT_PORTS;
use super::figures::{ProxyState, Standing};
use super::node::{Node, proxied_pod};
use super::steps;
use crate::platform::netlink;
use crate::proxy::driver::SeenProxy;
use crate::wall_clock;

impl Node {
    /// How many connections wait in the pod's netns for its proxy to accept them; `None` if that cannot be told.
    pub fn not_accepted(&self, cookie: NetnsCookie) -> Option<u32> {
        let netns = steps::open_netns(self.registry.get(cookie)?)?;
        let ports = steps::proxy_ports(&DEFAULT_PORTS);
        self.netns.run(netns.as_fd(), move || netlink::not_accepted(&ports)).ok()?.ok()
    }

    /// Whether somebody listens on the ports of the pod's proxy; `None` if that cannot be told.
    pub fn is_listened_in(&self, cookie: NetnsCookie) -> Option<bool> {
        let netns = steps::open_netns(self.registry.get(cookie)?)?;
        let ports = [DEFAULT_PORTS.outbound_port, DEFAULT_PORTS.inbound_port];
        let listeners = self.netns.run(netns.as_fd(), move || netlink::listeners(&ports)).ok()?.ok()?;
        Some(!listeners.is_empty())
    }

    /// The proxies of these pods. One that cannot be looked at is left out.
    pub fn seen_proxies(&self, cookies: &[NetnsCookie]) -> Vec<SeenProxy> {
        let pods = cookies.iter().filter_map(|cookie| self.registry.get(*cookie));
        let seen = pods.filter_map(|pod| {
            let backend = self.backends.get(pod.backend);
            let Standing { proxy, .. } = backend.standing(pod).ok()??;
            let moments = backend.counters(pod).map(|counters| moments(&counters)).unwrap_or_default();
            Some(SeenProxy {
                pod: proxied_pod(pod),
                enrolled_at: pod.enrolled_at,
                listens: proxy == ProxyState::Listening,
                began: moments.0,
                ceased: moments.1,
                netns: steps::open_netns(pod),
            })
        });
        seen.collect()
    }
}

/// When the proxy began and ceased to listen, in seconds since the epoch.
pub fn moments(counters: &Counters) -> (Option<u64>, Option<u64>) {
    let moment = |index: usize| {
        let stamp = counters.0.get(index).copied().filter(|stamp| *stamp > 0)?;
        Some(wall_clock::of_monotonic(stamp).as_secs())
    };
    (moment(PROXY_BEGAN), moment(PROXY_CEASED))
}
