//! What a pod that eBPF redirects has lost, and bringing back what needs no manifest.
//!
//! Owns: the comparison with the maps, the link and the listeners. Never does: plan; that is [`plan`](crate::plan).
//! Called by: `enrol::heal`, through the backend.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd};

use veer_common::maps::{MAX_LISTENER_SLOTS, PodPolicy, flag};

use super::{DEFAULT_PORTS, Ebpf};
use crate::enrol::error::EnrolError;
use crate::enrol::loopback;
use crate::enrol::registry::Enrolled;
use crate::enrol::steps::{is_redirected_to, open_netns};
use crate::plan::{Action, Netns, Observed};
use crate::platform::bpf::load::Instance;
use crate::platform::bpf::maps::ListEntries;
use crate::platform::netlink::Listener;

impl Ebpf {
    pub(super) fn losses(
        &self,
        pod: &Enrolled,
        lists: &ListEntries,
        listeners: &[Listener],
    ) -> Result<Observed, EnrolError> {
        let link = self.datapath.netns_of_link(pod.cookie);
        let maps = &self.datapath.maps;
        let policy = maps.policy(pod.cookie)?;
        let netns = self.netns_of(pod, link);
        let missing = policy.map_or(0, |policy| self.unregistered(pod, &policy, listeners).len());
        Ok(Observed {
            netns,
            record: maps.enrolment(pod.cookie)?.is_some(),
            counters: maps.has_counters(pod.cookie)?,
            lists: !pod.lists.lacks_in(lists),
            inbound: link == Some(pod.netns.inode)
                && self.datapath.is_pinned(pod.cookie)
                && self.has_its_way_back(pod, policy.as_ref())?,
            policy: policy.is_some(),
            // Nobody can be asked for them from here.
            missing_listeners: if netns == Netns::Here { missing } else { 0 },
        })
    }

    /// Does what needs no manifest.
    pub(super) fn bring_back(
        &mut self,
        pod: &Enrolled,
        actions: &[Action],
        netns: BorrowedFd<'_>,
        listeners: &[Listener],
    ) -> Result<(), EnrolError> {
        let policy = self.datapath.maps.policy(pod.cookie)?;
        for action in actions {
            match action {
                Action::Record => self.datapath.maps.insert_enrolment(pod.cookie, &pod.to_map()?)?,
                Action::Counters => self.datapath.maps.insert_counters(pod.cookie)?,
                Action::Inbound => {
                    let policy = policy.unwrap_or(DEFAULT_PORTS);
                    loopback::give(&self.netns, netns, &policy)?;
                    self.datapath.attach_netns(Instance::of(pod.cookie, &policy), netns.as_fd())?;
                }
                Action::Listeners => {
                    if let Some(policy) = &policy {
                        self.register(pod, policy, listeners)?;
                    }
                }
                Action::Forget | Action::Lists | Action::Policy => {}
            }
        }
        Ok(())
    }

    /// Whether an app's answers find back to its proxy, as far as can be seen.
    fn has_its_way_back(&self, pod: &Enrolled, policy: Option<&PodPolicy>) -> Result<bool, EnrolError> {
        let Some(policy) = policy.filter(|policy| policy.shows_clients()) else { return Ok(true) };
        let Some(netns) = open_netns(pod) else { return Ok(true) };
        loopback::is_whole(&self.netns, netns.as_fd(), policy)
    }

    fn register(
        &mut self,
        pod: &Enrolled,
        policy: &PodPolicy,
        listeners: &[Listener],
    ) -> Result<(), EnrolError> {
        let missing = self.unregistered(pod, policy, listeners);
        self.adopt(pod, policy, &missing)?;
        // Those that the kernel does not take, or that nothing is redirected to, are not tried at each pass.
        let unfit = self.unregistered(pod, policy, listeners);
        let listening: HashSet<u64> = listeners.iter().map(|listener| listener.cookie).collect();
        let of_pod = self.unfit.entry(pod.cookie).or_default();
        of_pod.retain(|cookie| listening.contains(cookie));
        of_pod.extend(unfit.iter().map(|listener| listener.cookie));
        Ok(())
    }

    /// The listeners that connections ought to be handed to, and could not be: at most as many as there can be, since each is
    /// sought in all slots and an app decides how many there are. The proxy's come first; others are found when these are unfit.
    fn unregistered(&self, pod: &Enrolled, policy: &PodPolicy, listeners: &[Listener]) -> Vec<Listener> {
        let unfit = self.unfit.get(&pod.cookie);
        let may_be = |listener: &&Listener| {
            let is_wanted = listener.port != policy.dns_port || policy.flags & flag::DNS_CAPTURE != 0;
            is_wanted
                && is_redirected_to(pod, policy, listener.bound)
                && !unfit.is_some_and(|unfit| unfit.contains(&listener.cookie))
        };
        let mut sought: Vec<&Listener> = listeners.iter().filter(may_be).collect();
        sought.sort_by_key(|listener| listener.uid != policy.proxy_uid);
        let is_missing = |listener: &&Listener| {
            !self.datapath.maps.has_listener(pod.cookie, listener.port, listener.cookie)
        };
        sought.into_iter().filter(is_missing).take(MAX_LISTENER_SLOTS as usize).copied().collect()
    }
}
