//! What is pinned, as the commands show it.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;

use serde::Serialize;
use veer_common::address::Port;
use veer_common::maps::{Counters, NetnsCookie, PodPolicy, ProxyContainer, flag};
use veer_common::reason::{Action, Fault, Reason};

use super::{Enrolments, Failure};
use crate::enrol::Enrolled;
use crate::enrol::proxies::moments;
use crate::model::{BackendName, BeforeProxy, Driver, ProxyIdentity};
use crate::platform::bpf::load::CGROUP_PROGRAMS;
use crate::platform::bpf::maps::{ListEntries, Maps};
use crate::platform::bpf::pins::Pins;
use crate::platform::bpf::{BpfError, sys};
use crate::platform::cgroup;
use crate::proxy::state::{ProxyHealth, Readiness, Sighting};
use crate::wall_clock;

pub(super) mod nftables;

/// An enrolled pod.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodView {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// CNI container id.
    pub container_id: String,
    /// The netns as the runtime named it.
    pub netns: String,
    /// Its cookie: the pod's identity in the datapath.
    pub netns_cookie: NetnsCookie,
    /// Its inode number, for those who look for it among others.
    #[serde(skip)]
    pub netns_inode: u64,
    /// Seconds since the epoch.
    pub enrolled_at: u64,
    /// `ebpf` or `nftables`.
    pub backend: BackendName,
    /// Who drives its proxy: `sidecar`, `node` or `ztunnel`.
    pub driver: Driver,
    /// How its proxy stands, and since when. Without an agent as the maps alone tell it.
    pub proxy: ProxyHealth,
    /// Whether the inbound program hangs on the pod's netns; with nftables, whether the rules are there.
    pub inbound_attached: bool,
    /// What the pod asked for; `None` without a policy, which is a pod that is half enrolled.
    pub policy: Option<PolicyView>,
    /// Where its connections went.
    pub totals: Totals,
    /// Why, by the reason's name; those that never were are left out.
    pub reasons: BTreeMap<&'static str, u64>,
    /// What went wrong in the datapath, by name.
    pub faults: BTreeMap<&'static str, u64>,
}

/// A pod's policy.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyView {
    /// `redirect`, or `tproxy`, where the tunnel port is captured, too.
    pub mode: &'static str,
    /// The proxy's uid.
    pub proxy_uid: u32,
    /// The proxy's gid.
    pub proxy_gid: u32,
    /// What makes a process the proxy: `uid`, or `container`.
    pub proxy_identity: &'static str,
    /// Which container is the proxy's, where that counts; `None` while nobody has listened on its ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_container: Option<ContainerView>,
    /// What becomes of connections before the proxy has listened: `refuse`; `direct`, and it has not listened yet; or
    /// `over`, if it was `direct`, and somebody has listened.
    pub before_proxy: &'static str,
    /// Where outbound connections go.
    pub outbound: ProxyPort,
    /// Where inbound connections go.
    pub inbound: ProxyPort,
    /// Where DNS goes, if it is captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<ProxyPort>,
    /// Whether all outbound addresses are captured, or included ranges and ports alone.
    pub all_outbound: bool,
    /// Whether all inbound ports are captured, or included ports alone.
    pub all_inbound: bool,
    /// The families that are captured.
    pub families: Vec<&'static str>,
}

/// The proxy's container.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerView {
    /// Id of its cgroup.
    pub cgroup: u64,
    /// The cgroup's directory, if that was sought and is to be seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// How many of its sockets listen on the proxy's ports.
    pub listening: u64,
    /// Whether its cgroup is the one that the programs hang on: then other containers are in it, too, and the
    /// ids alone tell who is the proxy.
    pub shared: bool,
}

