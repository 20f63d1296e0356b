//! The tests of the verdict, each with a name: what `veer explain` lists, in the order of the looking.
//!
//! Owns: a rule's name, its sentence, and the reason that it gives when it matches. Never does: test
//! anything; [`verdict`](crate::verdict) does. Used by: the verdict, which reports each rule that it looks at
//! to a [`Trace`]; `veer explain` and the tests, which listen.
//!
//! A new rule is a variant here with its line in [`Rule::ALL`], [`Rule::reason`], [`Rule::name`] and
//! [`Rule::sentence`], and one `if` in the verdict.

use crate::reason::Reason;

/// One test of the verdict. Each gives exactly one reason if it matches; a reason may come from several.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Rule {
    /// UDP: not to port 53, or the pod does not capture DNS.
    NotDns,
    /// Outbound: it leaves by an interface in `excludeInterfaces`.
    ExcludedInterface,
    /// Outbound: the port is in `excludeOutboundPorts`.
    ExcludedPort,
    /// Outbound, within the pod: bound to 127.0.0.6 or ::6.
    PassthroughSource,
    /// Outbound, ambient, and with TPROXY within the pod: the socket has the mark of the proxy's.
    ProxyMark,
    /// Outbound, within the pod: the proxy by its uid (with TPROXY also by its gid), to an own service.
    ProxyToOwnAddress,
    /// Outbound, within the pod: the proxy, to what is no service of the pod's.
    ProxyWithinPod,
    /// Outbound, within the pod: anybody else, and no loopback range is included.
    AppToOwnAddress,
    /// Outbound, within the pod, with a loopback range included: the proxy by its gid, to an own service.
    ProxyGroupToOwnAddress,
    /// Outbound, within the pod, with a loopback range included: the proxy by its gid, to anything else.
    ProxyGroupWithinPod,
    /// Outbound, out of the pod: the proxy by its uid.
    Proxy,
    /// Outbound, out of the pod: the proxy by its gid.
    ProxyGroup,
    /// Outbound: the node's owner groups do not have the creator's group captured.
    OwnerGroup,
    /// Outbound: the pod's proxy has not listened yet, and until it does the node lets connections go direct.
    BeforeProxy,
    /// Outbound: to port 53, of a pod that captures DNS, by a family that it captures.
    Dns,
    /// Outbound: to 127.0.0.1 (or the node's loopback range) or ::1.
    Localhost,
    /// Outbound, ambient: it does not leave the pod.
    OverLoopback,
    /// Outbound: the pod has no address of the destination's family.
    NoAddressOfFamily,
    /// Outbound: IPv6, which the pod's proxy does not serve.
    Ipv6NotCaptured,
    /// Outbound: the address is in `excludeOutboundIPRanges`.
    ExcludedRange,
    /// Outbound: the port is in `includeOutboundPorts`.
    IncludedPort,
    /// Outbound: all addresses are captured.
    AllOutbound,
    /// Outbound: the address is in `includeOutboundIPRanges`.
    IncludedRange,
    /// Outbound: nothing above.
    NotIncluded,
    /// Inbound: one of the ends says that it comes from within the pod.
    WithinPod,
    /// Inbound, ambient: ztunnel hands it to its app, from the address of its client.
    HandedOn,
    /// Inbound, ambient: from an address of the node.
    FromNode,
    /// Inbound: IPv6, which the pod's proxy does not serve.
    Ipv6NotCapturedInbound,
    /// Inbound: on an interface of a virtual machine, to an address that is captured.
    ReroutedInterface,
    /// Inbound: on an interface of a virtual machine, to any other address.
    ReroutedNotIncluded,
    /// Inbound: it arrived on an interface in `excludeInterfaces`.
    ExcludedInterfaceInbound,
    /// Inbound: to the proxy's tunnel port.
    TunnelPort,
    /// Inbound: all ports are captured, but this is in `excludeInboundPorts` or one of the proxy's own.
    ExcludedInboundPort,
    /// Inbound: all ports are captured.
    AllInbound,
    /// Inbound: the port is in `includeInboundPorts`.
    IncludedInboundPort,
    /// Inbound: nothing above.
    NotIncludedInbound,
}

/// Hears of each rule that the verdict looks at, in the order of the looking.
pub trait Trace {
    /// The verdict looked at a rule. Returns `matched`, so that the test and its report are one expression.
    fn looked_at(&mut self, rule: Rule, matched: bool) -> bool;
}

