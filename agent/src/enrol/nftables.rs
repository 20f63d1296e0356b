//! The nftables backend: rules in the pod's own netns, and a record of who it is.
//!
//! Owns: the records, and the order of the steps. Never does: load a program, or start a process.
//! Called by: `node`, through [`Backend`].
//!
//! | Step | Undo | |
//! |---|---|---|
//! | record | remove | first in, last out: whatever a crash leaves behind has a name |
//! | `::6` on `lo`, where IPv6 is captured | remove | |
//! | the way of marked packets, for TPROXY | remove | nothing is marked without rules |
//! | rules, in one transaction | remove | |

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use veer_common::maps::{Counters, NetnsCookie};

use super::backend::{Backend, Found, Joining};
use super::ebpf::DEFAULT_PORTS;
use super::error::EnrolError;
use super::figures::{ProxyState, Standing};
use super::heal::{Lists, netns_of};
use super::identity::in_ids_of_node;
use super::record::{Families, Record};
use super::registry::Enrolled;
use super::steps;
use crate::capture::nft::{Family, Ruleset};
use crate::capture::{InterfaceAddress, MapEntries, OwnAddresses};
use crate::model::{BeforeProxy, InterceptionMode, ProxyIdentity};
use crate::plan::{Action, Observed};
use crate::platform::bpf::maps::ListEntries;
use crate::platform::netlink::{self, Listener, marks};
use crate::platform::netns::NetnsThread;
use crate::platform::nft::{self, NftError};
use crate::platform::records::Records;

mod removal;

pub use self::removal::Withdrawn;

/// The records, and the way into a netns.
#[derive(Debug)]
pub struct Nftables {
    records: Records,
    netns: NetnsThread,
}

impl Nftables {
    /// With the records of this directory.
    pub fn new(records: Records, netns: NetnsThread) -> Self {
        Self { records, netns }
    }

    fn record(&self, pod: &Enrolled) -> Result<Record, EnrolError> {
        let missing =
            || EnrolError::NotEnrolled(format!("there is no record of pod {} any more", pod.full_name()));
        self.records.read(pod.cookie)?.ok_or_else(missing)
    }

    /// Writes the record and brings the rules in. What the kernel refuses leaves the record of before.
    fn bring_in(
        &self,
        cookie: NetnsCookie,
        record: &Record,
        netns: BorrowedFd<'_>,
        before: Option<&Record>,
    ) -> Result<(), EnrolError> {
        self.records.write(cookie, record)?;
        let outcome = self.give(record, netns);
        if outcome.is_err()
            && let Some(before) = before
        {
            self.records.write(cookie, before)?;
        }
        outcome
    }

    fn give(&self, record: &Record, netns: BorrowedFd<'_>) -> Result<(), EnrolError> {
        let ruleset = record.ruleset();
        if record.families.captures_v6 {
            self.inside(netns, "put ::6 on lo", netlink::add_passthrough_address)?;
        }
        if ruleset.marks {
            let families = families(&ruleset);
            self.inside(netns, "route marked packets", move || marks::add(marks::TPROXY, &families))?;
        }
        self.in_nft(netns, move || nft::apply(&ruleset))
    }

    /// Takes everything out of the netns that a record says. Goes on after a failure.
    fn take(&self, record: &Record, netns: BorrowedFd<'_>) -> Vec<EnrolError> {
        let mut problems: Vec<EnrolError> = self.in_nft(netns, nft::remove).err().into_iter().collect();
        let ruleset = record.ruleset();
        if ruleset.marks {
            let families = families(&ruleset);
            problems.extend(
                self.inside(netns, "take the route of marked packets", move || {
                    marks::remove(marks::TPROXY, &families)
                })
                .err(),
            );
        }
        if record.families.captures_v6 {
            problems.extend(self.inside(netns, "take ::6 off lo", netlink::remove_passthrough_address).err());
        }
        problems
    }

    fn inside(
        &self,
        netns: BorrowedFd<'_>,
        attempt: &'static str,
        work: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<(), EnrolError> {
        self.netns.run(netns, work)?.map_err(|source| EnrolError::Change { attempt, source })
    }

    fn in_nft<T: Send + 'static>(
        &self,
        netns: BorrowedFd<'_>,
        work: impl FnOnce() -> Result<T, NftError> + Send + 'static,
    ) -> Result<T, EnrolError> {
        Ok(self.netns.run(netns, work)??)
    }
}

