//! What the rules on interfaces compared, in words.

use std::net::IpAddr;

use veer_common::interface::{LOOPBACK, kind};
use veer_common::maps::{RangeList, flag};
use veer_common::verdict::{Inbound, Outbound};

use super::compared::{Facts, in_ranges};

/// By which interface a connection leaves, and whether that one is excluded.
pub(super) fn outbound(facts: &Facts<'_>, connection: &Outbound, to: IpAddr) -> String {
    let Some(excluded) = facts.lists.interfaces(kind::EXCLUDED) else {
        return "the pod excludes no interface".to_owned();
    };
    let destination = connection.effective_destination();
    if destination.is_loopback() || facts.lists.own(&destination) {
        let is = if facts.lists.interface_is(LOOPBACK, kind::EXCLUDED) { "is" } else { "is not" };
        return format!("{to} is reached by lo, which {is} one of {excluded}");
    }
    if connection.interface != 0 {
        return tied(facts, connection.interface, &excluded);
    }
    match facts.lists.route(&destination) {
        Some((network, Some(interface))) => {
            format!("{to} is reached by {interface} (route {network}), which is one of {excluded}")
        }
        Some((network, None)) => format!("the route {network} to {to} leads out of none of {excluded}"),
        None => format!("no route to {to} leads out of {excluded}"),
    }
}

fn tied(facts: &Facts<'_>, interface: u32, excluded: &str) -> String {
    match facts.lists.interface_name(interface) {
        Some(name) if facts.lists.interface_is(interface, kind::EXCLUDED) => {
            format!("the socket is tied to {name}, which is one of {excluded}")
        }
        Some(_) | None => format!("the socket is tied to an interface that is none of {excluded}"),
    }
}

/// On which interface a connection arrived, and whether that one is named for this.
pub(super) fn inbound(facts: &Facts<'_>, connection: &Inbound, kind: u32) -> String {
    let what = if kind == kind::EXCLUDED { "excludes" } else { "reroutes" };
    let Some(named) = facts.lists.interfaces(kind) else {
        return format!("the pod {what} no interface");
    };
    match facts.lists.interface_name(connection.interface) {
        Some(name) if facts.lists.interface_is(connection.interface, kind) => {
            format!("it arrived on {name}, which is one of {named}")
        }
        Some(name) => format!("it arrived on {name}, which is none of {named}"),
        None => format!("it arrived on none of {named}"),
    }
}

/// The same for an interface of a virtual machine, and whether the address is captured.
pub(super) fn rerouted(facts: &Facts<'_>, connection: &Inbound) -> String {
    let arrived = inbound(facts, connection, kind::REROUTED);
    if !facts.lists.interface_is(connection.interface, kind::REROUTED)
        || !facts.has(flag::REROUTES_INTERFACES)
    {
        return arrived;
    }
    if facts.has(flag::OUTBOUND_ALL) {
        return format!("{arrived}, and the pod includes *, all addresses");
    }
    let list = if connection.local.is_v4() { RangeList::IncludedV4 } else { RangeList::IncludedV6 };
    format!(
        "{arrived}, and {}",
        in_ranges(facts, list, &connection.local, "includes no range of this family")
    )
}