/// Nobody listens: nothing of the trace is left in the eBPF programs.
#[derive(Clone, Copy, Debug)]
pub struct NoTrace;

impl Trace for NoTrace {
    #[inline(always)]
    fn looked_at(&mut self, _rule: Rule, matched: bool) -> bool {
        matched
    }
}

impl Rule {
    /// All rules: first those of outbound, then those of inbound, each in the order of the looking.
    pub const ALL: [Self; 36] = [
        Self::NotDns,
        Self::ExcludedInterface,
        Self::ExcludedPort,
        Self::PassthroughSource,
        Self::ProxyMark,
        Self::ProxyToOwnAddress,
        Self::ProxyWithinPod,
        Self::AppToOwnAddress,
        Self::ProxyGroupToOwnAddress,
        Self::ProxyGroupWithinPod,
        Self::Proxy,
        Self::ProxyGroup,
        Self::OwnerGroup,
        Self::BeforeProxy,
        Self::Dns,
        Self::Localhost,
        Self::OverLoopback,
        Self::NoAddressOfFamily,
        Self::Ipv6NotCaptured,
        Self::ExcludedRange,
        Self::IncludedPort,
        Self::AllOutbound,
        Self::IncludedRange,
        Self::NotIncluded,
        Self::WithinPod,
        Self::HandedOn,
        Self::FromNode,
        Self::Ipv6NotCapturedInbound,
        Self::ReroutedInterface,
        Self::ReroutedNotIncluded,
        Self::ExcludedInterfaceInbound,
        Self::TunnelPort,
        Self::ExcludedInboundPort,
        Self::AllInbound,
        Self::IncludedInboundPort,
        Self::NotIncludedInbound,
    ];

    /// Why a connection goes where it goes if this rule matches.
    #[inline(always)]
    pub const fn reason(self) -> Reason {
        match self {
            Self::NotDns => Reason::NotDns,
            Self::ExcludedInterface => Reason::ExcludedInterface,
            Self::ExcludedPort => Reason::ExcludedPort,
            Self::PassthroughSource => Reason::PassthroughSource,
            Self::ProxyToOwnAddress | Self::ProxyGroupToOwnAddress => Reason::ProxyToOwnAddress,
            Self::ProxyWithinPod | Self::Proxy => Reason::Proxy,
            Self::AppToOwnAddress | Self::OverLoopback => Reason::AppToOwnAddress,
            Self::ProxyMark => Reason::ProxyMark,
            Self::ProxyGroupWithinPod | Self::ProxyGroup => Reason::ProxyGroup,
            Self::OwnerGroup => Reason::OwnerGroup,
            Self::BeforeProxy => Reason::BeforeProxy,
            Self::Dns => Reason::Dns,
            Self::Localhost => Reason::Localhost,
            Self::NoAddressOfFamily => Reason::NoAddressOfFamily,
            Self::Ipv6NotCaptured => Reason::Ipv6NotCaptured,
            Self::ExcludedRange => Reason::ExcludedRange,
            Self::IncludedPort => Reason::IncludedPort,
            Self::AllOutbound => Reason::AllOutbound,
            Self::IncludedRange => Reason::IncludedRange,
            Self::NotIncluded => Reason::NotIncluded,
            Self::WithinPod => Reason::WithinPod,
            Self::HandedOn => Reason::HandedOn,
            Self::FromNode => Reason::FromNode,
            Self::Ipv6NotCapturedInbound => Reason::Ipv6NotCapturedInbound,
            Self::ReroutedInterface => Reason::ReroutedInterface,
            Self::ReroutedNotIncluded => Reason::ReroutedNotIncluded,
            Self::ExcludedInterfaceInbound => Reason::ExcludedInterfaceInbound,
            Self::TunnelPort => Reason::TunnelPort,
            Self::ExcludedInboundPort => Reason::ExcludedInboundPort,
            Self::AllInbound => Reason::AllInbound,
            Self::IncludedInboundPort => Reason::IncludedInboundPort,
            Self::NotIncludedInbound => Reason::NotIncludedInbound,
        }
    }