impl Backend for Nftables {
    fn recall(&mut self) -> Result<Vec<Enrolled>, EnrolError> {
        let mut pods = Vec::new();
        for record in self.records.read_all::<Record>()? {
            match record {
                Ok((cookie, record)) => pods.push(record.enrolled(cookie)),
                Err(error) => {
                    tracing::error!(%error, "a pod's record; the pod stays as it is until its next ADD");
                }
            }
        }
        Ok(pods)
    }

    fn take_over(&mut self, pod: &Enrolled) -> Result<Found, EnrolError> {
        let name = pod.full_name();
        let Some(netns) = steps::open_netns(pod) else {
            tracing::info!(pod = %name, "its netns is gone");
            return Ok(Found::Leftover);
        };
        let mut record = self.record(pod)?;
        let ruleset = record.ruleset();
        let is_there = self.in_nft(netns.as_fd(), move || nft::has_tables_of(&ruleset));
        if record.rules == record.rules_now() && matches!(is_there, Ok(true)) {
            tracing::info!(pod = %name, "took over");
            return Ok(Found::Kept);
        }
        // Whoever flushed them, a pod of the mesh is not to go without.
        record.rules = record.rules_now();
        match self.bring_in(pod.cookie, &record, netns.as_fd(), None) {
            Ok(()) => {
                tracing::warn!(pod = %name, "brought its rules in again: they were missing, or another release's");
            }
            Err(error) => tracing::error!(pod = %name, %error, "bring its rules in again"),
        }
        Ok(Found::Kept)
    }

    fn enrol(&mut self, joining: Joining<'_>) -> Result<Enrolled, EnrolError> {
        let Joining { pod, capture, netns, addresses, before, .. } = joining;
        // The owner match counts as the netns' user namespace does, so the ids stay the pod's; that they are those of a
        // user namespace is checked all the same.
        in_ids_of_node(capture, netns.as_fd())?;
        if capture.proxy_identity == ProxyIdentity::Container {
            tracing::warn!(
                pod = %pod.full_name(),
                "rules know a process by its ids: an app with the proxy's uid leaves the mesh in this pod"
            );
        }
        if capture.before_proxy == BeforeProxy::Direct {
            tracing::warn!(
                pod = %pod.full_name(),
                "rules do not change when the proxy begins to listen: what comes before it is refused in this pod"
            );
        }
        self.records.create()?;
        let own = OwnAddresses::choose(&addresses, &pod.interface);
        let known = before.map(|before| self.record(before)).transpose().unwrap_or_default();
        let families = known
            .as_ref()
            .map_or_else(|| Families::of(capture, &own), |known| known.families.readdressed(capture, &own));
        let record = Record::new(&pod, capture, families);
        if known.as_ref().is_some_and(|known| known.rules == record.rules) && self.check(&pod).is_ok() {
            self.records.write(pod.cookie, &record)?;
            return Ok(pod);
        }
        match self.bring_in(pod.cookie, &record, netns.as_fd(), known.as_ref()) {
            Ok(()) => Ok(pod),
            Err(error) => {
                if known.is_none() {
                    for problem in self.unenrol(&pod) {
                        tracing::error!(pod = %pod.full_name(), %problem, "undo of a failed enrolment");
                    }
                }
                Err(error)
            }
        }
    }

    fn check(&self, pod: &Enrolled) -> Result<(), EnrolError> {
        let name = pod.full_name();
        let netns = steps::open_netns(pod).ok_or_else(|| {
            EnrolError::NotEnrolled(format!("{} is not the netns of pod {name} any more", pod.netns_path))
        })?;
        let ruleset = self.record(pod)?.ruleset();
        if self.in_nft(netns.as_fd(), move || nft::has_tables_of(&ruleset))? {
            Ok(())
        } else {
            Err(EnrolError::NotEnrolled(format!("the rules of pod {name} are not in its netns any more")))
        }
    }

    fn readdress(
        &mut self,
        pod: &Enrolled,
        netns: BorrowedFd<'_>,
        addresses: Vec<InterfaceAddress>,
    ) -> Result<Option<Enrolled>, EnrolError> {
        let before = self.record(pod)?;
        let own = OwnAddresses::choose(&addresses, &pod.interface);
        let families = before.families.readdressed(&before.capture, &own);
        if families == before.families {
            return Ok(None);
        }
        let record = Record::new(pod, &before.capture, families);
        if record.rules == before.rules {
            self.records.write(pod.cookie, &record)?;
        } else {
            self.bring_in(pod.cookie, &record, netns, Some(&before))?;
        }
        Ok(Some(pod.clone()))
    }

