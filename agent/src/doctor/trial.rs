//! What is tried with nftables: the rules of a pod that uses all that rules are needed for.

use std::collections::BTreeSet;

use ipnet::Ipv4Net;

use crate::capture::nft::Ruleset;
use crate::model::{
    BeforeProxy, Capture, Driver, IdSpace, InboundPorts, InterceptionMode, OutboundRanges, OwnerGroups, Port,
    Presence, ProxyIdentity,
};

/// The rules of a pod with DNS capture, and with an excluded port and range, so that there are sets, too.
pub fn ruleset(captures_v6: bool) -> Ruleset {
    let loopback = Ipv4Net::from(std::net::Ipv4Addr::LOCALHOST);
    let capture = Capture {
        proxy_uid: 1337,
        proxy_gid: 1337,
        ids: IdSpace::Node,
        mode: InterceptionMode::Redirect,
        inbound: InboundPorts::All { excluded: [15020, 15021, 15090].map(Port::new).into() },
        outbound: OutboundRanges::All,
        excluded_ranges: [ipnet::IpNet::V4(loopback)].into(),
        included_outbound_ports: BTreeSet::new(),
        excluded_outbound_ports: [Port::new(15020)].into(),
        excluded_interfaces: BTreeSet::new(),
        rerouted_interfaces: BTreeSet::new(),
        dns_capture: true,
        dual_stack: captures_v6,
        drop_invalid: true,
        owner_groups: OwnerGroups::AllExcept(BTreeSet::new()),
        loopback,
        proxy_identity: ProxyIdentity::Uid,
        before_proxy: BeforeProxy::Refuse,
        driver: Driver::Sidecar,
        presence: Presence::Full,
        warnings: Vec::new(),
    };
    Ruleset::of(&capture, captures_v6)
}