impl PodView {
    /// A pod, with what was found of it.
    fn of(pod: Enrolled, policy: Option<PolicyView>, inbound_attached: bool, counters: &Counters) -> Self {
        let (began, ceased) = moments(counters);
        let proxy = ProxyHealth::of_listeners(&Sighting {
            enrolled_at: pod.enrolled_at,
            listens: policy.as_ref().is_some_and(PolicyView::has_listeners),
            began,
            ceased,
            lives: None,
            readiness: Readiness::NotAsked,
            before: None,
            now: wall_clock::seconds(),
        });
        Self {
            proxy,
            netns_cookie: pod.cookie,
            netns_inode: pod.netns.inode,
            inbound_attached,
            policy,
            totals: totals(counters),
            reasons: reasons(counters),
            faults: faults(counters),
            namespace: pod.pod.namespace,
            name: pod.pod.name,
            container_id: pod.container_id,
            netns: pod.netns_path,
            enrolled_at: pod.enrolled_at,
            backend: pod.backend,
            driver: pod.driver,
        }
    }

    /// Seeks the directory of the proxy's cgroup, whose name has the container's.
    pub fn seek_container(&mut self) {
        let policy = self.policy.as_mut();
        if let Some(container) = policy.and_then(|policy| policy.proxy_container.as_mut()) {
            container.path = cgroup::path_of(container.cgroup);
        }
    }
}

impl PolicyView {
    /// Whether somebody listens on both of the proxy's ports.
    pub fn has_listeners(&self) -> bool {
        self.outbound.listeners > 0 && self.inbound.listeners > 0
    }
}

/// A port of the proxy.
#[derive(Debug, Serialize)]
pub struct ProxyPort {
    /// Its number.
    pub port: u16,
    /// How many sockets listen there.
    pub listeners: usize,
}

/// Connections by what was done with them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Went where they were dialled.
    pub direct: u64,
    /// Went to the proxy's outbound port.
    pub to_outbound: u64,
    /// Went to the proxy's inbound port.
    pub to_inbound: u64,
    /// Went to the proxy's DNS port: TCP connections, connected UDP sockets, and single datagrams.
    pub to_dns: u64,
    /// Were refused.
    pub dropped: u64,
}

/// The programs of the cgroup.
#[derive(Debug, Serialize)]
pub struct ProgramView {
    /// Its name.
    pub name: &'static str,
    /// Whether its link hangs on a cgroup that exists.
    pub attached: bool,
}

/// All enrolled pods, by name.
///
/// # Errors
/// If a map or a record cannot be read.
pub(super) fn pods(enrolments: &Enrolments) -> Result<Vec<PodView>, Failure> {
    let mut pods = nftables::pods(&enrolments.records)?;
    if let Some(maps) = &enrolments.maps {
        pods.extend(pods_of_maps(&enrolments.pins, maps)?);
    }
    pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    Ok(pods)
}

fn pods_of_maps(pins: &Pins, maps: &Maps) -> Result<Vec<PodView>, BpfError> {
    let mut pods = Vec::new();
    let attached_to = cgroup_link(pins).map(|target| target.object);
    for (cookie, record) in maps.enrolments()? {
        let pod = Enrolled::from_map(cookie, &record, ListEntries::default());
        let policy = match maps.policy(cookie)? {
            Some(policy) => Some(policy_of_maps(maps, cookie, &policy, attached_to)?),
            None => None,
        };
        let inbound_attached = inbound_attached(pins, cookie);
        pods.push(PodView::of(pod, policy, inbound_attached, &maps.counters(cookie)?));
    }
    Ok(pods)
}

/// What the programs of the cgroup hang on.
fn cgroup_link(pins: &Pins) -> Option<sys::LinkTarget> {
    let (name, _) = CGROUP_PROGRAMS.first()?;
    sys::get(&pins.link(name)).and_then(|link| sys::link_target(link.as_fd())).ok()
}

/// The programs of the cgroup.
pub fn programs(pins: &Pins) -> Vec<ProgramView> {
    let attached = |name: &str| {
        sys::get(&pins.link(name))
            .and_then(|link| sys::link_target(link.as_fd()))
            .is_ok_and(|target| target.object != 0)
    };
    CGROUP_PROGRAMS.iter().map(|(name, _)| ProgramView { name, attached: attached(name) }).collect()
}

