//! What a pod's proxy needs of the pod's `lo`: an address to dial the app from, or the way back of the app's answers.
//!
//! A sidecar and the node's Envoy dial the app from 127.0.0.6 and ::6, of which the second is an address that `lo` is
//! given. ztunnel, and the sidecar of a TPROXY pod, dial it from the address of their own client, which is elsewhere: their
//! connection has a mark, the app's end inherits that, and what has it is routed to `lo`.
//!
//! Owns: giving, taking, and telling whether it is there. Never does: know when. Called by: `steps` and `ebpf`.

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use veer_common::maps::{PodPolicy, flag};

use super::error::EnrolError;
use crate::capture::nft::Family;
use crate::platform::netlink::{self, marks};
use crate::platform::netns::NetnsThread;
use crate::platform::sysctl;

/// The app's end of a connection takes the mark of its SYN, and what answers without a socket that of what it answers: a
/// RST from a port where nobody listens must come back, too.
const INHERIT_MARKS: [(&str, Family); 3] = [
    ("net/ipv4/tcp_fwmark_accept", Family::Ip),
    ("net/ipv4/fwmark_reflect", Family::Ip),
    ("net/ipv6/fwmark_reflect", Family::Ip6),
];

/// Gives the netns what the proxy of a pod with this policy needs; it may have it already.
///
/// # Errors
/// As the kernel says.
pub(super) fn give(netns: &NetnsThread, of: BorrowedFd<'_>, policy: &PodPolicy) -> Result<(), EnrolError> {
    if policy.needs_passthrough() {
        inside(netns, of, "put ::6 on lo", netlink::add_passthrough_address)?;
    }
    if policy.shows_clients() {
        let families = families(policy);
        inside(netns, of, "route the app's answers to its proxy", move || {
            let of_families = INHERIT_MARKS.iter().filter(|(_, family)| families.contains(family));
            of_families.into_iter().try_for_each(|(name, _)| set(name))?;
            marks::add(marks::AMBIENT, families)
        })?;
    }
    Ok(())
}

fn set(name: &str) -> io::Result<()> {
    sysctl::set(name, "1").map_err(|error| io::Error::new(error.kind(), format!("sysctl {name}: {error}")))
}

/// Takes it away, but for the sysctls, which mean nothing without the rest. While a connection of the proxy's to the app is
/// open, the app's answers keep their way: without it they would leave the pod.
///
/// # Errors
/// As the kernel says.
pub(super) fn take(netns: &NetnsThread, of: BorrowedFd<'_>, policy: &PodPolicy) -> Result<(), EnrolError> {
    if policy.needs_passthrough() {
        inside(netns, of, "take ::6 off lo", netlink::remove_passthrough_address)?;
    }
    take_way(netns, of, policy)
}

/// Takes away what the policy before needed and this one does not. `::6` stays, which open connections come from.
///
/// # Errors
/// As the kernel says.
pub(super) fn give_up(
    netns: &NetnsThread,
    of: BorrowedFd<'_>,
    before: &PodPolicy,
    policy: &PodPolicy,
) -> Result<(), EnrolError> {
    if policy.shows_clients() { Ok(()) } else { take_way(netns, of, before) }
}

fn take_way(netns: &NetnsThread, of: BorrowedFd<'_>, policy: &PodPolicy) -> Result<(), EnrolError> {
    if !policy.shows_clients() {
        return Ok(());
    }
    let families = families(policy);
    inside(netns, of, "take the route of the app's answers", move || take_unused(families).map(drop))
}

/// Whether an app's answers find back to its proxy; true where they need no way of their own.
///
/// # Errors
/// As the kernel says.
pub(super) fn is_whole(
    netns: &NetnsThread,
    of: BorrowedFd<'_>,
    policy: &PodPolicy,
) -> Result<bool, EnrolError> {
    if !policy.shows_clients() {
        return Ok(true);
    }
    let families = families(policy);
    let look = move || -> io::Result<bool> {
        for family in families {
            if !marks::is_there(marks::AMBIENT, *family)? {
                return Ok(false);
            }
        }
        Ok(true)
    };
    let attempt = "read the routing rules";
    netns.run(of, look)?.map_err(|source| EnrolError::Inspect { attempt, source })
}

/// The families whose marked packets have a way of ours in the netns of the calling thread.
///
/// # Errors
/// As the kernel says of IPv4; it may have no IPv6.
pub fn ways() -> io::Result<Vec<Family>> {
    let v4 = marks::is_there(marks::AMBIENT, Family::Ip)?;
    let v6 = marks::is_there(marks::AMBIENT, Family::Ip6).unwrap_or_default();
    Ok([(Family::Ip, v4), (Family::Ip6, v6)]
        .into_iter()
        .filter_map(|(family, has)| has.then_some(family))
        .collect())
}

/// Takes these away, in the netns of the calling thread; false if a connection of a proxy's to its app is answered by them, or if
/// that cannot be asked: then they do no harm.
///
/// # Errors
/// As the kernel says.
pub fn take_unused(families: &[Family]) -> io::Result<bool> {
    if is_in_use().unwrap_or(true) {
        return Ok(false);
    }
    marks::remove(marks::AMBIENT, families).map(|()| true)
}

/// Whether a socket of the netns has an address that is not the netns': the proxy's end of a connection to the app.
fn is_in_use() -> io::Result<bool> {
    let own: Vec<IpAddr> = netlink::addresses()?.into_iter().map(|one| one.address.to_canonical()).collect();
    let is_elsewhere = |address: IpAddr, _port| {
        let address = address.to_canonical();
        !address.is_loopback() && !own.contains(&address)
    };
    Ok(netlink::connections(is_elsewhere)? > 0)
}

/// Without IPv6 in the netns there may be none in the kernel either.
const fn families(policy: &PodPolicy) -> &'static [Family] {
    if policy.flags & flag::HAS_V6 == 0 { &[Family::Ip] } else { &[Family::Ip, Family::Ip6] }
}

fn inside(
    netns: &NetnsThread,
    of: BorrowedFd<'_>,
    attempt: &'static str,
    change: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(), EnrolError> {
    netns.run(of, change)?.map_err(|source| EnrolError::Change { attempt, source })
}
