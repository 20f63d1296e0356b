//! What the node's Envoy is told of one pod: two listeners and two clusters, all inside of the pod's netns. Pure.
//!
//! Owns: their names, shapes and versions. The outbound listener takes what the datapath redirects to 15001 and sends
//! it where it was dialled, from the pod's own address; the inbound one takes 15006 and sends to the app, from
//! 127.0.0.6 (`::6`), by which the datapath knows that it has been there. HTTP is found out by its first bytes;
//! everything else is passed as bytes. Headers stay as they are but for what a proxy has to say.
//! Never does: tell anybody. Called by: `proxy::ads`.

mod cluster;
mod filters;
mod listener;
mod log;

use envoy_types::pb::envoy::config::core::v3::{
    Address, SocketAddress, TypedExtensionConfig, address, socket_address,
};
use envoy_types::pb::google::protobuf::{Any, Duration};
use prost::{Message, Name};
use sha2::{Digest, Sha256};

use super::config::UserConfig;
use super::driver::ProxiedPod;

/// Which way a connection goes, as the pod sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the pod.
    Outbound,
    /// To the pod.
    Inbound,
}

/// What xDS calls a type of resources.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// `envoy.config.cluster.v3.Cluster`
    Cluster,
    /// `envoy.config.listener.v3.Listener`
    Listener,
}

/// A resource in the form in which it is sent.
#[derive(Clone, PartialEq, Debug)]
pub struct Resource {
    /// Unique among those of its kind.
    pub name: String,
    /// The same for the same content, also in another agent.
    pub version: String,
    /// The resource.
    pub content: Any,
}

/// What Envoy is told of one pod.
#[derive(Clone, PartialEq, Debug)]
pub struct Resources {
    /// They come first: listeners name them.
    pub clusters: Vec<Resource>,
    /// They come last.
    pub listeners: Vec<Resource>,
}

impl Resources {
    /// All of a pod's, with what users add.
    pub fn of(pod: &ProxiedPod, config: &UserConfig) -> Self {
        let both = [Direction::Outbound, Direction::Inbound];
        Self {
            clusters: both.map(|way| resource(resource_name(way, pod), &cluster::cluster(way, pod))).into(),
            listeners: both.map(|way| listener_of(way, pod, config)).into(),
        }
    }

    /// A cluster that is no pod's.
    pub fn of_nobody(cluster: &Resource) -> Self {
        Self { clusters: vec![cluster.clone()], listeners: Vec::new() }
    }

    /// Those of a kind.
    pub fn of_kind(&self, kind: Kind) -> &[Resource] {
        match kind {
            Kind::Cluster => &self.clusters,
            Kind::Listener => &self.listeners,
        }
    }
}

impl Kind {
    /// Both, in the order in which they are added.
    pub const ALL: [Self; 2] = [Self::Cluster, Self::Listener];

    /// Its name in xDS.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
        }
    }

    /// The kind of that name.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }
}

impl Direction {
    /// Its name in resources, statistics and the access log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// `outbound|shop/cart-1|4711`
pub fn resource_name(way: Direction, pod: &ProxiedPod) -> String {
    format!("{}|{}", way.name(), pod.owner())
}

fn listener_of(way: Direction, pod: &ProxiedPod, config: &UserConfig) -> Resource {
    let name = resource_name(way, pod);
    let plain = listener::listener(way, pod, &UserConfig::default());
    if config.is_empty() {
        return resource(name, &plain);
    }
    // Users' own have maps, whose fields come in another order each time: the version is of what they were made from.
    let seed = [plain.encode_to_vec(), config.seed(way, pod)].concat();
    versioned(name, any(&listener::listener(way, pod, config)), &seed)
}

fn resource<M: Message + Name>(name: String, message: &M) -> Resource {
    let content = any(message);
    let seed = content.value.clone();
    versioned(name, content, &seed)
}

/// A resource whose version is a digest of `seed`.
pub(super) fn versioned(name: String, content: Any, seed: &[u8]) -> Resource {
    let digest = Sha256::digest(seed);
    // A part tells versions of one resource apart.
    let part = digest.first_chunk().copied().map(u64::from_be_bytes).unwrap_or_default();
    Resource { name, version: format!("{part:016x}"), content }
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn extension<M: Message + Name>(name: &str, message: &M) -> TypedExtensionConfig {
    TypedExtensionConfig { name: name.to_owned(), typed_config: Some(any(message)) }
}

fn address(pod: &ProxiedPod, ip: &str, port: u16) -> Address {
    Address { address: Some(address::Address::SocketAddress(socket_address(pod, ip, port))) }
}

fn socket_address(pod: &ProxiedPod, ip: &str, port: u16) -> SocketAddress {
    SocketAddress {
        address: ip.to_owned(),
        network_namespace_filepath: for_envoy(&pod.netns_path),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(port.into())),
        ..SocketAddress::default()
    }
}

/// A path as Envoy has it. Runtimes name a netns by `/var/run`, which is a link to `/run` (FHS 3.0, 3.15), but need not be there
/// at all in Envoy's image.
fn for_envoy(path: &str) -> String {
    path.strip_prefix("/var/run/").map_or_else(|| path.to_owned(), |within| format!("/run/{within}"))
}

const fn seconds(seconds: i64) -> Duration {
    Duration { seconds, nanos: 0 }
}

#[cfg(test)]
mod tests;
