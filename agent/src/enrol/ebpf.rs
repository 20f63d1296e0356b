//! The eBPF backend: a pod's policy, lists and inbound program in the datapath that the node's pods share.
//!
//! Owns: the datapath and what [`steps`] do not: taking over, repairing, renewing. Never does: know of other
//! pods than the one that it is asked about. Called by: `node`, through [`Backend`].

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use veer_common::address::{Address, Port};
use veer_common::maps::{Counters, NetnsCookie, PodPolicy, PortListKey, PortSet, flag};

use super::backend::{Backend, Found, Joining};
use super::error::EnrolError;
use super::figures::{ProxyState, Standing};
use super::follow::with_passthrough;
use super::heal::{Lists, netns_of};
use super::identity::in_ids_of_node;
use super::loopback;
use super::registry::Enrolled;
use super::steps::{self, Hands, Target};
use crate::capture::{
    InterfaceAddress, InterfaceEntries, MapEntries, OwnAddresses, map_entries, own_address_keys,
    policy_of_addresses,
};
use crate::model::Capture;
use crate::plan::{Action, Netns, Observed};
use crate::platform::bpf::listening::Registered;
use crate::platform::bpf::load::{Datapath, Instance};
use crate::platform::bpf::maps::ListEntries;
use crate::platform::listeners::{self, Borrowed};
use crate::platform::netlink::{self, Listener};
use crate::platform::netns::NetnsThread;

mod losses;

/// The datapath, and the way into a netns.
#[derive(Debug)]
pub struct Ebpf {
    datapath: Datapath,
    netns: NetnsThread,
    /// Listeners by their cookies that cannot be registered, so that it is not tried for ever.
    unfit: HashMap<NetnsCookie, HashSet<u64>>,
}

impl Ebpf {
    /// With what was loaded.
    pub fn new(datapath: Datapath, netns: NetnsThread) -> Self {
        Self { datapath, netns, unfit: HashMap::new() }
    }

    /// The cookie of a netns.
    ///
    /// # Errors
    /// As the kernel says.
    pub(super) fn cookie_of(&self, netns: BorrowedFd<'_>) -> io::Result<NetnsCookie> {
        self.datapath.cookie_of(&self.netns, netns)
    }

