//! What is kept of a pod that nftables redirects: who it is, and what its rules were made from.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};
use veer_common::cni::PodReference;
use veer_common::maps::{NetnsCookie, PodPolicy, flag};

use super::follow::with_passthrough;
use super::registry::Enrolled;
use crate::capture::nft::Ruleset;
use crate::capture::{InterfaceAddress, Links, MapEntries, OwnAddresses, map_entries, policy_of_addresses};
use crate::model::{BackendName, BeforeProxy, Capture, ProxyIdentity};
use crate::platform::bpf::maps::ListEntries;
use crate::platform::netns::NetnsId;

/// The record of a pod.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// CNI container id.
    pub container_id: String,
    /// The interface that the runtime named at ADD.
    pub interface: String,
    /// The CNI network of that interface.
    pub network: String,
    /// Namespace and name.
    pub pod: PodReference,
    /// The netns as the runtime named it.
    pub netns_path: String,
    /// The netns as a file: its device and its inode number.
    pub netns: (u64, u64),
    /// Seconds since the epoch.
    pub enrolled_at: u64,
    /// How it is captured.
    pub capture: Capture,
    /// The families that it has, and whether IPv6 is captured.
    pub families: Families,
    /// Tells whether other rules would be made today.
    pub rules: u64,
}

/// What depends on a pod's addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Families {
    /// It has an IPv4 address.
    pub has_v4: bool,
    /// It has an IPv6 address.
    pub has_v6: bool,
    /// Its IPv6 is captured.
    pub captures_v6: bool,
}

impl Families {
    /// Those of a pod that is enrolled now.
    pub(super) fn of(capture: &Capture, own: &OwnAddresses) -> Self {
        Self::of_policy(&map_entries(0, capture, own).policy)
    }

    /// Those of an enrolled pod whose addresses have changed.
    pub(super) fn readdressed(self, capture: &Capture, own: &OwnAddresses) -> Self {
        let before = self.within(map_entries(0, capture, own).policy);
        Self::of_policy(&policy_of_addresses(&before, own))
    }

    const fn of_policy(policy: &PodPolicy) -> Self {
        Self {
            has_v4: policy.flags & flag::HAS_V4 != 0,
            has_v6: policy.flags & flag::HAS_V6 != 0,
            captures_v6: policy.flags & flag::CAPTURES_V6 != 0,
        }
    }

    /// A policy with these families.
    fn within(self, policy: PodPolicy) -> PodPolicy {
        let rows =
            [(flag::HAS_V4, self.has_v4), (flag::HAS_V6, self.has_v6), (flag::CAPTURES_V6, self.captures_v6)];
        let flags = rows.into_iter().fold(
            policy.flags,
            |flags, (bit, holds)| {
                if holds { flags | bit } else { flags & !bit }
            },
        );
        PodPolicy { flags, ..policy }
    }
}

impl Record {
    /// The record of a pod.
    pub(super) fn new(pod: &Enrolled, capture: &Capture, families: Families) -> Self {
        let mut record = Self {
            container_id: pod.container_id.clone(),
            interface: pod.interface.clone(),
            network: pod.network.clone(),
            pod: pod.pod.clone(),
            netns_path: pod.netns_path.clone(),
            netns: (pod.netns.device, pod.netns.inode),
            enrolled_at: pod.enrolled_at,
            // Rules know a process by its ids, and cannot know who has listened.
            capture: Capture {
                proxy_identity: ProxyIdentity::Uid,
                before_proxy: BeforeProxy::Refuse,
                ..capture.clone()
            },
            families,
            rules: 0,
        };
        record.rules = record.rules_now();
        record
    }

    /// The pod.
    pub fn enrolled(&self, cookie: NetnsCookie) -> Enrolled {
        let (device, inode) = self.netns;
        Enrolled {
            cookie,
            container_id: self.container_id.clone(),
            interface: self.interface.clone(),
            network: self.network.clone(),
            pod: self.pod.clone(),
            netns_path: self.netns_path.clone(),
            netns: NetnsId { device, inode },
            enrolled_at: self.enrolled_at,
            backend: BackendName::Nftables,
            driver: self.capture.driver,
            lists: ListEntries::default(),
        }
    }

    /// What the verdict goes by for a pod with these addresses, interfaces and routes.
    pub fn map_entries(
        &self,
        cookie: NetnsCookie,
        mut addresses: Vec<InterfaceAddress>,
        links: &Links,
    ) -> MapEntries {
        if self.families.captures_v6 {
            addresses = with_passthrough(addresses);
        }
        let own = OwnAddresses::choose(&addresses, &self.interface);
        let entries = map_entries(cookie, &self.capture, &own);
        let interfaces = entries.interfaces.in_netns(links);
        MapEntries { policy: self.families.within(entries.policy), interfaces, ..entries }
    }

    /// Its rules.
    pub fn ruleset(&self) -> Ruleset {
        Ruleset::of(&self.capture, self.families.captures_v6)
    }

    /// A digest of its rules. Another release may digest otherwise, and then they are brought in once more.
    pub(super) fn rules_now(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.ruleset().to_string().hash(&mut hasher);
        hasher.finish()
    }
}