fn inbound_attached(pins: &Pins, cookie: NetnsCookie) -> bool {
    sys::get(&pins.netns(cookie))
        .and_then(|link| sys::link_target(link.as_fd()))
        .is_ok_and(|target| target.object != 0)
}

fn policy_of_maps(
    maps: &Maps,
    cookie: NetnsCookie,
    policy: &PodPolicy,
    attached_to: Option<u64>,
) -> Result<PolicyView, BpfError> {
    let container = |container: ProxyContainer| ContainerView {
        cgroup: container.cgroup,
        path: None,
        listening: container.listening,
        shared: Some(container.cgroup) == attached_to,
    };
    let is_before = maps.is_before_proxy(cookie)?;
    let view = policy_view(policy, is_before, |port| maps.listeners(cookie, port).len());
    if policy.flags & flag::BY_CONTAINER == 0 {
        return Ok(view);
    }
    Ok(PolicyView { proxy_container: maps.proxy_container(cookie)?.map(container), ..view })
}

fn policy_view(policy: &PodPolicy, is_before_proxy: bool, listeners: impl Fn(Port) -> usize) -> PolicyView {
    let direct = policy.flags & flag::DIRECT_BEFORE_PROXY != 0;
    let before_proxy = match (direct, is_before_proxy) {
        (false, _) => BeforeProxy::Refuse.name(),
        (true, true) => BeforeProxy::Direct.name(),
        (true, false) => "over",
    };
    let by_container = policy.flags & flag::BY_CONTAINER != 0;
    let port = |port: Port| ProxyPort { port: port.get(), listeners: listeners(port) };
    PolicyView {
        proxy_identity: if by_container { ProxyIdentity::Container } else { ProxyIdentity::Uid }.name(),
        proxy_container: None,
        before_proxy,
        mode: if policy.flags & flag::TPROXY == 0 { "redirect" } else { "tproxy" },
        proxy_uid: policy.proxy_uid,
        proxy_gid: policy.proxy_gid,
        outbound: port(policy.outbound_port),
        inbound: port(policy.inbound_port),
        dns: (policy.flags & flag::DNS_CAPTURE != 0).then(|| port(policy.dns_port)),
        all_outbound: policy.flags & flag::OUTBOUND_ALL != 0,
        all_inbound: policy.flags & flag::INBOUND_ALL != 0,
        families: [(flag::HAS_V4, "IPv4"), (flag::CAPTURES_V6, "IPv6")]
            .into_iter()
            .filter_map(|(bit, family)| (policy.flags & bit != 0).then_some(family))
            .collect(),
    }
}

fn totals(counters: &Counters) -> Totals {
    let mut totals = Totals::default();
    for reason in Reason::ALL {
        let count = count(counters, reason as usize);
        match reason.action() {
            Action::Direct => totals.direct += count,
            Action::ToOutbound => totals.to_outbound += count,
            Action::ToInbound => totals.to_inbound += count,
            Action::ToDns => totals.to_dns += count,
            Action::Drop => totals.dropped += count,
        }
    }
    totals
}

fn reasons(counters: &Counters) -> BTreeMap<&'static str, u64> {
    let rows = Reason::ALL.into_iter().map(|reason| (reason.name(), count(counters, reason as usize)));
    rows.filter(|(_, count)| *count > 0).collect()
}

fn faults(counters: &Counters) -> BTreeMap<&'static str, u64> {
    let rows = Fault::ALL.into_iter().map(|fault| (fault.name(), count(counters, fault as usize)));
    rows.filter(|(_, count)| *count > 0).collect()
}

fn count(counters: &Counters, index: usize) -> u64 {
    counters.0.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use veer_common::reason::COUNTERS;

    #[test]
    fn every_reason_is_in_exactly_one_total() {
        let totals = totals(&Counters([1; COUNTERS]));
        let sum = totals.direct + totals.to_outbound + totals.to_inbound + totals.to_dns + totals.dropped;
        assert_eq!(sum, Reason::ALL.len() as u64);
        assert_eq!(faults(&Counters([1; COUNTERS])).len(), Fault::ALL.len());
    }
}