    /// The listeners that are registered, for counting.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub(super) fn registered(&self) -> io::Result<Registered> {
        Registered::of(&self.datapath.maps)
    }

    /// Says which addresses are the node's own.
    ///
    /// # Errors
    /// As the kernel says.
    pub(super) fn set_node_addresses(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), EnrolError> {
        Ok(self.datapath.maps.set_node_addresses(addresses)?)
    }

    /// Whether this kernel can redirect pods that exclude interfaces.
    pub(super) fn tells_interfaces(&mut self) -> bool {
        self.datapath.tells_interfaces()
    }

    /// What became of a pod's netns, which its link hangs on.
    fn netns_of(&self, pod: &Enrolled, link: Option<u64>) -> Netns {
        netns_of(pod, link, |netns| self.cookie_of(netns).is_ok_and(|cookie| cookie == pod.cookie))
    }

    /// Attaches the inbound program of a pod whose link was lost, if its netns is where it was.
    fn reattach(&mut self, pod: &Enrolled, policy: &PodPolicy) -> Result<(), EnrolError> {
        let netns = steps::open_netns(pod).ok_or_else(|| {
            EnrolError::NotEnrolled(format!("{} is not the pod's netns any more", pod.netns_path))
        })?;
        Ok(self.datapath.attach_netns(Instance::of(pod.cookie, policy), netns.as_fd())?)
    }

    /// Whether a netns that lives has a policy and an inbound program: somebody took the pod's record, and not the pod.
    fn is_redirected(&self, cookie: NetnsCookie) -> Result<bool, EnrolError> {
        let lives = self.datapath.netns_of_link(cookie).is_some_and(|inode| inode != 0);
        Ok(lives && self.datapath.maps.policy(cookie)?.is_some())
    }

    fn reattach_or_report(&mut self, pod: &Enrolled, policy: &PodPolicy, why: &str) {
        let (name, cookie) = (pod.full_name(), pod.cookie);
        match self.reattach(pod, policy) {
            Ok(()) => tracing::warn!(pod = %name, cookie, why, "attached its inbound program again"),
            Err(error) => {
                tracing::error!(pod = %name, cookie, why, %error, "its inbound program is not ours");
            }
        }
    }

    /// Gives an enrolled pod back what it has lost: after a CHECK that failed, the way out is another ADD.
    fn repair(
        &mut self,
        pod: &Enrolled,
        policy: &PodPolicy,
        netns: &OwnedFd,
        listeners: &[Listener],
    ) -> Result<(), EnrolError> {
        let instance = Instance::of(pod.cookie, policy);
        let before = self.datapath.maps.policy(pod.cookie)?.map(|policy| Instance::of(pod.cookie, &policy));
        let is_lost = self.datapath.netns_of_link(pod.cookie) != Some(pod.netns.inode)
            || !self.datapath.is_pinned(pod.cookie);
        if is_lost || before.is_some_and(|before| before != instance) {
            self.datapath.attach_netns(instance, netns.as_fd())?;
        }
        if is_lost {
            tracing::warn!(pod = %pod.full_name(), "attached its inbound program again");
        }
        self.adopt(pod, policy, listeners)
    }

    /// Brings the lists of an enrolled pod up to date: what is new first, what is old after, and the rest
    /// untouched, so that no connection meets a gap. A port list that changes does so at once.
    fn renew(
        &mut self,
        pod: &Enrolled,
        policy: &PodPolicy,
        ports: &[(PortListKey, Box<PortSet>)],
        before: &ListEntries,
    ) -> Result<(), EnrolError> {
        self.datapath.maps.insert_enrolment(pod.cookie, &pod.to_map()?)?;
        let new = pod.lists.without(before);
        let ports_before = self.datapath.maps.port_lists(&before.ports)?;
        if let Err(error) = self.datapath.maps.insert_lists(ports, &new) {
            let removed = self.datapath.maps.remove_lists_but(&new, before);
            self.datapath.maps.insert_lists(&ports_before, &before.without(&pod.lists)).and(removed)?;
            return Err(error.into());
        }
        self.datapath.maps.insert_policy(pod.cookie, policy)?;
        self.datapath.maps.remove_lists_but(before, &pod.lists)?;
        Ok(())
    }

    /// Registers listeners that the TCP_LISTEN hook did not see.
    fn adopt(
        &mut self,
        pod: &Enrolled,
        policy: &PodPolicy,
        listeners: &[Listener],
    ) -> Result<(), EnrolError> {
        if steps::has_proxy(policy, listeners) {
            steps::end_before_proxy(&mut self.datapath, pod);
        }
        Ok(steps::adopt(&mut self.datapath, pod, policy, &borrow(pod, listeners)?)?)
    }

    /// Looks for listeners once more: one that began to listen after the first look and before there was a
    /// policy was seen by nobody. In a new pod there is no process yet, and so none.
    fn adopt_late(&mut self, pod: &Enrolled, policy: &PodPolicy, netns: &OwnedFd) {
        let ports = steps::proxy_ports(&DEFAULT_PORTS);
        let late = self
            .netns
            .run(netns.as_fd(), move || netlink::listeners(&ports).unwrap_or_default())
            .map_err(EnrolError::from)
            .and_then(|found| self.adopt(pod, policy, &found));
        if let Err(error) = late {
            tracing::error!(pod = %pod.full_name(), %error, "look for late listeners");
            // Its proxy may be one of those.
            steps::end_before_proxy(&mut self.datapath, pod);
        }
    }

    /// What is there now of the interfaces that a pod's annotations name.
    fn interfaces_of(
        &self,
        named: &InterfaceEntries,
        netns: BorrowedFd<'_>,
    ) -> Result<InterfaceEntries, EnrolError> {
        if named.is_empty() {
            return Ok(InterfaceEntries::default());
        }
        let links = self.netns.run(netns, netlink::links::links)?;
        let attempt = "read the interfaces and routes";
        let links = links.map_err(|source| EnrolError::Inspect { attempt, source })?;
        Ok(named.in_netns(&links))
    }

    fn hands(&mut self) -> Hands<'_> {
        Hands { datapath: &mut self.datapath, netns: &self.netns }
    }
}

impl Backend for Ebpf {
    fn recall(&mut self) -> Result<Vec<Enrolled>, EnrolError> {
        let mut lists = self.datapath.maps.list_entries()?;
        let records = self.datapath.maps.enrolments()?;
        for cookie in self.datapath.pins().netns_cookies()? {
            if records.binary_search_by_key(&cookie, |(known, _)| *known).is_ok() {
                continue;
            }
            if self.is_redirected(cookie)? {
                tracing::warn!(cookie, "redirects a pod whose record is gone: it is found if it runs");
                lists.remove(&cookie);
                continue;
            }
            // A link that a DEL could not reach, because the bpffs was not mounted where the agent was; or one to a
            // pod without a record that has gone by now.
            tracing::warn!(cookie, "removed what was left of a pod that nobody knows");
            self.datapath.maps.remove_policy(cookie)?;
            self.datapath.maps.end_before_proxy(cookie)?;
            self.datapath.maps.remove_proxy_container(cookie)?;
            self.datapath.maps.remove_counters(cookie)?;
            self.datapath.detach_netns(cookie)?;
        }
        let pods = records
            .into_iter()
            .map(|(cookie, record)| {
                Enrolled::from_map(cookie, &record, lists.remove(&cookie).unwrap_or_default())
            })
            .collect();
        // Lists without a name: nobody looks at them, but they take room.
        for (cookie, orphan) in lists {
            tracing::warn!(cookie, "removed the lists of a pod that nobody knows");
            self.datapath.maps.remove_lists(&orphan)?;
        }
        Ok(pods)
    }

