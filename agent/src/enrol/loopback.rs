//! What a pod's proxy needs of the pod's `lo`: an address to dial the app from, or the way back of the app's answers.
//!
//! A sidecar and the node's Envoy dial the app from 127.0.0.6 and ::6, of which the second is an address that `lo` is
//! given. ztunnel dials it from the address of its own client, which is elsewhere: its connection has a mark, the app's
//! end inherits that, and what has it is routed to `lo`.
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
    if is_ambient(policy) {
        let families = families(policy);
        inside(netns, of, "route the app's answers to ztunnel", move || {
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

/// Takes it away, but for the sysctls, which mean nothing without the rest. While a connection of ztunnel's to the app is
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
    if is_ambient(policy) { Ok(()) } else { take_way(netns, of, before) }
}

fn take_way(netns: &NetnsThread, of: BorrowedFd<'_>, policy: &PodPolicy) -> Result<(), EnrolError> {
    if !is_ambient(policy) {
        return Ok(());
    }
    let families = families(policy);
    inside(netns, of, "take the route of the app's answers", move || {
        if is_in_use()? { Ok(()) } else { marks::remove(marks::AMBIENT, families) }
    })
}

/// Whether an app's answers find back to ztunnel; true where they need no way of their own.
///
/// # Errors
/// As the kernel says.
pub(super) fn is_whole(
    netns: &NetnsThread,
    of: BorrowedFd<'_>,
    policy: &PodPolicy,
) -> Result<bool, EnrolError> {
    if !is_ambient(policy) {
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

/// Whether a socket of the netns has an address that is not the netns': ztunnel's end of a connection to the app.
fn is_in_use() -> io::Result<bool> {
    let own: Vec<IpAddr> = netlink::addresses()?.into_iter().map(|one| one.address.to_canonical()).collect();
    let is_elsewhere = |address: IpAddr, _port| {
        let address = address.to_canonical();
        !address.is_loopback() && !own.contains(&address)
    };
    Ok(netlink::connections(is_elsewhere)? > 0)
}

const fn is_ambient(policy: &PodPolicy) -> bool {
    policy.flags & flag::AMBIENT != 0
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
