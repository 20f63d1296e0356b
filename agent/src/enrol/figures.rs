//! Numbers on the enrolled pods, for metrics: how many there are of each kind, and what all of them have counted.
//!
//! Owns: sums that only grow, although a pod's counters go with it (`Tally`). Never does: keep anything for each
//! connection. Called by: `admin`, and by the node when a pod goes.

use std::collections::{BTreeMap, HashMap};

use veer_common::maps::{
    Counters, MAX_HAND_OFFS, MAX_LISTENERS, MAX_OWN_ADDRESSES, MAX_PODS, MAX_PORT_LISTS, MAX_RANGES,
    NetnsCookie, name,
};
use veer_common::reason::{COUNTERS, HAND_OFFS_NOW, NO_COUNTS};

use super::node::Node;
use crate::model::BackendName;
use crate::platform::bpf::listening::Registered;

/// Whether a pod's proxy takes connections.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ProxyState {
    /// It listens on both of its ports.
    Listening,
    /// It does not, and connections are refused.
    NotListening,
    /// It has not listened yet, and connections go direct until it does.
    Awaited,
}

/// How a pod stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Standing {
    /// `redirect` or `tproxy`.
    pub(super) mode: &'static str,
    /// Its proxy.
    pub(super) proxy: ProxyState,
}

/// Numbers on some pods.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Figures {
    /// How many there are by backend and mode.
    pub pods: BTreeMap<(&'static str, &'static str), u64>,
    /// How many there are by their proxy.
    pub proxies: BTreeMap<ProxyState, u64>,
    /// What all have counted since the agent's start.
    pub totals: Counters,
    /// Listeners that are registered.
    pub listeners: u64,
    of_ebpf: u64,
    ports: usize,
    ranges: usize,
    own_addresses: usize,
    hand_offs: u64,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            pods: BTreeMap::new(),
            proxies: BTreeMap::new(),
            totals: Counters([0; COUNTERS]),
            listeners: 0,
            of_ebpf: 0,
            ports: 0,
            ranges: 0,
            own_addresses: 0,
            hand_offs: 0,
        }
    }
}

impl ProxyState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Listening, Self::NotListening, Self::Awaited];

    /// The name that metrics show, as `veer pods` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Listening => "listening",
            Self::NotListening => "not-listening",
            Self::Awaited => "awaited",
        }
    }
}

impl Figures {
    /// Adds those of other pods.
    pub fn add(&mut self, other: &Self) {
        for (kind, count) in &other.pods {
            *self.pods.entry(*kind).or_default() += count;
        }
        for (state, count) in &other.proxies {
            *self.proxies.entry(*state).or_default() += count;
        }
        self.of_ebpf += other.of_ebpf;
        self.ports += other.ports;
        self.ranges += other.ranges;
        self.own_addresses += other.own_addresses;
        self.hand_offs = self.hand_offs.saturating_add(other.hand_offs);
    }

    /// Maps of the datapath: what is in them, and how much can be.
    pub fn maps(&self) -> [(&'static str, u64, u64); 6] {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        [
            (name::PODS, self.of_ebpf, MAX_PODS.into()),
            (name::PORTS, count(self.ports), MAX_PORT_LISTS.into()),
            (name::RANGES, count(self.ranges), MAX_RANGES.into()),
            (name::OWN_ADDRESSES, count(self.own_addresses), MAX_OWN_ADDRESSES.into()),
            (name::HAND_OFFS, self.hand_offs, MAX_HAND_OFFS.into()),
            (name::LISTENERS, self.listeners, MAX_LISTENERS.into()),
        ]
    }
}

/// What all pods have counted since the agent's start: those that are gone, too, and nothing of before.
#[derive(Debug)]
pub(super) struct Tally {
    /// What each pod's counters were when they were read last.
    seen: HashMap<NetnsCookie, Box<Counters>>,
    totals: Counters,
}

impl Default for Tally {
    fn default() -> Self {
        Self { seen: HashMap::new(), totals: Counters([0; COUNTERS]) }
    }
}

