//! Where a connection goes: the decision table of istio-init as one pure function for each direction.
//!
//! The order of the tests is the order of istio-init's rules, because the order decides ties: an
//! excluded port binds the proxy, too; the proxy's identity comes before every address list; exclusion
//! beats inclusion whatever the prefix lengths. Runs in the kernel (through maps) and in tests (through
//! the parsed lists): whoever asks brings the lists as [`Rules`].
//!
//! Each test is a [`Rule`], reported to a [`Trace`] as it is made: [`trace_outbound`], [`trace_inbound`] and
//! [`trace_datagram`] are the verdict, [`outbound`], [`inbound`] and [`datagram`] the same without a listener. A rule that matches decides, so
//! a trace is rules that did not match and, at its end, the one that did.

use crate::address::{Address, Port};
use crate::interface::{self, kind};
use crate::maps::{PodPolicy, PortList, RangeList, flag};
use crate::reason::Reason;
use crate::rule::{NoTrace, Rule, Trace};

pub mod ambient;

/// The port that is DNS, whoever listens there.
const DNS: u16 = 53;

/// The lists of one pod.
pub trait Rules {
    /// Whether the port is in the list.
    fn port_listed(&self, list: PortList, port: Port) -> bool;
    /// Whether a range of the list holds the address.
    fn range_listed(&self, list: RangeList, address: &Address) -> bool;
    /// Whether the pod's netns has this address: what iptables sees as `-o lo`, besides loopback.
    fn own_address(&self, address: &Address) -> bool;
    /// Whether the group is in the list of owner groups.
    fn group_listed(&self, gid: u32) -> bool;
    /// Whether annotations name the interface with this index for this [`kind`].
    fn interface_is(&self, index: u32, kind: u32) -> bool;
    /// Whether the route to the address leads out of an excluded interface.
    fn route_excluded(&self, destination: &Address) -> bool;
}

/// Facts of a connection that a process in the pod opens, or of a datagram that it sends.
#[derive(Clone, Copy, Debug)]
pub struct Outbound {
    /// Uid of whoever created the socket, as the initial user namespace counts.
    pub uid: u32,
    /// Primary gid of whoever created the socket, likewise.
    pub gid: u32,
    /// Whether the socket was created in another container than the proxy's, in a pod where only those of the
    /// proxy's container are the proxy. Then neither id is the proxy's.
    pub is_impostor: bool,
    /// Whether the pod's proxy has not listened yet, on a node that lets connections go direct until it does.
    pub is_before_proxy: bool,
    /// Whether the socket has the mark of ztunnel's, and of a TPROXY pod's proxy ([`ambient::is_ztunnels`]); counts with these
    /// two alone.
    pub is_marked: bool,
    /// The address the socket is bound to, [`Address::UNSPECIFIED`] or `0.0.0.0` if to none.
    pub source: Address,
    /// The dialled address.
    pub destination: Address,
    /// The dialled port.
    pub port: Port,
    /// `SO_BINDTODEVICE`: index of the interface that the socket is tied to, 0 for none.
    pub interface: u32,
}

/// Facts of a TCP connection that arrives in the pod's netns.
#[derive(Clone, Copy, Debug)]
pub struct Inbound {
    /// The client.
    pub remote: Address,
    /// The dialled address.
    pub local: Address,
    /// The dialled port.
    pub port: Port,
    /// Index of the interface that it arrived on; 0 where nothing depends on it.
    pub interface: u32,
    /// Whose it is; counts in ambient mode and with TPROXY alone.
    pub sender: Sender,
}

/// Who sends what arrives in a pod whose proxy shows its clients' addresses ([`PodPolicy::shows_clients`]): the address does
/// not tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sender {
    /// Whoever has the address.
    Client,
    /// The pod's proxy, which hands a connection to the app from the address of its own client.
    Proxy,
    /// The node itself; told apart in ambient mode alone.
    Node,
}

impl Outbound {
    /// Whether the uid of the socket's creator makes it the proxy's.
    #[inline(always)]
    pub const fn is_proxy_by_uid(&self, pod: &PodPolicy) -> bool {
        self.uid == pod.proxy_uid && !self.is_impostor
    }

    /// Whether the primary gid of the socket's creator makes it the proxy's.
    #[inline(always)]
    pub const fn is_proxy_by_gid(&self, pod: &PodPolicy) -> bool {
        self.gid == pod.proxy_gid && !self.is_impostor
    }

