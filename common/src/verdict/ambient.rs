//! The verdict on pods of Istio's ambient mode: what its in-pod rules do (istio/istio, cni/pkg/iptables), in their order.
//!
//! ztunnel is a process of the node with sockets inside of the pod's netns. It is known by their mark, and by no id.
//! None of a sidecar's annotations counts. Departures from Istio's rules: the node's probes are known by their
//! address, where those rules have them rewritten to 169.254.7.127; and who has [`REPLY`] as its mark is ztunnel for
//! DNS, too.

use super::{DNS, Inbound, Outbound, Rules, Sender, has, reaches, stays_in_pod};
use crate::maps::{PodPolicy, flag};
use crate::reason::Reason;
use crate::rule::{Rule, Trace};

/// Mark of all sockets of ztunnel's (its `PACKET_MARK`; Istio's `InpodMark`), and of those by which the sidecar of a TPROXY pod
/// hands connections to its app (the mark of `OriginalSrc` that istiod gives to its listeners, 1337).
pub const ZTUNNEL: u32 = 0x539;
/// Mark of ztunnel's connections to the app, which the app's answers have, too, and by which they find back to `lo`
/// (Istio's `InpodTProxyMark`).
pub const REPLY: u32 = 0x111;
/// The bits of a mark that are Istio's.
pub const MASK: u32 = 0xfff;

/// Whether a socket with this mark is ztunnel's. [`REPLY`] is what the datapath makes of its mark.
#[inline(always)]
pub const fn is_ztunnels(mark: u32) -> bool {
    mark & MASK == ZTUNNEL || mark & MASK == REPLY
}

/// Whether a connection of the proxy's is one to its app, from the address of its own client: then the app's answers go to
/// an address that is elsewhere, and have to be brought back.
#[inline(always)]
pub fn hands_on<R: Rules>(rules: &R, connection: &Outbound) -> bool {
    connection.is_marked
        && !connection.source.is_unspecified()
        && !stays_in_pod(rules, &connection.source)
        && rules.own_address(&connection.effective_destination())
}

/// TCP that a process in the pod's netns opens.
#[inline(always)]
pub(super) fn outbound<R: Rules, T: Trace>(
    pod: &PodPolicy,
    rules: &R,
    connection: &Outbound,
    trace: &mut T,
) -> Reason {
    let destination = connection.effective_destination();
    if trace.looked_at(Rule::ProxyMark, connection.is_marked) {
        return Rule::ProxyMark.reason();
    }
    let stays = stays_in_pod(rules, &destination);
    let can_be_sent = stays || reaches(pod, &destination);
    let is_dns = has(pod, flag::DNS_CAPTURE) && connection.port.get() == DNS;
    // Of the pod's own resolvers, those at 127.0.0.1 and ::1 alone are left alone.
    if trace.looked_at(Rule::Dns, is_dns && !destination.is_localhost() && can_be_sent) {
        return Rule::Dns.reason();
    }
    if trace.looked_at(Rule::OverLoopback, stays) {
        return Rule::OverLoopback.reason();
    }
    if trace.looked_at(Rule::NoAddressOfFamily, !can_be_sent) {
        return Rule::NoAddressOfFamily.reason();
    }
    if trace.looked_at(Rule::AllOutbound, has(pod, flag::OUTBOUND_ALL)) {
        return Rule::AllOutbound.reason();
    }
    // One that is on its way into the mesh or out of it.
    trace.looked_at(Rule::NotIncluded, true);
    Rule::NotIncluded.reason()
}

/// UDP to port 53, of a pod that captures DNS.
#[inline(always)]
pub(super) fn dns<R: Rules, T: Trace>(pod: &PodPolicy, rules: &R, sent: &Outbound, trace: &mut T) -> Reason {
    let destination = sent.effective_destination();
    if trace.looked_at(Rule::ProxyMark, sent.is_marked) {
        return Rule::ProxyMark.reason();
    }
    let stays = stays_in_pod(rules, &destination);
    if trace.looked_at(Rule::Dns, !stays && reaches(pod, &destination)) {
        return Rule::Dns.reason();
    }
    if trace.looked_at(Rule::OverLoopback, stays) {
        return Rule::OverLoopback.reason();
    }
    trace.looked_at(Rule::NoAddressOfFamily, true);
    Rule::NoAddressOfFamily.reason()
}

/// TCP that arrives, and not from within the pod.
#[inline(always)]
pub(super) fn inbound<T: Trace>(pod: &PodPolicy, connection: &Inbound, trace: &mut T) -> Reason {
    if trace.looked_at(Rule::HandedOn, matches!(connection.sender, Sender::Proxy)) {
        return Rule::HandedOn.reason();
    }
    if trace.looked_at(Rule::FromNode, matches!(connection.sender, Sender::Node)) {
        return Rule::FromNode.reason();
    }
    if trace.looked_at(Rule::TunnelPort, connection.port.get() == pod.tunnel_port.get()) {
        return Rule::TunnelPort.reason();
    }
    if trace.looked_at(Rule::AllInbound, has(pod, flag::INBOUND_ALL)) {
        return Rule::AllInbound.reason();
    }
    trace.looked_at(Rule::NotIncludedInbound, true);
    Rule::NotIncludedInbound.reason()
}