impl Tally {
    /// What a pod had counted before this agent is not among its counts.
    fn begin(&mut self, cookie: NetnsCookie, before: &Counters) {
        self.seen.insert(cookie, Box::new(*before));
    }

    /// Counts what is new in a pod's counters. Lower ones than before have begun anew.
    fn count(&mut self, cookie: NetnsCookie, now: &Counters) {
        let before = self.seen.insert(cookie, Box::new(*now)).map_or([0; COUNTERS], |before| before.0);
        let rows = self.totals.0.iter_mut().zip(now.0).zip(before).enumerate();
        for (_, ((total, now), before)) in rows.filter(|(index, _)| !NO_COUNTS.contains(index)) {
            *total = total.saturating_add(if now < before { now } else { now - before });
        }
    }
}

impl Node {
    /// Numbers on these pods. What cannot be read of one is left out, and read the next time.
    pub fn figures(&mut self, cookies: &[NetnsCookie]) -> Figures {
        let mut figures = Figures::default();
        for cookie in cookies {
            let Some(pod) = self.registry.get(*cookie) else { continue };
            let backend = self.backends.get(pod.backend);
            let (standing, counters) = (backend.standing(pod), backend.counters(pod));
            if let Ok(Some(Standing { mode, proxy })) = standing {
                *figures.pods.entry((pod.backend.name(), mode)).or_default() += 1;
                *figures.proxies.entry(proxy).or_default() += 1;
            }
            if pod.backend == BackendName::Ebpf {
                figures.of_ebpf += 1;
                figures.ports += pod.lists.ports.len();
                figures.ranges += pod.lists.ranges.len();
                figures.own_addresses += pod.lists.own_addresses.len();
            }
            if let Ok(counters) = counters {
                // A signed number, which may be below zero for a moment.
                let now =
                    counters.0.get(HAND_OFFS_NOW).map_or(0, |now| now.cast_signed().max(0).cast_unsigned());
                figures.hand_offs = figures.hand_offs.saturating_add(now);
                self.tally.count(*cookie, &counters);
            }
        }
        figures
    }

    /// The listeners that are registered, for counting elsewhere than on this thread.
    pub fn registered(&self) -> Option<Registered> {
        self.backends.registered()
    }

    /// What all pods have counted since the agent's start, as far as it has been read.
    pub fn totals(&self) -> Counters {
        self.tally.totals
    }

    /// Takes what the pods of an earlier agent have counted as counted.
    pub(super) fn begin_tally(&mut self) {
        for pod in self.registry.iter() {
            if let Ok(counters) = self.backends.get(pod.backend).counters(pod) {
                self.tally.begin(pod.cookie, &counters);
            }
        }
    }

    /// Counts a pod for the last time.
    pub(super) fn end_tally(&mut self, cookie: NetnsCookie) {
        let Some(pod) = self.registry.get(cookie) else { return };
        if let Ok(counters) = self.backends.get(pod.backend).counters(pod) {
            self.tally.count(cookie, &counters);
        }
        self.tally.seen.remove(&cookie);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(first: u64) -> Counters {
        let mut counters = [0; COUNTERS];
        counters[0] = first;
        counters[HAND_OFFS_NOW] = u64::MAX;
        Counters(counters)
    }

    #[test]
    fn totals_grow_with_each_pod_and_never_shrink() {
        let mut tally = Tally::default();
        tally.begin(1, &counters(100));
        for (cookie, now, total) in [(1, 100, 0), (1, 103, 3), (2, 5, 8), (1, 2, 10), (1, 4, 12), (2, 5, 12)]
        {
            tally.count(cookie, &counters(now));
            assert_eq!(tally.totals.0[0], total, "{cookie} {now}");
        }
        // A pod that is gone leaves what it has counted; the next one of its cookie begins at 0.
        tally.seen.remove(&2);
        tally.count(2, &counters(1));
        assert_eq!((tally.totals.0[0], tally.totals.0[HAND_OFFS_NOW]), (13, 0));
    }
}