    /// Where the kernel will really connect, which it finds out after our hook. `0.0.0.0` means the bound
    /// source, else 127.0.0.1 (`ip_route_output_key_hash_rcu`). `::` means loopback whatever the source,
    /// in the source's family (`tcp_v6_connect`).
    #[inline(always)]
    pub const fn effective_destination(&self) -> Address {
        if !self.destination.is_unspecified() {
            self.destination
        } else if !self.destination.is_v4() {
            if self.source.is_v4() { Address::LOOPBACK_V4 } else { Address::LOOPBACK_V6 }
        } else if self.source.is_unspecified() {
            Address::LOOPBACK_V4
        } else {
            self.source
        }
    }
}

/// The verdict on a TCP connection that a process of the pod opens.
#[inline(always)]
pub fn outbound<R: Rules>(pod: &PodPolicy, rules: &R, connection: &Outbound) -> Reason {
    trace_outbound(pod, rules, connection, &mut NoTrace)
}

/// The verdict on a TCP connection that arrives in the pod's netns.
#[inline(always)]
pub fn inbound<R: Rules>(pod: &PodPolicy, rules: &R, connection: &Inbound) -> Reason {
    trace_inbound(pod, rules, connection, &mut NoTrace)
}

/// The verdict on UDP that a process of the pod sends, or connects a socket for.
#[inline(always)]
pub fn datagram<R: Rules>(pod: &PodPolicy, rules: &R, sent: &Outbound) -> Reason {
    trace_datagram(pod, rules, sent, &mut NoTrace)
}

/// The verdict on a TCP connection that a process of the pod opens; `trace` hears of each rule.
#[inline(always)]
pub fn trace_outbound<R: Rules, T: Trace>(
    pod: &PodPolicy,
    rules: &R,
    connection: &Outbound,
    trace: &mut T,
) -> Reason {
    if has(pod, flag::AMBIENT) {
        return ambient::outbound(pod, rules, connection, trace);
    }
    let destination = connection.effective_destination();
    let port = connection.port;

    let leaves_excluded = leaves_by_excluded_interface(pod, rules, connection, &destination);
    if trace.looked_at(Rule::ExcludedInterface, leaves_excluded) {
        return Rule::ExcludedInterface.reason();
    }
    if trace.looked_at(Rule::ExcludedPort, is_excluded(pod, rules, port)) {
        return Rule::ExcludedPort.reason();
    }

    let to_localhost = is_localhost(pod, &destination);
    let dns = is_captured_dns(pod, &destination, port);
    if stays_in_pod(rules, &destination) {
        if let Some(reason) = within_pod(pod, rules, connection, to_localhost, dns, trace) {
            return reason;
        }
    } else {
        if trace.looked_at(Rule::Proxy, connection.is_proxy_by_uid(pod)) {
            return Rule::Proxy.reason();
        }
        if trace.looked_at(Rule::ProxyGroup, connection.is_proxy_by_gid(pod)) {
            return Rule::ProxyGroup.reason();
        }
    }

    if trace.looked_at(Rule::OwnerGroup, is_of_other_owner(pod, rules, connection.gid)) {
        return Rule::OwnerGroup.reason();
    }
    // All that would be the proxy's is direct from here on. What the proxy itself dials was decided above.
    if trace.looked_at(Rule::BeforeProxy, connection.is_before_proxy) {
        return Rule::BeforeProxy.reason();
    }
    if trace.looked_at(Rule::Dns, dns) {
        return Rule::Dns.reason();
    }
    if trace.looked_at(Rule::Localhost, to_localhost) {
        return Rule::Localhost.reason();
    }
    to_remote(pod, rules, &destination, port, trace)
}