    /// The name that `veer explain` shows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ProxyWithinPod => "proxy-within-pod",
            Self::ProxyGroupToOwnAddress => "proxy-group-to-own-address",
            Self::ProxyGroupWithinPod => "proxy-group-within-pod",
            Self::OverLoopback => "over-loopback",
            // The only rule of its reason, or the first one.
            Self::NotDns
            | Self::ExcludedInterface
            | Self::ExcludedPort
            | Self::PassthroughSource
            | Self::ProxyToOwnAddress
            | Self::AppToOwnAddress
            | Self::Proxy
            | Self::ProxyGroup
            | Self::ProxyMark
            | Self::OwnerGroup
            | Self::BeforeProxy
            | Self::Dns
            | Self::Localhost
            | Self::NoAddressOfFamily
            | Self::Ipv6NotCaptured
            | Self::ExcludedRange
            | Self::IncludedPort
            | Self::AllOutbound
            | Self::IncludedRange
            | Self::NotIncluded
            | Self::WithinPod
            | Self::HandedOn
            | Self::FromNode
            | Self::Ipv6NotCapturedInbound
            | Self::ReroutedInterface
            | Self::ReroutedNotIncluded
            | Self::ExcludedInterfaceInbound
            | Self::TunnelPort
            | Self::ExcludedInboundPort
            | Self::AllInbound
            | Self::IncludedInboundPort
            | Self::NotIncludedInbound => self.reason().name(),
        }
    }

    /// What the rule asks, as a statement that is true of a connection that it matches.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::NotDns => "UDP, of which DNS alone is captured, where the pod says so",
            Self::ExcludedInterface => "it leaves by an excluded interface, which binds the proxy, too",
            Self::ExcludedPort => "the port is excluded, which binds the proxy, too",
            Self::PassthroughSource => "within the pod, from 127.0.0.6 or ::6: the proxy hands on to its app",
            Self::ProxyToOwnAddress => "within the pod, by the proxy, to a service of the pod's own",
            Self::ProxyWithinPod => "within the pod, by the proxy",
            Self::AppToOwnAddress => "within the pod, and no loopback range is captured",
            Self::ProxyGroupToOwnAddress => {
                "within the pod, by the proxy's group, to a service of the pod's own"
            }
            Self::ProxyGroupWithinPod => "within the pod, by the proxy's group",
            Self::Proxy => "out of the pod, by the proxy",
            Self::ProxyGroup => "out of the pod, by the proxy's group",
            Self::ProxyMark => "by a socket with the mark of ztunnel's, which a TPROXY proxy hands on with",
            Self::OwnerGroup => "by a group that the node's owner groups leave alone",
            Self::BeforeProxy => {
                "before the pod's proxy has listened, when the node lets connections go direct"
            }
            Self::Dns => "to port 53, and the pod captures DNS",
            Self::Localhost => "to 127.0.0.1 or ::1, which is never captured",
            Self::OverLoopback => "it does not leave the pod, which ambient mode does not capture",
            Self::NoAddressOfFamily => "the pod has no address of this family to connect from",
            Self::Ipv6NotCaptured | Self::Ipv6NotCapturedInbound => {
                "IPv6, which is not captured: the pod has IPv4 and its proxy serves that alone"
            }
            Self::ExcludedRange => "the address is in an excluded range",
            Self::IncludedPort => "the port is captured whatever the address",
            Self::AllOutbound => "all addresses are captured",
            Self::IncludedRange => "the address is in a captured range",
            Self::NotIncluded => "neither the address nor the port is captured",
            Self::WithinPod => "from within the pod, which the outbound rules have decided",
            Self::HandedOn => "handed to the app by its proxy, from the address of the proxy's client",
            Self::FromNode => "from the node itself, as the kubelet's probes are",
            Self::ReroutedInterface => "from a virtual machine, to an address that is captured",
            Self::ReroutedNotIncluded => "from a virtual machine, to an address that is not captured",
            Self::ExcludedInterfaceInbound => "it arrived on an excluded interface",
            Self::TunnelPort => "to the proxy's own tunnel port",
            Self::ExcludedInboundPort => "the port is excluded, or one of the proxy's own",
            Self::AllInbound => "all ports are captured",
            Self::IncludedInboundPort => "the port is captured",
            Self::NotIncludedInbound => "the port is not captured",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = Rule::ALL.iter().map(|rule| rule.name()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn outbound_rules_come_before_inbound_ones() {
        assert!(Rule::ALL.iter().is_sorted_by_key(|rule| rule.reason().is_inbound()));
    }
}