    fn unenrol(&mut self, pod: &Enrolled) -> Vec<EnrolError> {
        let mut problems = Vec::new();
        // Mostly the netns is about to go, and all of it with it.
        if let Some(netns) = steps::open_netns(pod) {
            match self.record(pod) {
                Ok(record) => problems.extend(self.take(&record, netns.as_fd())),
                Err(error) => {
                    problems.push(error);
                    problems.extend(self.in_nft(netns.as_fd(), nft::remove).err());
                }
            }
        }
        problems.extend(self.records.remove(pod.cookie).map_err(EnrolError::from).err());
        problems
    }

    fn map_entries(&self, pod: &Enrolled) -> Result<Option<MapEntries>, EnrolError> {
        let Some(netns) = steps::open_netns(pod) else { return Ok(None) };
        let failed = |attempt| move |source| EnrolError::Inspect { attempt, source };
        let look = || (netlink::addresses(), netlink::links::links());
        let (addresses, links) = self.netns.run(netns.as_fd(), look)?;
        let addresses = addresses.map_err(failed("read the addresses"))?;
        let links = links.map_err(failed("read the interfaces and routes"))?;
        Ok(Some(self.record(pod)?.map_entries(pod.cookie, addresses, &links)))
    }

    fn heal_shared(&mut self) -> Result<Vec<String>, EnrolError> {
        Ok(Vec::new())
    }

    fn lists(&self) -> Result<Lists, EnrolError> {
        Ok(Lists::new())
    }

    fn observe(
        &self,
        pod: &Enrolled,
        _lists: &ListEntries,
        _listeners: &[Listener],
    ) -> Result<Observed, EnrolError> {
        let netns = netns_of(pod, None, |_same| true);
        let record = self.records.read::<Record>(pod.cookie)?;
        // Rules that cannot be looked at are taken to be there: nothing could be done about them.
        let rules = match (&record, steps::open_netns(pod)) {
            (Some(record), Some(netns)) => {
                let ruleset = record.ruleset();
                self.in_nft(netns.as_fd(), move || nft::has_tables_of(&ruleset))?
            }
            (_, _) => true,
        };
        // Without its record nobody knows its rules: both come from the manifest, as its policy.
        Ok(Observed {
            netns,
            record: true,
            counters: true,
            lists: true,
            inbound: rules,
            policy: record.is_some(),
            missing_listeners: 0,
        })
    }

    fn heal(
        &mut self,
        pod: &Enrolled,
        actions: &[Action],
        netns: BorrowedFd<'_>,
        _listeners: &[Listener],
    ) -> Result<(), EnrolError> {
        if actions.contains(&Action::Inbound) {
            let record = self.record(pod)?;
            self.bring_in(pod.cookie, &record, netns, None)?;
        }
        Ok(())
    }

    fn counters(&self, pod: &Enrolled) -> Result<Counters, EnrolError> {
        let netns = steps::open_netns(pod).ok_or_else(|| gone(pod))?;
        Ok(nft::by_reason(&self.in_nft(netns.as_fd(), nft::counters)?))
    }

    fn standing(&self, pod: &Enrolled) -> Result<Option<Standing>, EnrolError> {
        let netns = steps::open_netns(pod).ok_or_else(|| gone(pod))?;
        let [outbound, inbound, _dns] = steps::proxy_ports(&DEFAULT_PORTS);
        let found = self.netns.run(netns.as_fd(), move || netlink::listeners(&[outbound, inbound]))?;
        let found = found.map_err(|source| EnrolError::Inspect { attempt: "list the listeners", source })?;
        let listens = |port| found.iter().any(|listener| listener.port == port);
        let proxy = if listens(outbound) && listens(inbound) {
            ProxyState::Listening
        } else {
            ProxyState::NotListening
        };
        let mode = match self.record(pod)?.capture.mode {
            InterceptionMode::Redirect => "redirect",
            InterceptionMode::Tproxy => "tproxy",
        };
        Ok(Some(Standing { mode, proxy }))
    }

    fn set_watched(&mut self, _watched: bool) -> Result<(), EnrolError> {
        // Rules report nothing.
        Ok(())
    }
}

fn families(ruleset: &Ruleset) -> Vec<Family> {
    ruleset.tables.iter().map(|table| table.family).collect()
}

/// That a pod's netns is not where it was.
fn gone(pod: &Enrolled) -> EnrolError {
    EnrolError::NotEnrolled(format!(
        "{} is not the netns of pod {} any more",
        pod.netns_path,
        pod.full_name()
    ))
}
