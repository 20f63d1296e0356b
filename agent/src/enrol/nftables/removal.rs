//! The end of nftables on a node: every pod's rules, without ending the connections that its proxy has.
//!
//! A DEL need not care for those: the pod is about to go. Called by: `uninstall`.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use super::Nftables;
use crate::capture::Links;
use crate::enrol::backend::Backend;
use crate::enrol::error::EnrolError;
use crate::enrol::record::Record;
use crate::enrol::registry::Enrolled;
use crate::enrol::steps;
use crate::platform::netlink;
use crate::platform::nft;

/// What is left of a pod's rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Withdrawn {
    /// Nothing.
    Wholly,
    /// Chains that redirect nothing, for the connections that are open.
    Drained,
}

impl Nftables {
    /// The pods that there is a record of, and why others cannot be read.
    pub fn recorded(&self) -> (Vec<Enrolled>, Vec<EnrolError>) {
        let (mut pods, mut problems) = (Vec::new(), Vec::new());
        match self.records.read_all::<Record>() {
            Ok(records) => {
                for record in records {
                    match record {
                        Ok((cookie, record)) => pods.push(record.enrolled(cookie)),
                        Err(error) => problems.push(error.into()),
                    }
                }
            }
            Err(error) => problems.push(error.into()),
        }
        (pods, problems)
    }

    /// Ends the redirection of a pod that goes on living, and forgets it.
    ///
    /// # Errors
    /// All that failed; what did not is done.
    pub fn withdraw(&mut self, pod: &Enrolled) -> Result<Withdrawn, Vec<EnrolError>> {
        let netns = steps::open_netns(pod);
        if let (Some(netns), Ok(record)) = (&netns, self.record(pod))
            && self.has_connections(&record, netns.as_fd())
        {
            let mut problems = self.drain(&record, netns.as_fd());
            problems.extend(self.records.remove(pod.cookie).map_err(EnrolError::from).err());
            return if problems.is_empty() { Ok(Withdrawn::Drained) } else { Err(problems) };
        }
        let problems = self.unenrol(pod);
        if problems.is_empty() { Ok(Withdrawn::Wholly) } else { Err(problems) }
    }

    /// Whether the proxy has any. Where that cannot be told, it has.
    fn has_connections(&self, record: &Record, netns: BorrowedFd<'_>) -> bool {
        let policy = record.map_entries(0, Vec::new(), &Links::default()).policy;
        let ports = steps::proxy_ports(&policy).map(veer_common::address::Port::get);
        let marks = record.ruleset().marks;
        let connections = move || {
            let own: Vec<_> = netlink::addresses()?.into_iter().map(|own| own.address).collect();
            // Of a transparent proxy: they have the address that was dialled, or the client's, and any port.
            let is_others = |address: IpAddr| !address.is_loopback() && !own.contains(&address);
            let is_proxys = |address, port| ports.contains(&port) || (marks && is_others(address));
            netlink::connections(|address, port| is_proxys(address.to_canonical(), port))
        };
        !matches!(self.netns.run(netns, connections), Ok(Ok(0)))
    }

    fn drain(&self, record: &Record, netns: BorrowedFd<'_>) -> Vec<EnrolError> {
        let ruleset = record.ruleset();
        let drained = ruleset.drained();
        let mut problems: Vec<EnrolError> =
            self.in_nft(netns, move || nft::apply(&drained)).err().into_iter().collect();
        if record.families.captures_v6 {
            let take = || match netlink::connections_from_passthrough_address()? {
                0 => netlink::remove_passthrough_address(),
                _ => Ok(()),
            };
            problems.extend(self.inside(netns, "take ::6 off lo", take).err());
        }
        problems
    }
}