/// The verdict on UDP that a process of the pod sends, or connects a socket for; `trace` hears of each rule.
///
/// Of UDP only DNS is captured, and what is none is told at once: nothing else about it could matter.
#[inline(always)]
pub fn trace_datagram<R: Rules, T: Trace>(
    pod: &PodPolicy,
    rules: &R,
    sent: &Outbound,
    trace: &mut T,
) -> Reason {
    let dns = has(pod, flag::DNS_CAPTURE) && sent.port.get() == DNS;
    if trace.looked_at(Rule::NotDns, !dns) {
        return Rule::NotDns.reason();
    }
    if has(pod, flag::AMBIENT) {
        return ambient::dns(pod, rules, sent, trace);
    }
    let destination = sent.effective_destination();
    let leaves_excluded = leaves_by_excluded_interface(pod, rules, sent, &destination);
    if trace.looked_at(Rule::ExcludedInterface, leaves_excluded) {
        return Rule::ExcludedInterface.reason();
    }
    if trace.looked_at(Rule::ExcludedPort, is_excluded(pod, rules, sent.port)) {
        return Rule::ExcludedPort.reason();
    }
    let passthrough = sent.source.is_passthrough() && stays_in_pod(rules, &destination);
    if trace.looked_at(Rule::PassthroughSource, passthrough) {
        return Rule::PassthroughSource.reason();
    }
    if trace.looked_at(Rule::Proxy, sent.is_proxy_by_uid(pod)) {
        return Rule::Proxy.reason();
    }
    if trace.looked_at(Rule::ProxyGroup, sent.is_proxy_by_gid(pod)) {
        return Rule::ProxyGroup.reason();
    }
    if trace.looked_at(Rule::OwnerGroup, is_of_other_owner(pod, rules, sent.gid)) {
        return Rule::OwnerGroup.reason();
    }
    if trace.looked_at(Rule::BeforeProxy, sent.is_before_proxy) {
        return Rule::BeforeProxy.reason();
    }
    if trace.looked_at(Rule::Dns, is_captured_dns(pod, &destination, sent.port)) {
        return Rule::Dns.reason();
    }
    if trace.looked_at(Rule::NoAddressOfFamily, !reaches(pod, &destination)) {
        return Rule::NoAddressOfFamily.reason();
    }
    trace.looked_at(Rule::Ipv6NotCaptured, true);
    Rule::Ipv6NotCaptured.reason()
}

#[inline(always)]
fn is_excluded<R: Rules>(pod: &PodPolicy, rules: &R, port: Port) -> bool {
    has(pod, flag::EXCLUDES_OUTBOUND_PORTS) && rules.port_listed(PortList::ExcludedOutbound, port)
}

/// Whether this is DNS that the pod captures, by a family that it captures and can send.
#[inline(always)]
fn is_captured_dns(pod: &PodPolicy, destination: &Address, port: Port) -> bool {
    has(pod, flag::DNS_CAPTURE)
        && port.get() == DNS
        && (destination.is_v4() || has(pod, flag::CAPTURES_V6))
        && reaches(pod, destination)
}

/// Whether the pod has an address to send from to there.
#[inline(always)]
fn reaches(pod: &PodPolicy, destination: &Address) -> bool {
    has(pod, if destination.is_v4() { flag::HAS_V4 } else { flag::HAS_V6 }) || destination.is_loopback()
}

/// Whether what is dialled does not leave the pod: what iptables sees as `-o lo`.
#[inline(always)]
pub fn stays_in_pod<R: Rules>(rules: &R, destination: &Address) -> bool {
    destination.is_loopback() || rules.own_address(destination)
}

/// What iptables asks of the packet (`-o`), asked of what will route it: what stays in the pod leaves by `lo`, a
/// socket that is tied to an interface by that one, and anything else as the routes say.
#[inline(always)]
fn leaves_by_excluded_interface<R: Rules>(
    pod: &PodPolicy,
    rules: &R,
    connection: &Outbound,
    destination: &Address,
) -> bool {
    if !has(pod, flag::EXCLUDES_INTERFACES) {
        return false;
    }
    if stays_in_pod(rules, destination) {
        return rules.interface_is(interface::LOOPBACK, kind::EXCLUDED);
    }
    if connection.interface != 0 {
        return rules.interface_is(connection.interface, kind::EXCLUDED);
    }
    rules.route_excluded(destination)
}

/// 127.0.0.1, or the range that the node has put in its place; ::1.
#[inline(always)]
fn is_localhost(pod: &PodPolicy, destination: &Address) -> bool {
    if !destination.is_v4() {
        return destination.is_localhost();
    }
    let [_, _, _, v4] = destination.words();
    v4 & pod.localhost_mask == pod.localhost
}

