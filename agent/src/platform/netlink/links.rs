//! The interfaces and routes of the netns that the calling thread is in.
//!
//! Owns: reading them. Never does: choose among them; `capture` does. Called by: `enrol`, on the netns thread, for
//! pods whose annotations name interfaces.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::dump;
use crate::capture::{Link, Links, Route};

/// All interfaces, and the routes of table main in both families.
///
/// # Errors
/// As the kernel says.
pub fn links() -> io::Result<Links> {
    // Routes first: an interface that goes in between is then not there, and its routes lead out of nothing
    // that is named.
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        for answer in dump(NETLINK_ROUTE, RouteNetlinkMessage::GetRoute(request))? {
            if let RouteNetlinkMessage::NewRoute(message) = answer {
                routes.extend(route(&message));
            }
        }
    }
    // Without their counters, which are most of such a message.
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let links = dump(NETLINK_ROUTE, RouteNetlinkMessage::GetLink(request))?;
    let links = links.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => {
            let (index, flags) = (message.header.index, message.header.flags);
            Some(Link { index, name: name_of(message)?, is_up: flags.contains(LinkFlags::Up) })
        }
        _ => None,
    });
    Ok(Links { links: links.collect(), routes })
}

/// A route of table main; `None` for any other, and for one that holds for some sources alone.
fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let mut destination = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let mut metric = 0;
    let mut interfaces = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => destination = IpAddr::V4(*v4),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => destination = IpAddr::V6(*v6),
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Oif(index) => interfaces.push(*index),
            RouteAttribute::MultiPath(hops) => interfaces.extend(hops.iter().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    let is_main = table == u32::from(RouteHeader::RT_TABLE_MAIN);
    if !is_main || header.source_prefix_length != 0 {
        return None;
    }
    if header.kind != RouteType::Unicast {
        interfaces.clear();
    }
    let destination = IpNet::new(destination, header.destination_prefix_length).ok()?.trunc();
    Some(Route { destination, metric, interfaces })
}

fn name_of(link: LinkMessage) -> Option<String> {
    link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })
}
