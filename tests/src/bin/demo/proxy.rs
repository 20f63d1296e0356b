//! Who a pod's proxy is, and what it is asked: its sidecar, or the one Envoy of the node.
//!
//! Owns: the difference between the two. All else of the demo is the same for both.

use std::fmt;

use anyhow::{Context, Result};
use serde::Serialize;
use veer_tests::envoy::{self, Direction, Entry};
use veer_tests::{node_proxy, prometheus};

use crate::node::Node;
use crate::pod::{APP_PORT, NAMESPACE, Pod};

/// Who drives the pods' proxies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Driver {
    /// Each pod has an Envoy of its own
    Sidecar,
    /// One Envoy serves both pods, which have no sidecar, and veer tells it of them
    Node,
}

impl Driver {
    /// A pod's proxy in a few words.
    pub(crate) const fn proxy(self) -> &'static str {
        match self {
            Self::Sidecar => "its sidecar",
            Self::Node => "its proxy",
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sidecar => "sidecar",
            Self::Node => "node",
        })
    }
}

/// Connections of a pod, as its proxy has counted them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Connections {
    /// From its app.
    pub(crate) from_app: u64,
    /// On behalf of its app.
    pub(crate) to_world: u64,
    /// From the network.
    pub(crate) from_network: u64,
    /// To its app.
    pub(crate) to_app: u64,
}

/// Requests of a pod in one direction, as the node's Envoy has counted them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Requests {
    pub(crate) pod: String,
    pub(crate) direction: Direction,
    /// As many the demo sent.
    pub(crate) sent: u64,
    /// As many Envoy has counted.
    pub(crate) received: u64,
    pub(crate) answered_2xx: u64,
    pub(crate) answered_5xx: u64,
    /// That the app, or whoever was called, got.
    pub(crate) passed_on: u64,
}

impl Requests {
    pub(crate) const fn adds_up(&self) -> bool {
        self.received == self.sent
            && self.answered_2xx == self.sent
            && self.answered_5xx == 0
            && self.passed_on == self.sent
    }
}

impl Node {
    /// Whose proxies its pods have.
    pub(crate) const fn driver(&self) -> Driver {
        if self.proxy.is_some() { Driver::Node } else { Driver::Sidecar }
    }

    /// The header by which a request is found again in an access log.
    pub(crate) const fn mark(&self) -> &'static str {
        match self.driver() {
            Driver::Sidecar => envoy::MARK,
            Driver::Node => node_proxy::MARK,
        }
    }
}

impl Pod {
    /// The access log's entry of a request, if it is there already.
    pub(crate) fn find_entry(&self, node: &Node, direction: Direction, mark: &str) -> Result<Option<Entry>> {
        match (&self.sidecar, &node.proxy) {
            (Some(own), _) => own.envoy.find_entry(direction, mark),
            (None, Some(shared)) => shared.envoy.find_entry(self.name, direction, mark),
            (None, None) => Ok(None),
        }
    }

    /// What its proxy has counted.
    pub(crate) fn connections(&self, node: &Node) -> Result<Connections> {
        let Some(shared) = &node.proxy else { return of_sidecar(self) };
        let counted = shared.envoy.counted()?;
        let of = |direction: Direction, name| prometheus::count(&counted, name, &self.labels(direction));
        Ok(Connections {
            from_app: of(Direction::Outbound, "envoy_listener_downstream_cx_total"),
            to_world: of(Direction::Outbound, "envoy_cluster_upstream_cx_total"),
            from_network: of(Direction::Inbound, "envoy_listener_downstream_cx_total"),
            to_app: of(Direction::Inbound, "envoy_cluster_upstream_cx_total"),
        })
    }

    /// By which the node's Envoy tells what it counts of it.
    const fn labels(&self, direction: Direction) -> [(&'static str, &'static str); 3] {
        [("veer_namespace", NAMESPACE), ("veer_pod", self.name), ("veer_direction", direction.name())]
    }

    /// The requests that the node's Envoy has counted, where `sent` is what there were.
    pub(crate) fn requests(&self, node: &Node, direction: Direction, sent: u64) -> Result<Requests> {
        let shared = node.proxy.as_ref().context("the pods have sidecars")?;
        let counted = shared.envoy.counted()?;
        let of = |name| prometheus::count(&counted, name, &self.labels(direction));
        let answered = |class| {
            let of_class =
                [self.labels(direction).as_slice(), &[("envoy_response_code_class", class)]].concat();
            prometheus::count(&counted, "envoy_http_downstream_rq_xx", &of_class)
        };
        Ok(Requests {
            pod: self.name.to_owned(),
            direction,
            sent,
            received: of("envoy_http_downstream_rq_total"),
            answered_2xx: answered("2"),
            answered_5xx: answered("5"),
            passed_on: of("envoy_cluster_upstream_rq_total"),
        })
    }
}

fn of_sidecar(pod: &Pod) -> Result<Connections> {
    let stats = envoy::stats(&pod.netns)?;
    let sum = |names: &[String]| names.iter().filter_map(|name| stats.get(name)).sum();
    let listener = |port: u16| format!("listener.0.0.0.0_{port}.downstream_cx_total");
    let cluster = |name: &str| format!("cluster.{name}.upstream_cx_total");
    Ok(Connections {
        // A connection counts at the listener that serves it: 15001 hands those to an HTTP port on.
        from_app: sum(&[listener(15001), listener(APP_PORT)]),
        to_world: sum(&[cluster("PassthroughCluster")]),
        from_network: sum(&[listener(15006)]),
        to_app: sum(&[cluster("InboundPassthroughCluster"), cluster(&format!("inbound|{APP_PORT}||"))]),
    })
}
