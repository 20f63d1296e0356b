//! Why a connection went where it went: one name for every outcome.
//!
//! The names are a contract: `veer pods`, `veer monitor`, the metrics and the tests use them.

/// Every outcome of the verdict. The number is the index of the pod's counter and goes into events.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Reason {
    /// Outbound: the port is in `excludeOutboundPorts`, which binds the proxy, too (O5, O11).
    ExcludedPort = 0,
    /// Outbound: bound to 127.0.0.6 or ::6, so it is the proxy handing a request to its app (O8).
    PassthroughSource = 1,
    /// Outbound: the proxy dials an address of its own pod, so the request is for this pod (O6, O7).
    ProxyToOwnAddress = 2,
    /// Outbound: the app talks to its own pod or over loopback (O2, O3).
    AppToOwnAddress = 3,
    /// Outbound: the proxy's own connection (O9, O10, O11).
    Proxy = 4,
    /// Outbound: by group the proxy's own connection (O12).
    ProxyGroup = 5,
    /// Outbound: 127.0.0.1 or ::1 is never captured (O3, O15).
    Localhost = 6,
    /// Outbound: the address is in `excludeOutboundIPRanges` (O5).
    ExcludedRange = 7,
    /// Outbound: the port is in `includeOutboundPorts`.
    IncludedPort = 8,
    /// Outbound: the address is in `includeOutboundIPRanges` (O1, O4).
    IncludedRange = 9,
    /// Outbound: everything that nothing above excluded (O1, O4, O14).
    AllOutbound = 10,
    /// Outbound: the pod includes ranges or ports, and this is in none.
    NotIncluded = 11,
    /// Outbound: the pod has no address of this family, so the kernel refuses as it would without us.
    NoAddressOfFamily = 12,
    /// Outbound: the kernel had no memory for what the connection's record needs; refused.
    NoMemory = 13,
    /// Outbound: the pod's proxy serves IPv4 alone (no `ISTIO_DUAL_STACK`), so IPv6 is left alone.
    Ipv6NotCaptured = 14,
    /// Inbound: all ports are captured (I1).
    AllInbound = 15,
    /// Inbound: the port is in `includeInboundPorts`.
    IncludedInboundPort = 16,
    /// Inbound: the tunnel port is the proxy's own business (I2).
    TunnelPort = 17,
    /// Inbound: the port is in `excludeInboundPorts` or one of the proxy's own (I2).
    ExcludedInboundPort = 18,
    /// Inbound: the pod includes ports, and this is not one of them.
    NotIncludedInbound = 19,
    /// Inbound: captured, but nobody listens on the proxy's port; refused rather than let through.
    NoListener = 20,
    /// Inbound: from within the pod, so the outbound verdict has decided already.
    WithinPod = 21,
    /// Inbound: not TCP (I3).
    NotTcp = 22,
    /// Inbound: the pod's proxy serves IPv4 alone (no `ISTIO_DUAL_STACK`), so IPv6 is left alone.
    Ipv6NotCapturedInbound = 23,
    /// Outbound: too many connections of the pod wait for a proxy that does not accept them; refused.
    ProxyBacklog = 24,
    /// Outbound: the node's owner groups leave the group of the socket's creator alone.
    OwnerGroup = 25,
    /// Outbound: DNS, TCP or UDP, of a pod that captures it.
    Dns = 26,
    /// Outbound: UDP that is no DNS of a pod that captures it.
    NotDns = 27,
    /// Outbound: it leaves by an interface in `excludeInterfaces`.
    ExcludedInterface = 28,
    /// Inbound: it arrived on an interface in `excludeInterfaces` (I4).
    ExcludedInterfaceInbound = 29,
    /// Inbound: from a virtual machine, so outbound to the proxy (I5).
    ReroutedInterface = 30,
    /// Inbound: from a virtual machine, to an address that is not captured.
    ReroutedNotIncluded = 31,
    /// Outbound: the pod's proxy has not listened yet, on a node that lets such connections go past the mesh.
    BeforeProxy = 32,
    /// Outbound: by the mark of its socket the proxy's own connection, in a pod of ambient mode.
    ProxyMark = 33,
    /// Inbound: ztunnel hands it to its app, from the address of its own client.
    HandedOn = 34,
    /// Inbound: from the node itself, in a pod of ambient mode: the kubelet's probes.
    FromNode = 35,
}

