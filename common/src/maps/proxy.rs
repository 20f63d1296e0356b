//! Who the proxy is: which listeners tell that it is there, and which of a pod's containers is its own, where that
//! counts ([`flag::BY_CONTAINER`]).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{PodPolicy, flag};
use crate::address::{Address, Port};

impl PodPolicy {
    /// Whether the proxy listens on this port, and nobody else should: who does so with the proxy's ids is
    /// the proxy's container ([`flag::BY_CONTAINER`]).
    ///
    /// Among them are those that an Istio proxy has before it knows anything: 15020 (pilot-agent's status) and
    /// 15000 (Envoy's admin interface). To get its first configuration it has to be the proxy already.
    #[inline(always)]
    pub const fn names_the_proxy(&self, port: Port) -> bool {
        let dns = self.flags & flag::DNS_CAPTURE != 0 && port.get() == self.dns_port.get();
        port.get() == self.outbound_port.get()
            || port.get() == self.inbound_port.get()
            || dns
            || matches!(port.get(), 15000 | 15020 | 15021 | 15090)
    }
}

impl PodPolicy {
    /// Whether a listener on this port, bound to this address, tells that the proxy has come: from then on nothing
    /// of the pod goes past it ([`flag::DIRECT_BEFORE_PROXY`]).
    ///
    /// Whose it is does not matter: connections are redirected to whoever listens there. Of listeners on localhost
    /// istio-validation and `veer check` have some, for a moment and before any proxy; Envoy's are on no address,
    /// where inbound connections reach them, too.
    #[inline(always)]
    pub const fn tells_of_the_proxy(&self, port: Port, bound: &Address) -> bool {
        self.redirects_to(port) && !bound.is_loopback()
    }

    /// Whether TCP that is no DNS is redirected to this port.
    #[inline(always)]
    pub const fn redirects_to(&self, port: Port) -> bool {
        port.get() == self.outbound_port.get() || port.get() == self.inbound_port.get()
    }
}

impl PodPolicy {
    /// Whether the proxy dials its app from the address of its own client, by sockets with a mark: ztunnel, and with TPROXY the
    /// sidecar.
    #[inline(always)]
    pub const fn shows_clients(&self) -> bool {
        self.flags & (flag::AMBIENT | flag::TPROXY) != 0
    }

    /// Whether the proxy dials its app from ::6, as one does that serves IPv6 and does not show the client's address.
    #[inline(always)]
    pub const fn needs_passthrough(&self) -> bool {
        self.flags & (flag::CAPTURES_V6 | flag::AMBIENT) == flag::CAPTURES_V6
    }
}

/// Which of the pod's containers is the proxy's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ProxyContainer {
    /// The id of its cgroup (v2), which the kernel gives to no other again.
    pub cgroup: u64,
    /// How many of its sockets listen on the proxy's ports: as long as one does, no other container takes its
    /// place. Those that were adopted are not counted.
    pub listening: u64,
}
