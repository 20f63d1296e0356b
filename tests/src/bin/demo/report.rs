//! What the demo has seen, as data: `--json` prints it, [`render`](crate::render) tells it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;
use veer_tests::credentials::Credentials;
use veer_tests::netfilter::Netfilter;

use crate::node::Node;
use crate::proxy::{Driver, Requests};
use crate::trace::Trace;

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Whether all of it is as it must be.
    pub(crate) all_true: bool,
    /// What is not.
    pub(crate) faults: Vec<String>,
    pub(crate) took_ms: u128,
    pub(crate) agent: AgentFacts,
    pub(crate) proxy: ProxyFacts,
    pub(crate) pods: Vec<PodFacts>,
    pub(crate) journeys: Vec<Journey>,
    pub(crate) processes: Vec<PodProcess>,
    pub(crate) netfilter: BTreeMap<String, Netfilter>,
    pub(crate) tallies: Vec<Tally>,
    /// Where the pods have no sidecars.
    pub(crate) requests: Vec<Requests>,
}

/// Who the pods' proxies are.
#[derive(Debug, Serialize)]
pub(crate) struct ProxyFacts {
    pub(crate) driver: Driver,
    /// The one Envoy of all pods.
    pub(crate) shared: Option<SharedFacts>,
}

/// One Envoy for all pods.
#[derive(Debug, Serialize)]
pub(crate) struct SharedFacts {
    pub(crate) pid: u32,
    pub(crate) ready_after_ms: u128,
}

impl ProxyFacts {
    pub(crate) fn of(node: &Node) -> Self {
        let shared = node.proxy.as_ref().map(|shared| SharedFacts {
            pid: shared.envoy.process().pid(),
            ready_after_ms: shared.took.as_millis(),
        });
        Self { driver: node.driver(), shared }
    }
}

/// The agent.
#[derive(Debug, Serialize)]
pub(crate) struct AgentFacts {
    pub(crate) pid: u32,
    pub(crate) kernel: String,
    pub(crate) ready_after_ms: u128,
    /// With the demo's pods, after the demo's traffic.
    pub(crate) resident_kb: u64,
}

/// A pod.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PodFacts {
    pub(crate) name: String,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
    /// Each plugin of the chain, as a whole process.
    pub(crate) attached_us: Vec<(String, u128)>,
    /// Of its own Envoy, where it has one.
    pub(crate) envoy_ready_after_ms: Option<u128>,
}

/// Where a request comes from and goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Route {
    PodToPod,
    OutsideToPod,
    PodToOutside,
}

impl Route {
    pub(crate) const ALL: [Self; 3] = [Self::PodToPod, Self::OutsideToPod, Self::PodToOutside];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::PodToPod => "pod to pod",
            Self::OutsideToPod => "outside to pod",
            Self::PodToOutside => "pod to outside",
        }
    }

    /// Who calls.
    pub(crate) const fn client(self) -> &'static str {
        match self {
            Self::PodToPod | Self::PodToOutside => "cart",
            Self::OutsideToPod => "outside",
        }
    }

    /// Who is called.
    pub(crate) const fn server(self) -> &'static str {
        match self {
            Self::PodToPod | Self::OutsideToPod => "orders",
            Self::PodToOutside => "outside",
        }
    }

    /// Whether it passes the client's proxy.
    pub(crate) const fn leaves_a_pod(self) -> bool {
        matches!(self, Self::PodToPod | Self::PodToOutside)
    }

    /// Whether it passes the app's proxy.
    pub(crate) const fn enters_a_pod(self) -> bool {
        matches!(self, Self::PodToPod | Self::OutsideToPod)
    }
}

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(crate) enum Family {
    #[serde(rename = "IPv4")]
    V4,
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The requests of a route in a family.
#[derive(Debug, Serialize)]
pub(crate) struct Journey {
    pub(crate) route: Route,
    pub(crate) family: Family,
    pub(crate) requests: usize,
    /// The first of them.
    pub(crate) example: Trace,
    /// What is not as it must be, in any of them.
    pub(crate) faults: Vec<String>,
}

/// A process of a pod.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PodProcess {
    pub(crate) pod: String,
    #[serde(flatten)]
    pub(crate) credentials: Credentials,
}

/// Three counts of the same connections.
#[derive(Debug, Serialize)]
pub(crate) struct Tally {
    pub(crate) pod: String,
    pub(crate) what: String,
    /// As many requests the demo sent; none where Envoy sends several over one connection.
    pub(crate) sent: Option<u64>,
    /// As many verdicts veer counted.
    pub(crate) veer: u64,
    /// As many connections Envoy counted.
    pub(crate) envoy: u64,
}

impl Tally {
    pub(crate) fn adds_up(&self) -> bool {
        self.veer == self.envoy && self.sent.is_none_or(|sent| sent == self.veer)
    }
}