    fn take_over(&mut self, pod: &Enrolled) -> Result<Found, EnrolError> {
        let (cookie, name) = (pod.cookie, pod.full_name());
        let Some(policy) = self.datapath.maps.policy(cookie)? else {
            if self.netns_of(pod, self.datapath.netns_of_link(cookie)) == Netns::Gone {
                tracing::warn!(pod = %name, cookie, "removed what was left of an enrolment");
                return Ok(Found::Leftover);
            }
            // An enrolment that was broken off, or a policy that was lost: either is brought to its end.
            tracing::warn!(pod = %name, cookie, "it is not wholly enrolled");
            return Ok(Found::Kept);
        };
        match self.datapath.refresh_netns(Instance::of(cookie, &policy)) {
            Ok(true) => tracing::info!(pod = %name, cookie, "took over"),
            Ok(false) if self.netns_of(pod, Some(0)) == Netns::Gone => {
                tracing::info!(pod = %name, cookie, "its netns is gone");
                return Ok(Found::Leftover);
            }
            Ok(false) => self.reattach_or_report(pod, &policy, "it was detached"),
            Err(error) => self.reattach_or_report(pod, &policy, &error.to_string()),
        }
        Ok(Found::Kept)
    }

    fn taken_over(&mut self) -> Result<(), EnrolError> {
        Ok(self.datapath.taken_over()?)
    }

    fn enrol(&mut self, joining: Joining<'_>) -> Result<Enrolled, EnrolError> {
        let Joining { mut pod, capture, netns, addresses, listeners, before } = joining;
        let capture = in_ids_of_node(capture, netns.as_fd())?;
        let entries = entries(pod.cookie, &capture, addresses, &pod.interface);
        let (policy, ports) = (entries.policy, entries.ports);
        pod.lists = ListEntries {
            ports: ports.iter().map(|(key, _)| *key).collect(),
            ranges: entries.ranges,
            own_addresses: entries.own_addresses,
            interfaces: self.interfaces_of(&entries.interfaces, netns.as_fd())?,
        };
        if let Some(before) = before {
            let policy_before = self.datapath.maps.policy(pod.cookie)?;
            self.repair(&pod, &policy, netns, &listeners)?;
            loopback::give(&self.netns, netns.as_fd(), &policy)?;
            self.renew(&pod, &policy, &ports, &before.lists)?;
            if let Some(before) = policy_before {
                loopback::give_up(&self.netns, netns.as_fd(), &before, &policy)?;
            }
            return Ok(pod);
        }
        let record = pod.to_map()?;
        let direct = policy.flags & flag::DIRECT_BEFORE_PROXY != 0;
        let awaits_proxy = direct && !steps::has_proxy(&policy, &listeners);
        let listeners = borrow(&pod, &listeners)?;
        let target = Target { pod: &pod, record, policy, ports: &ports, netns, listeners, awaits_proxy };
        steps::enrol(&mut self.hands(), &target)?;
        self.adopt_late(&pod, &policy, netns);
        Ok(pod)
    }

    fn check(&self, pod: &Enrolled) -> Result<(), EnrolError> {
        if self.datapath.maps.policy(pod.cookie)?.is_none() {
            return Err(EnrolError::NotEnrolled(format!("pod {} has no policy any more", pod.full_name())));
        }
        match self.datapath.netns_of_link(pod.cookie) {
            Some(inode) if inode == pod.netns.inode && self.datapath.is_pinned(pod.cookie) => Ok(()),
            Some(_) | None => Err(EnrolError::NotEnrolled(format!(
                "the inbound program of pod {} is not attached to its netns any more",
                pod.full_name()
            ))),
        }
    }

    fn readdress(
        &mut self,
        before: &Enrolled,
        netns: BorrowedFd<'_>,
        mut addresses: Vec<InterfaceAddress>,
    ) -> Result<Option<Enrolled>, EnrolError> {
        let Some(policy_before) = self.datapath.maps.policy(before.cookie)? else { return Ok(None) };
        let choose = |addresses: &[_]| OwnAddresses::choose(addresses, &before.interface);
        let policy = policy_of_addresses(&policy_before, &choose(&addresses));
        if policy.needs_passthrough() {
            addresses = with_passthrough(addresses);
        }
        let own_addresses = own_address_keys(before.cookie, &choose(&addresses));
        let mut pod = before.clone();
        let interfaces = self.interfaces_of(&before.lists.interfaces, netns)?;
        pod.lists = ListEntries { own_addresses, interfaces, ..pod.lists };
        let is_same = pod.lists.interfaces.is_same(&before.lists.interfaces)
            && pod.lists.without(&before.lists).own_addresses.is_empty()
            && before.lists.without(&pod.lists).own_addresses.is_empty();
        if is_same && policy == policy_before {
            return Ok(None);
        }
        loopback::give(&self.netns, netns, &policy)?;
        self.renew(&pod, &policy, &[], &before.lists)?;
        Ok(Some(pod))
    }