/// Whether the node's owner groups leave the connections of this group alone.
#[inline(always)]
fn is_of_other_owner<R: Rules>(pod: &PodPolicy, rules: &R, gid: u32) -> bool {
    if has(pod, flag::EXCLUDES_GROUPS) {
        rules.group_listed(gid)
    } else {
        has(pod, flag::INCLUDES_GROUPS) && !rules.group_listed(gid)
    }
}

/// The rules on what does not leave the pod; `None` where a later rule decides.
#[inline(always)]
fn within_pod<R: Rules, T: Trace>(
    pod: &PodPolicy,
    rules: &R,
    connection: &Outbound,
    to_localhost: bool,
    dns: bool,
    trace: &mut T,
) -> Option<Reason> {
    if trace.looked_at(Rule::PassthroughSource, connection.source.is_passthrough()) {
        return Some(Rule::PassthroughSource.reason());
    }
    // What the proxy of a TPROXY pod hands to its app, from the address of its own client (`OriginalSrc`).
    if has(pod, flag::TPROXY) && trace.looked_at(Rule::ProxyMark, connection.is_marked) {
        return Some(Rule::ProxyMark.reason());
    }
    // DNS of the proxy's is a question to a resolver, wherever that is, and no request for this pod.
    let to_own_service = !to_localhost
        && !dns
        && connection.port.get() != pod.tunnel_port.get()
        && (connection.effective_destination().is_v4() || has(pod, flag::CAPTURES_V6));

    // With TPROXY the proxy runs as uid 0, so its gid says who it is; and what it sends to its own pod meets
    // the lists of inbound ports as if it came from the network.
    let proxy_by_group = has(pod, flag::TPROXY)
        && connection.is_proxy_by_gid(pod)
        && captures_inbound(pod, rules, connection.port);
    let proxy = connection.is_proxy_by_uid(pod) || proxy_by_group;
    if trace.looked_at(Rule::ProxyToOwnAddress, proxy && to_own_service) {
        return Some(Rule::ProxyToOwnAddress.reason());
    }
    if trace.looked_at(Rule::ProxyWithinPod, proxy) {
        return Some(Rule::ProxyWithinPod.reason());
    }
    // A resolver on loopback is asked by way of the proxy, too.
    if trace.looked_at(Rule::AppToOwnAddress, !has(pod, flag::INCLUDES_LOOPBACK) && !dns) {
        return Some(Rule::AppToOwnAddress.reason());
    }
    // Only reached by DNS, or when a loopback range is included: istio-init's "app over lo" rule leaves
    // these out, and its rules on the proxy's group come to bear.
    let group = connection.is_proxy_by_gid(pod);
    if trace.looked_at(Rule::ProxyGroupToOwnAddress, group && to_own_service) {
        return Some(Rule::ProxyGroupToOwnAddress.reason());
    }
    if trace.looked_at(Rule::ProxyGroupWithinPod, group) {
        return Some(Rule::ProxyGroupWithinPod.reason());
    }
    None
}

/// The address and port lists.
#[inline(always)]
fn to_remote<R: Rules, T: Trace>(
    pod: &PodPolicy,
    rules: &R,
    destination: &Address,
    port: Port,
    trace: &mut T,
) -> Reason {
    let v4 = destination.is_v4();
    if trace.looked_at(Rule::NoAddressOfFamily, !reaches(pod, destination)) {
        return Rule::NoAddressOfFamily.reason();
    }
    if trace.looked_at(Rule::Ipv6NotCaptured, !v4 && !has(pod, flag::CAPTURES_V6)) {
        return Rule::Ipv6NotCaptured.reason();
    }
    let list = if v4 { RangeList::ExcludedV4 } else { RangeList::ExcludedV6 };
    let excluded = has(pod, flag::EXCLUDES_RANGES) && rules.range_listed(list, destination);
    if trace.looked_at(Rule::ExcludedRange, excluded) {
        return Rule::ExcludedRange.reason();
    }
    let included =
        has(pod, flag::INCLUDES_OUTBOUND_PORTS) && rules.port_listed(PortList::IncludedOutbound, port);
    if trace.looked_at(Rule::IncludedPort, included) {
        return Rule::IncludedPort.reason();
    }
    if trace.looked_at(Rule::AllOutbound, has(pod, flag::OUTBOUND_ALL)) {
        return Rule::AllOutbound.reason();
    }
    let list = if v4 { RangeList::IncludedV4 } else { RangeList::IncludedV6 };
    if trace.looked_at(Rule::IncludedRange, rules.range_listed(list, destination)) {
        return Rule::IncludedRange.reason();
    }
    trace.looked_at(Rule::NotIncluded, true);
    Rule::NotIncluded.reason()
}