/// What a verdict does with a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Action {
    /// It goes where it was dialled.
    Direct = 0,
    /// It goes to the proxy's outbound port.
    ToOutbound = 1,
    /// It goes to the proxy's inbound port.
    ToInbound = 2,
    /// It is refused.
    Drop = 3,
    /// It goes to the proxy's DNS port.
    ToDns = 4,
}

/// Something that went wrong in the datapath. Counted for each pod behind the reasons.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Fault {
    /// The hand-off map refused an entry: the proxy will not learn the original destination.
    HandOff = 48,
    /// A listener of the proxy found no free slot or was refused by the kernel.
    ListenerNotRegistered = 49,
    /// The pod's address could not be made the source: the proxy sees 127.0.0.1 as the client.
    SourceNotBound = 50,
    /// A listener was there and the kernel did not take it for an inbound connection.
    NotAssigned = 51,
    /// The ring buffer was full: an event is missing in `veer monitor`, the counters are right.
    EventLost = 52,
    /// Somebody with the proxy's ids, in another container than the proxy's, was kept from listening or found
    /// to listen on one of the proxy's ports; only where the container says who the proxy is.
    ForeignListener = 53,
    /// What ztunnel hands to its app could not be marked, so that the app's answers would not have come back: refused.
    ReplyPath = 54,
}

/// Number of counters that each pod has: reasons from 0, faults from 48.
pub const COUNTERS: usize = 64;
/// The one counter that goes down, too: redirected connections that have not reached the proxy yet. A
/// signed number; an enrolment that begins while some are on their way takes it below zero for a moment.
pub const HAND_OFFS_NOW: usize = COUNTERS - 1;
/// No counter: when a socket of the proxy's last began to listen on its outbound or inbound port, in nanoseconds of
/// CLOCK_MONOTONIC; 0 if none has since the pod was enrolled. One that is older is not noted.
pub const PROXY_BEGAN: usize = COUNTERS - 2;
/// No counter: when one such socket last ceased to listen, likewise.
pub const PROXY_CEASED: usize = COUNTERS - 3;
/// No counter: when the agent was last told of either, likewise.
pub const PROXY_TOLD: usize = COUNTERS - 4;
/// What is no count among the counters.
pub const NO_COUNTS: [usize; 4] = [HAND_OFFS_NOW, PROXY_BEGAN, PROXY_CEASED, PROXY_TOLD];

