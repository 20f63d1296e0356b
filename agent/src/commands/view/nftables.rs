//! The pods that nftables redirects: their records, and what is in their netns.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;

use veer_common::address::Port;
use veer_common::maps::{Counters, NetnsCookie};
use veer_common::reason::COUNTERS;

use super::super::Failure;
use super::{PodView, policy_view};
use crate::capture::{InterfaceAddress, Links};
use crate::enrol::record::Record;
use crate::enrol::steps;
use crate::platform::netlink::{self, Listener};
use crate::platform::netns::NetnsThread;
use crate::platform::nft::{self, Counted, NftError};
use crate::platform::records::Records;

/// What is read inside of a pod's netns, in one visit.
struct Inside {
    addresses: io::Result<Vec<InterfaceAddress>>,
    listeners: io::Result<Vec<Listener>>,
    counters: Result<Vec<Counted>, NftError>,
    has_rules: bool,
}

/// All of them.
pub(super) fn pods(records: &Records) -> Result<Vec<PodView>, Failure> {
    let records = records.read_all::<Record>()?;
    if records.is_empty() {
        return Ok(Vec::new());
    }
    let netns = NetnsThread::start()?;
    let view = |record: Result<(NetnsCookie, Record), _>| {
        let (cookie, record) = record.map_err(Failure::from)?;
        Ok(pod(&netns, cookie, &record))
    };
    records.into_iter().map(view).collect()
}

fn pod(netns: &NetnsThread, cookie: NetnsCookie, record: &Record) -> PodView {
    let pod = record.enrolled(cookie);
    let inside = steps::open_netns(&pod).and_then(|file| look(netns, &file, record));
    let mut counters = Counters([0; COUNTERS]);
    let mut policy = None;
    let has_rules = inside.as_ref().is_some_and(|inside| inside.has_rules);
    if let Some(inside) = inside {
        counters = nft::by_reason(&inside.counters.unwrap_or_default());
        let mut sockets: HashMap<Port, usize> = HashMap::new();
        for listener in inside.listeners.unwrap_or_default() {
            *sockets.entry(listener.port).or_default() += 1;
        }
        let entries = record.map_entries(cookie, inside.addresses.unwrap_or_default(), &Links::default());
        let listeners = |port| sockets.get(&port).copied().unwrap_or_default();
        policy = Some(policy_view(&entries.policy, false, listeners));
    }
    PodView::of(pod, policy, has_rules, &counters)
}

fn look(netns: &NetnsThread, file: &impl AsFd, record: &Record) -> Option<Inside> {
    let policy = record.map_entries(0, Vec::new(), &Links::default()).policy;
    let (ports, ruleset) = (steps::proxy_ports(&policy), record.ruleset());
    let look = move || Inside {
        addresses: netlink::addresses(),
        listeners: netlink::listeners(&ports),
        counters: nft::counters(),
        has_rules: nft::has_tables_of(&ruleset).unwrap_or(false),
    };
    netns.run(file.as_fd(), look).ok()
}

/// What a pod's record and its netns say of where connections go; none if the netns is gone.
pub(in crate::commands) fn entries(
    cookie: NetnsCookie,
    record: &Record,
) -> Result<Option<crate::capture::MapEntries>, Failure> {
    let Some(file) = steps::open_netns(&record.enrolled(cookie)) else { return Ok(None) };
    let look = || (netlink::addresses(), netlink::links::links());
    let (addresses, links) = NetnsThread::start()?.run(file.as_fd(), look)?;
    Ok(Some(record.map_entries(cookie, addresses?, &links?)))
}
