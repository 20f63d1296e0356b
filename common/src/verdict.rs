//! Where a connection goes: the decision table of istio-init as one pure function for each direction.
//!
//! The order of the tests is the order of istio-init's rules, because the order decides ties: an
//! excluded port binds the proxy, too; the proxy's identity comes before every address list; exclusion
//! beats inclusion whatever the prefix lengths. Runs in the kernel (through maps) and in tests (through
//! the parsed lists): whoever asks brings the lists as [`Rules`].

use crate::address::{Address, Port};
use crate::maps::{PodPolicy, PortList, RangeList, flag};
use crate::reason::Reason;

/// The lists of one pod.
pub trait Rules {
    /// Whether the port is in the list.
    fn port_listed(&self, list: PortList, port: Port) -> bool;
    /// Whether a range of the list holds the address.
    fn range_listed(&self, list: RangeList, address: &Address) -> bool;
    /// Whether the pod's netns has this address: what iptables sees as `-o lo`, besides loopback.
    fn own_address(&self, address: &Address) -> bool;
}

/// Facts of a connection that a process in the pod opens.
#[derive(Clone, Copy, Debug)]
pub struct Outbound {
    /// Uid of whoever created the socket, as the initial user namespace counts.
    pub uid: u32,
    /// Primary gid of whoever created the socket, likewise.
    pub gid: u32,
    /// The address the socket is bound to, [`Address::UNSPECIFIED`] or `0.0.0.0` if to none.
    pub source: Address,
    /// The dialled address.
    pub destination: Address,
    /// The dialled port.
    pub port: Port,
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
}

impl Outbound {
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
    let destination = connection.effective_destination();
    let port = connection.port;

    if has(pod, flag::EXCLUDES_OUTBOUND_PORTS) && rules.port_listed(PortList::ExcludedOutbound, port) {
        return Reason::ExcludedPort;
    }

    let stays_in_pod = destination.is_loopback() || rules.own_address(&destination);
    if stays_in_pod {
        if let Some(reason) = within_pod(pod, connection, &destination) {
            return reason;
        }
    } else if connection.uid == pod.proxy_uid {
        return Reason::Proxy;
    } else if connection.gid == pod.proxy_gid {
        return Reason::ProxyGroup;
    }

    if destination.is_localhost() {
        return Reason::Localhost;
    }
    to_remote(pod, rules, &destination, port)
}

/// The rules on what does not leave the pod (`-o lo`); `None` where a later rule decides.
#[inline(always)]
fn within_pod(pod: &PodPolicy, connection: &Outbound, destination: &Address) -> Option<Reason> {
    if connection.source.is_passthrough() {
        return Some(Reason::PassthroughSource);
    }
    let to_own_service = !destination.is_localhost()
        && connection.port.get() != pod.tunnel_port.get()
        && (destination.is_v4() || has(pod, flag::CAPTURES_V6));

    // With TPROXY the proxy runs as uid 0, so its gid says who it is.
    let proxy_by_group = has(pod, flag::TPROXY) && connection.gid == pod.proxy_gid;
    if connection.uid == pod.proxy_uid || proxy_by_group {
        return Some(if to_own_service { Reason::ProxyToOwnAddress } else { Reason::Proxy });
    }
    if !has(pod, flag::INCLUDES_LOOPBACK) {
        return Some(Reason::AppToOwnAddress);
    }
    // Only reached when a loopback range is included: istio-init leaves out its "app over lo" rule
    // then, and its rules on the proxy's group come to bear.
    if connection.gid == pod.proxy_gid {
        return Some(if to_own_service { Reason::ProxyToOwnAddress } else { Reason::ProxyGroup });
    }
    None
}

/// The address and port lists.
#[inline(always)]
fn to_remote<R: Rules>(pod: &PodPolicy, rules: &R, destination: &Address, port: Port) -> Reason {
    let v4 = destination.is_v4();
    if !has(pod, if v4 { flag::HAS_V4 } else { flag::HAS_V6 }) && !destination.is_loopback() {
        return Reason::NoAddressOfFamily;
    }
    if !v4 && !has(pod, flag::CAPTURES_V6) {
        return Reason::Ipv6NotCaptured;
    }
    if has(pod, flag::EXCLUDES_RANGES) {
        let list = if v4 { RangeList::ExcludedV4 } else { RangeList::ExcludedV6 };
        if rules.range_listed(list, destination) {
            return Reason::ExcludedRange;
        }
    }
    if has(pod, flag::INCLUDES_OUTBOUND_PORTS) && rules.port_listed(PortList::IncludedOutbound, port) {
        return Reason::IncludedPort;
    }
    if has(pod, flag::OUTBOUND_ALL) {
        return Reason::AllOutbound;
    }
    let list = if v4 { RangeList::IncludedV4 } else { RangeList::IncludedV6 };
    if rules.range_listed(list, destination) { Reason::IncludedRange } else { Reason::NotIncluded }
}

/// The verdict on a TCP connection that arrives in the pod's netns.
#[inline(always)]
pub fn inbound<R: Rules>(pod: &PodPolicy, rules: &R, connection: &Inbound) -> Reason {
    // The ingress interface does not tell: the kernel reports the device that owns the address.
    if connection.local.is_loopback()
        || connection.remote.is_loopback()
        || connection.remote.is_passthrough()
        || rules.own_address(&connection.remote)
    {
        return Reason::WithinPod;
    }
    if !connection.local.is_v4() && !has(pod, flag::CAPTURES_V6) {
        return Reason::Ipv6NotCapturedInbound;
    }
    let port = connection.port;
    if port.get() == pod.tunnel_port.get() && !has(pod, flag::TPROXY) {
        return Reason::TunnelPort;
    }
    if has(pod, flag::INBOUND_ALL) {
        if rules.port_listed(PortList::ExcludedInbound, port) {
            Reason::ExcludedInboundPort
        } else {
            Reason::AllInbound
        }
    } else if rules.port_listed(PortList::IncludedInbound, port) {
        Reason::IncludedInboundPort
    } else {
        Reason::NotIncludedInbound
    }
}

#[inline(always)]
const fn has(pod: &PodPolicy, bit: u32) -> bool {
    pod.flags & bit != 0
}

#[cfg(test)]
mod tests;