impl Reason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 36] = [
        Self::ExcludedPort,
        Self::PassthroughSource,
        Self::ProxyToOwnAddress,
        Self::AppToOwnAddress,
        Self::Proxy,
        Self::ProxyGroup,
        Self::Localhost,
        Self::ExcludedRange,
        Self::IncludedPort,
        Self::IncludedRange,
        Self::AllOutbound,
        Self::NotIncluded,
        Self::NoAddressOfFamily,
        Self::NoMemory,
        Self::Ipv6NotCaptured,
        Self::AllInbound,
        Self::IncludedInboundPort,
        Self::TunnelPort,
        Self::ExcludedInboundPort,
        Self::NotIncludedInbound,
        Self::NoListener,
        Self::WithinPod,
        Self::NotTcp,
        Self::Ipv6NotCapturedInbound,
        Self::ProxyBacklog,
        Self::OwnerGroup,
        Self::Dns,
        Self::NotDns,
        Self::ExcludedInterface,
        Self::ExcludedInterfaceInbound,
        Self::ReroutedInterface,
        Self::ReroutedNotIncluded,
        Self::BeforeProxy,
        Self::ProxyMark,
        Self::HandedOn,
        Self::FromNode,
    ];

    /// The reason with this number, as events and counters carry it.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u32 == number)
    }

    /// What is done with a connection for this reason: each has exactly one action.
    #[inline(always)]
    pub const fn action(self) -> Action {
        match self {
            Self::IncludedPort | Self::IncludedRange | Self::AllOutbound | Self::ReroutedInterface => {
                Action::ToOutbound
            }
            Self::ProxyToOwnAddress | Self::AllInbound | Self::IncludedInboundPort => Action::ToInbound,
            Self::Dns => Action::ToDns,
            Self::NoMemory | Self::NoListener | Self::ProxyBacklog => Action::Drop,
            Self::ExcludedPort
            | Self::BeforeProxy
            | Self::ProxyMark
            | Self::HandedOn
            | Self::FromNode
            | Self::ExcludedInterface
            | Self::ExcludedInterfaceInbound
            | Self::ReroutedNotIncluded
            | Self::PassthroughSource
            | Self::AppToOwnAddress
            | Self::Proxy
            | Self::ProxyGroup
            | Self::OwnerGroup
            | Self::Localhost
            | Self::ExcludedRange
            | Self::NotIncluded
            | Self::NoAddressOfFamily
            | Self::Ipv6NotCaptured
            | Self::TunnelPort
            | Self::ExcludedInboundPort
            | Self::NotIncludedInbound
            | Self::WithinPod
            | Self::NotTcp
            | Self::NotDns
            | Self::Ipv6NotCapturedInbound => Action::Direct,
        }
    }

    /// Whether the connection came from outside of the pod.
    pub const fn is_inbound(self) -> bool {
        matches!(
            self,
            Self::AllInbound
                | Self::IncludedInboundPort
                | Self::TunnelPort
                | Self::ExcludedInboundPort
                | Self::NotIncludedInbound
                | Self::NoListener
                | Self::WithinPod
                | Self::NotTcp
                | Self::Ipv6NotCapturedInbound
                | Self::ExcludedInterfaceInbound
                | Self::ReroutedInterface
                | Self::ReroutedNotIncluded
                | Self::HandedOn
                | Self::FromNode
        )
    }

    /// The name that commands, logs and metrics show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ExcludedPort => "excluded-port",
            Self::PassthroughSource => "passthrough-source",
            Self::ProxyToOwnAddress => "proxy-to-own-address",
            Self::AppToOwnAddress => "app-to-own-address",
            Self::Proxy => "proxy",
            Self::ProxyGroup => "proxy-group",
            Self::OwnerGroup => "owner-group",
            Self::Dns => "dns",
            Self::NotDns => "not-dns",
            Self::Localhost => "localhost",
            Self::ExcludedRange => "excluded-range",
            Self::IncludedPort => "included-port",
            Self::IncludedRange => "included-range",
            Self::AllOutbound => "all-outbound",
            Self::NotIncluded => "not-included",
            Self::NoAddressOfFamily => "no-address-of-family",
            Self::NoMemory => "no-memory",
            Self::ProxyBacklog => "proxy-backlog",
            Self::Ipv6NotCaptured => "ipv6-not-captured",
            Self::AllInbound => "all-inbound",
            Self::IncludedInboundPort => "included-inbound-port",
            Self::TunnelPort => "tunnel-port",
            Self::ExcludedInboundPort => "excluded-inbound-port",
            Self::NotIncludedInbound => "not-included-inbound",
            Self::NoListener => "no-listener",
            Self::WithinPod => "within-pod",
            Self::NotTcp => "not-tcp",
            Self::Ipv6NotCapturedInbound => "ipv6-not-captured-inbound",
            Self::ExcludedInterface => "excluded-interface",
            Self::ExcludedInterfaceInbound => "excluded-interface-inbound",
            Self::ReroutedInterface => "rerouted-interface",
            Self::ReroutedNotIncluded => "rerouted-not-included",
            Self::BeforeProxy => "before-proxy",
            Self::ProxyMark => "proxy-mark",
            Self::HandedOn => "handed-on",
            Self::FromNode => "from-node",
        }
    }
}

impl Action {
    /// The name that commands, logs and metrics show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::ToOutbound => "to-outbound",
            Self::ToInbound => "to-inbound",
            Self::Drop => "drop",
            Self::ToDns => "to-dns",
        }
    }
}

impl Fault {
    /// All faults, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::HandOff,
        Self::ListenerNotRegistered,
        Self::SourceNotBound,
        Self::NotAssigned,
        Self::EventLost,
        Self::ForeignListener,
        Self::ReplyPath,
    ];

    /// The name that commands, logs and metrics show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HandOff => "hand-off",
            Self::ListenerNotRegistered => "listener-not-registered",
            Self::SourceNotBound => "source-not-bound",
            Self::NotAssigned => "not-assigned",
            Self::EventLost => "event-lost",
            Self::ForeignListener => "foreign-listener",
            Self::ReplyPath => "reply-path",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_below_the_faults() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert_eq!(Reason::from_number(reason as u32), Some(reason));
        }
        assert!(Reason::ALL.len() <= Fault::HandOff as usize);
        assert!(Fault::ALL.iter().all(|fault| NO_COUNTS.iter().all(|other| (*fault as usize) < *other)));
        assert_eq!(Reason::from_number(u32::MAX), None);
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        names.extend(Fault::ALL.iter().map(|fault| fault.name()));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