    fn unenrol(&mut self, pod: &Enrolled) -> Vec<EnrolError> {
        let policy = self.datapath.maps.policy(pod.cookie).ok().flatten().unwrap_or(DEFAULT_PORTS);
        self.unfit.remove(&pod.cookie);
        steps::unenrol(&mut self.hands(), pod, &policy)
    }

    fn map_entries(&self, pod: &Enrolled) -> Result<Option<MapEntries>, EnrolError> {
        let Some(policy) = self.datapath.maps.policy(pod.cookie)? else { return Ok(None) };
        Ok(Some(self.datapath.maps.entries(policy, pod.lists.clone())?))
    }

    fn heal_shared(&mut self) -> Result<Vec<String>, EnrolError> {
        Ok(self.datapath.heal()?)
    }

    fn lists(&self) -> Result<Lists, EnrolError> {
        Ok(self.datapath.maps.list_entries()?)
    }

    fn observe(
        &self,
        pod: &Enrolled,
        lists: &ListEntries,
        listeners: &[Listener],
    ) -> Result<Observed, EnrolError> {
        self.losses(pod, lists, listeners)
    }

    fn heal(
        &mut self,
        pod: &Enrolled,
        actions: &[Action],
        netns: BorrowedFd<'_>,
        listeners: &[Listener],
    ) -> Result<(), EnrolError> {
        self.bring_back(pod, actions, netns, listeners)
    }

    fn counters(&self, pod: &Enrolled) -> Result<Counters, EnrolError> {
        Ok(self.datapath.maps.counters(pod.cookie)?)
    }

    fn standing(&self, pod: &Enrolled) -> Result<Option<Standing>, EnrolError> {
        let maps = &self.datapath.maps;
        let Some(policy) = maps.policy(pod.cookie)? else { return Ok(None) };
        let has = |bit| policy.flags & bit != 0;
        let listens = |port| maps.is_listened_on(pod.cookie, port);
        let proxy = if has(flag::DIRECT_BEFORE_PROXY) && maps.is_before_proxy(pod.cookie)? {
            ProxyState::Awaited
        } else if listens(policy.outbound_port) && listens(policy.inbound_port) {
            ProxyState::Listening
        } else {
            ProxyState::NotListening
        };
        let mode = if has(flag::TPROXY) { "tproxy" } else { "redirect" };
        Ok(Some(Standing { mode, proxy }))
    }

    fn set_watched(&mut self, watched: bool) -> Result<(), EnrolError> {
        Ok(self.datapath.maps.set_watched(watched)?)
    }
}

/// The map entries of a pod.
fn entries(
    cookie: NetnsCookie,
    capture: &Capture,
    addresses: Vec<InterfaceAddress>,
    interface: &str,
) -> MapEntries {
    let entries = map_entries(cookie, capture, &OwnAddresses::choose(&addresses, interface));
    if !entries.policy.needs_passthrough() {
        return entries;
    }
    map_entries(cookie, capture, &OwnAddresses::choose(&with_passthrough(addresses), interface))
}

/// Borrows the listeners that were found in a pod's netns.
fn borrow(pod: &Enrolled, found: &[Listener]) -> Result<Vec<Borrowed>, EnrolError> {
    let borrowed = listeners::borrow(found, pod.netns.inode)
        .map_err(|source| EnrolError::Inspect { attempt: "find the listeners", source })?;
    if borrowed.len() < found.len() {
        let missing = found.len() - borrowed.len();
        tracing::warn!(pod = %pod.full_name(), missing, "listeners whose process was not found");
    }
    Ok(borrowed)
}

/// The ports of the proxy, where a policy that would say them is gone or not there yet.
pub(super) const DEFAULT_PORTS: PodPolicy = PodPolicy {
    flags: 0,
    proxy_uid: 0,
    proxy_gid: 0,
    outbound_port: Port::new(15001),
    inbound_port: Port::new(15006),
    tunnel_port: Port::new(15008),
    dns_port: Port::new(15053),
    _reserved: [0; 4],
    localhost: 0,
    localhost_mask: u32::MAX,
    source_v4: Address::UNSPECIFIED,
    source_v6: Address::UNSPECIFIED,
};
