//! How a pod's traffic is to be captured: everything that was read from the pod, resolved.

use std::collections::BTreeSet;
use std::fmt;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use super::decision::{DEFAULT_PROXY_ID, NodeSettings};
use super::values::{InterfaceName, Port};

/// How a pod's traffic is to be captured. Defaults are applied and every list is whole.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Capture {
    /// The proxy's uid, as [`Self::ids`] counts; 1337 by default.
    pub proxy_uid: u32,
    /// The proxy's gid, as [`Self::ids`] counts; 1337 by default.
    pub proxy_gid: u32,
    /// Where the two ids count.
    pub ids: IdSpace,
    /// How inbound connections reach the proxy.
    pub mode: InterceptionMode,
    /// Which inbound ports are captured.
    pub inbound: InboundPorts,
    /// Which outbound addresses are captured.
    pub outbound: OutboundRanges,
    /// Outbound addresses that are not captured, whatever the other lists say. As written: host bits
    /// are kept and mean nothing.
    pub excluded_ranges: BTreeSet<IpNet>,
    /// Outbound ports that are captured even where [`Self::outbound`] does not hold the address.
    pub included_outbound_ports: BTreeSet<Port>,
    /// Outbound ports that are not captured; they bind the proxy, too.
    pub excluded_outbound_ports: BTreeSet<Port>,
    /// Interfaces whose traffic is left alone, in both directions.
    pub excluded_interfaces: BTreeSet<InterfaceName>,
    /// Interfaces on which arriving TCP counts as outbound: virtual machines inside the pod.
    pub rerouted_interfaces: BTreeSet<InterfaceName>,
    /// DNS goes to the proxy.
    pub dns_capture: bool,
    /// IPv6 is captured in a pod that has IPv4, too.
    pub dual_stack: bool,
    /// Packets that belong to no connection are dropped rather than answered.
    pub drop_invalid: bool,
    /// Node setting: whose outbound connections are captured, by primary gid.
    pub owner_groups: OwnerGroups,
    /// Node setting: the loopback addresses that even the proxy's own connections reach directly.
    pub loopback: Ipv4Net,
    /// Node setting: what makes a process the proxy.
    pub proxy_identity: ProxyIdentity,
    /// Node setting: what becomes of connections before the proxy has listened.
    pub before_proxy: BeforeProxy,
    /// Who drives the proxy.
    #[serde(default)]
    pub driver: Driver,
    /// Whether the pod is wholly in the mesh.
    #[serde(default)]
    pub presence: Presence,
    /// Environment variables of the proxy that were not understood and count as unset.
    #[serde(skip)]
    pub warnings: Vec<EnvironmentWarning>,
}

/// In which user namespace a pod's uids and gids count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum IdSpace {
    /// The node's own: the ids are what the kernel shows.
    Node,
    /// The pod's (`hostUsers: false`): the ids must be translated before they go to the kernel.
    Pod,
}

/// `sidecar.istio.io/interceptionMode`, without NONE, which is no interception at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum InterceptionMode {
    /// What iptables does with REDIRECT.
    Redirect,
    /// As REDIRECT, and the tunnel port is captured, too.
    Tproxy,
}

/// Which inbound ports are captured.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum InboundPorts {
    /// All but these; the proxy's own 15020, 15021 and 15090 are always among them.
    All {
        /// Ports that are not captured.
        excluded: BTreeSet<Port>,
    },
    /// These alone; an exclude list means nothing then.
    Only(BTreeSet<Port>),
}

/// Which outbound addresses are captured.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OutboundRanges {
    /// All.
    All,
    /// Those in these ranges; none at all when there are none. As written: host bits are kept.
    Only(BTreeSet<IpNet>),
}

/// Whose outbound connections are captured: the primary gid of the socket's creator.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OwnerGroups {
    /// All but these.
    AllExcept(BTreeSet<u32>),
    /// These alone.
    Only(BTreeSet<u32>),
}