/// The verdict on a TCP connection that arrives in the pod's netns; `trace` hears of each rule.
#[inline(always)]
pub fn trace_inbound<R: Rules, T: Trace>(
    pod: &PodPolicy,
    rules: &R,
    connection: &Inbound,
    trace: &mut T,
) -> Reason {
    // The ingress interface does not tell: the kernel reports the device that owns the address.
    let within_pod = connection.local.is_loopback()
        || connection.remote.is_loopback()
        || connection.remote.is_passthrough()
        || rules.own_address(&connection.remote);
    if trace.looked_at(Rule::WithinPod, within_pod) {
        return Rule::WithinPod.reason();
    }
    if has(pod, flag::AMBIENT) {
        return ambient::inbound(pod, connection, trace);
    }
    let handed_on = matches!(connection.sender, Sender::Proxy);
    if has(pod, flag::TPROXY) && trace.looked_at(Rule::HandedOn, handed_on) {
        return Rule::HandedOn.reason();
    }
    let left_alone = !connection.local.is_v4() && !has(pod, flag::CAPTURES_V6);
    if trace.looked_at(Rule::Ipv6NotCapturedInbound, left_alone) {
        return Rule::Ipv6NotCapturedInbound.reason();
    }
    let rerouted =
        has(pod, flag::REROUTES_INTERFACES) && rules.interface_is(connection.interface, kind::REROUTED);
    let captured = rerouted && is_included_address(pod, rules, &connection.local);
    if trace.looked_at(Rule::ReroutedInterface, captured) {
        return Rule::ReroutedInterface.reason();
    }
    if trace.looked_at(Rule::ReroutedNotIncluded, rerouted) {
        return Rule::ReroutedNotIncluded.reason();
    }
    let excluded =
        has(pod, flag::EXCLUDES_INTERFACES) && rules.interface_is(connection.interface, kind::EXCLUDED);
    if trace.looked_at(Rule::ExcludedInterfaceInbound, excluded) {
        return Rule::ExcludedInterfaceInbound.reason();
    }
    let port = connection.port;
    let tunnel = port.get() == pod.tunnel_port.get() && !has(pod, flag::TPROXY);
    if trace.looked_at(Rule::TunnelPort, tunnel) {
        return Rule::TunnelPort.reason();
    }
    let all = has(pod, flag::INBOUND_ALL);
    let excluded = all && rules.port_listed(PortList::ExcludedInbound, port);
    if trace.looked_at(Rule::ExcludedInboundPort, excluded) {
        return Rule::ExcludedInboundPort.reason();
    }
    if trace.looked_at(Rule::AllInbound, all) {
        return Rule::AllInbound.reason();
    }
    if trace.looked_at(Rule::IncludedInboundPort, rules.port_listed(PortList::IncludedInbound, port)) {
        return Rule::IncludedInboundPort.reason();
    }
    trace.looked_at(Rule::NotIncludedInbound, true);
    Rule::NotIncludedInbound.reason()
}

/// Whether the lists of inbound ports have this one captured.
#[inline(always)]
fn captures_inbound<R: Rules>(pod: &PodPolicy, rules: &R, port: Port) -> bool {
    if has(pod, flag::INBOUND_ALL) {
        !rules.port_listed(PortList::ExcludedInbound, port)
    } else {
        rules.port_listed(PortList::IncludedInbound, port)
    }
}

/// Of what virtual machines dial the address alone counts: neither excluded ranges nor any list of ports, which
/// istio-init has for the pod's own processes.
#[inline(always)]
fn is_included_address<R: Rules>(pod: &PodPolicy, rules: &R, address: &Address) -> bool {
    let list = if address.is_v4() { RangeList::IncludedV4 } else { RangeList::IncludedV6 };
    has(pod, flag::OUTBOUND_ALL) || rules.range_listed(list, address)
}

#[inline(always)]
const fn has(pod: &PodPolicy, bit: u32) -> bool {
    pod.flags & bit != 0
}

#[cfg(test)]
mod tests;
