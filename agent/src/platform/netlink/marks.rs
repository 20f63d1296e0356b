//! The way of marked packets: what carries a mark is delivered locally, whatever its destination.
//!
//! Owns: one rule and one route of each family (`ip rule add fwmark MARK/MASK lookup TABLE`, `ip route add local
//! default dev lo table TABLE`), as Istio has them for TPROXY and for ambient mode. Called by: `enrol`, on the netns
//! thread.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use veer_common::verdict::ambient;

use super::{change, dump};
use crate::capture::nft::{Family, route};

/// `LOOPBACK_IFINDEX` (`include/net/flow.h`).
const LOOPBACK: u32 = 1;

/// Which packets, and the routing table that they are looked up in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    mark: u32,
    mask: u32,
    table: u8,
    /// Of the rule. Without one the kernel takes the next that is free, and so a rule that is there already a second time.
    priority: Option<u32>,
}

/// Of what the rules of a TPROXY pod mark, where rules redirect.
pub const TPROXY: Way = Way { mark: route::MARK, mask: u32::MAX, table: route::TABLE, priority: None };
/// Of what an app answers to what its proxy has handed to it from a client's address, where programs redirect: ambient mode's,
/// and TPROXY's. The numbers are Istio's, of ambient mode.
pub const AMBIENT: Way = Way { mark: ambient::REPLY, mask: ambient::MASK, table: 100, priority: Some(32764) };

/// Gives marked packets of these families their way; what is there already is fine.
///
/// # Errors
/// As the kernel says.
pub fn add(way: Way, families: &[Family]) -> io::Result<()> {
    let unless_there = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    };
    for family in families {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        unless_there(change(RouteNetlinkMessage::NewRoute(route_of(way, *family)), flags))?;
        unless_there(change(RouteNetlinkMessage::NewRule(rule_of(way, *family)), flags))?;
    }
    Ok(())
}

/// Takes it away again; what is gone is fine.
///
/// # Errors
/// As the kernel says, after all was tried.
pub fn remove(way: Way, families: &[Family]) -> io::Result<()> {
    let unless_gone = |result: io::Result<()>| match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::ENODEV)) => {
            Ok(())
        }
        other => other,
    };
    let mut outcome = Ok(());
    for family in families {
        let rule = unless_gone(change(RouteNetlinkMessage::DelRule(rule_of(way, *family)), 0));
        let route = unless_gone(change(RouteNetlinkMessage::DelRoute(route_of(way, *family)), 0));
        outcome = outcome.and(rule).and(route);
    }
    outcome
}

/// Whether marked packets of this family have their way.
///
/// # Errors
/// As the kernel says.
pub fn is_there(way: Way, family: Family) -> io::Result<bool> {
    let mut request = RuleMessage::default();
    request.header.family = address_family(family);
    let wanted = rule_of(way, family).attributes;
    let rules = dump(NETLINK_ROUTE, RouteNetlinkMessage::GetRule(request))?;
    let has_rule = rules.iter().any(|answer| match answer {
        RouteNetlinkMessage::NewRule(rule) => {
            rule.header.family == address_family(family)
                && wanted.iter().all(|attribute| rule.attributes.contains(attribute))
        }
        _ => false,
    });
    if !has_rule {
        return Ok(false);
    }
    let mut request = RouteMessage::default();
    request.header.address_family = address_family(family);
    let routes = dump(NETLINK_ROUTE, RouteNetlinkMessage::GetRoute(request))?;
    Ok(routes.iter().any(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => {
            let table = RouteAttribute::Table(way.table.into());
            route.header.kind == RouteType::Local
                && route.header.destination_prefix_length == 0
                && (route.header.table == way.table || route.attributes.contains(&table))
        }
        _ => false,
    }))
}

fn rule_of(way: Way, family: Family) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = address_family(family);
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::FwMark(way.mark),
        RuleAttribute::FwMask(way.mask),
        RuleAttribute::Table(way.table.into()),
    ];
    rule.attributes.extend(way.priority.map(RuleAttribute::Priority));
    rule
}

fn route_of(way: Way, family: Family) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    message.attributes = vec![RouteAttribute::Oif(LOOPBACK), RouteAttribute::Table(way.table.into())];
    message
}

const fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::Ip => AddressFamily::Inet,
        Family::Ip6 => AddressFamily::Inet6,
    }
}