/// What makes a process the proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ProxyIdentity {
    /// The uid or the primary gid of its sockets' creator, as with istio-init.
    Uid,
    /// These, and that the creator was in the container that listens on the proxy's ports.
    Container,
}

/// What becomes of a pod's connections that would be the proxy's, before it has listened for the first time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum BeforeProxy {
    /// They are refused, as with istio-cni.
    Refuse,
    /// They go where they are dialled: past the mesh, without its encryption and its policies.
    Direct,
}

/// How far a pod is in the mesh, if it came or goes while it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// It is captured as it says.
    #[default]
    Full,
    /// Nothing is captured, until its proxy listens.
    Entering,
    /// Nothing is captured any more, and its proxy ceases to listen.
    Leaving,
}

impl Capture {
    /// The same for a pod that is on its way: nothing is captured, and the proxy's listeners are known as such. What
    /// decides which backend the pod has stays.
    #[must_use]
    pub fn asleep(&self, presence: Presence) -> Self {
        Self {
            presence,
            inbound: InboundPorts::Only(BTreeSet::new()),
            outbound: OutboundRanges::Only(BTreeSet::new()),
            included_outbound_ports: BTreeSet::new(),
            dns_capture: false,
            ..self.clone()
        }
    }

    /// Of a pod that is not in the mesh any more.
    pub fn of_nothing(driver: Driver, node: &NodeSettings) -> Self {
        Self {
            proxy_uid: DEFAULT_PROXY_ID,
            proxy_gid: DEFAULT_PROXY_ID,
            ids: IdSpace::Node,
            mode: InterceptionMode::Redirect,
            inbound: InboundPorts::Only(BTreeSet::new()),
            outbound: OutboundRanges::Only(BTreeSet::new()),
            excluded_ranges: BTreeSet::new(),
            included_outbound_ports: BTreeSet::new(),
            excluded_outbound_ports: BTreeSet::new(),
            excluded_interfaces: BTreeSet::new(),
            rerouted_interfaces: BTreeSet::new(),
            dns_capture: false,
            dual_stack: false,
            drop_invalid: false,
            owner_groups: node.owner_groups.clone(),
            loopback: node.loopback,
            proxy_identity: node.proxy_identity,
            before_proxy: BeforeProxy::Refuse,
            driver,
            presence: Presence::Leaving,
            warnings: Vec::new(),
        }
    }
}

/// Who drives a pod's proxy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// The pod itself: it has a container `istio-proxy`.
    #[default]
    Sidecar,
    /// The agent: the node's proxy has listeners inside of the pod's netns.
    Node,
    /// Istio: the node's ztunnel has listeners inside of the pod's netns (ambient mode).
    Ztunnel,
}

impl Driver {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sidecar, Self::Node, Self::Ztunnel];

    /// The label's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Node => "node",
            Self::Ztunnel => "ztunnel",
        }
    }
}

impl BeforeProxy {
    /// The flag's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Direct => "direct",
        }
    }
}

impl ProxyIdentity {
    /// The flag's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uid => "uid",
            Self::Container => "container",
        }
    }
}

/// A boolean environment variable of the proxy that is none. It counts as false, as with Istio.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EnvironmentWarning {
    /// The variable's name.
    pub name: &'static str,
    /// What it holds.
    pub value: String,
}

impl InterceptionMode {
    /// The annotation's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redirect => "REDIRECT",
            Self::Tproxy => "TPROXY",
        }
    }
}

impl OutboundRanges {
    /// Whether a range begins in loopback, judged as Istio does: by the address that was written, so
    /// `127.0.0.1/4` does and `0.0.0.0/0`, which holds all of loopback, does not.
    pub fn begin_in_loopback(&self) -> bool {
        match self {
            Self::All => false,
            Self::Only(ranges) => ranges.iter().any(|range| range.addr().to_canonical().is_loopback()),
        }
    }
}

impl fmt::Display for EnvironmentWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = super::quoted::Quoted(&self.value);
        write!(f, "environment variable {} of the proxy: {value} is not a boolean, taken as false", self.name)
    }
}
