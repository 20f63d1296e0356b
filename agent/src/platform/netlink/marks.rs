//! The way of marked packets: what nftables hands over without NAT is delivered locally, whatever its destination.
//!
//! Owns: one rule and one route of each family (`ip rule add fwmark 1337 lookup 133`, `ip route add local default
//! dev lo table 133`), as Istio has them for TPROXY. Called by: `enrol`, on the netns thread.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::change;
use crate::capture::nft::{Family, route};

/// `LOOPBACK_IFINDEX` (`include/net/flow.h`).
const LOOPBACK: u32 = 1;

/// Gives marked packets of these families their way; what is there already is fine.
///
/// # Errors
/// As the kernel says.
pub fn add(families: &[Family]) -> io::Result<()> {
    let unless_there = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    };
    for family in families {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        unless_there(change(RouteNetlinkMessage::NewRoute(route_of(*family)), flags))?;
        unless_there(change(RouteNetlinkMessage::NewRule(rule_of(*family)), flags))?;
    }
    Ok(())
}

/// Takes it away again; what is gone is fine.
///
/// # Errors
/// As the kernel says, after all was tried.
pub fn remove(families: &[Family]) -> io::Result<()> {
    let unless_gone = |result: io::Result<()>| match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::ENODEV)) => {
            Ok(())
        }
        other => other,
    };
    let mut outcome = Ok(());
    for family in families {
        let rule = unless_gone(change(RouteNetlinkMessage::DelRule(rule_of(*family)), 0));
        let route = unless_gone(change(RouteNetlinkMessage::DelRoute(route_of(*family)), 0));
        outcome = outcome.and(rule).and(route);
    }
    outcome
}

fn rule_of(family: Family) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = address_family(family);
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![RuleAttribute::FwMark(route::MARK), RuleAttribute::Table(route::TABLE)];
    rule
}

fn route_of(family: Family) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    message.attributes = vec![RouteAttribute::Oif(LOOPBACK), RouteAttribute::Table(route::TABLE)];
    message
}

const fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::Ip => AddressFamily::Inet,
        Family::Ip6 => AddressFamily::Inet6,
    }
}
