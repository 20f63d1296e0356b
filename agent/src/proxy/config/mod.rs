//! What users add to what the node's Envoy is told: filters, routes, virtual hosts and clusters, out of a directory of
//! Envoy's own resources (`--proxy-config`).
//!
//! A file is what Envoy itself reads from files, a list `resources` with a `@type` each, and may say for which `direction`.
//! What is in it is checked before it is used: a field that Envoy does not have is an error with file and place, and then all
//! stays as it was. Whether Envoy takes it, Envoy says (`proxy::ads`).
//! Owns: what was read ([`UserConfig`]), and where it goes in a pod's resources. Never does: talk to Envoy.
//! Called by: `proxy::resources`, `proxy::ads`, and `app`, which has the directory [followed](watch::follow).

mod read;
mod template;
mod text;
pub mod watch;

use prost::Message;

use self::template::Template;
use super::driver::ProxiedPod;
use super::resources::{Direction, Resource};

/// What users add.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct UserConfig {
    additions: Vec<Addition>,
    /// The same for all pods.
    clusters: Vec<Resource>,
}

/// Something that is added to each pod's resources.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Addition {
    place: Place,
    /// For one direction; for both without.
    way: Option<Direction>,
    template: Template,
}

/// Where it goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Before the router, in their order.
    HttpFilter,
    /// Before what passes requests or bytes on.
    NetworkFilter,
    /// Before the one that is for all hosts.
    VirtualHost,
    /// Before the one that goes where the connection was going.
    Route,
    /// Beside those of pods.
    Cluster,
}

impl Place {
    const ALL: [Self; 5] =
        [Self::HttpFilter, Self::NetworkFilter, Self::VirtualHost, Self::Route, Self::Cluster];

    /// What Envoy calls it.
    const fn type_name(self) -> &'static str {
        match self {
            Self::HttpFilter => "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
            Self::NetworkFilter => "envoy.config.listener.v3.Filter",
            Self::VirtualHost => "envoy.config.route.v3.VirtualHost",
            Self::Route => "envoy.config.route.v3.Route",
            Self::Cluster => "envoy.config.cluster.v3.Cluster",
        }
    }
}

impl UserConfig {
    /// Whether nothing is added to pods.
    pub(super) fn is_empty(&self) -> bool {
        self.additions.is_empty()
    }

    /// Clusters, each of which is nobody's.
    pub(super) fn clusters(&self) -> &[Resource] {
        &self.clusters
    }

    /// What is added to a pod at a place.
    pub(super) fn of<M: Message + Default>(
        &self,
        place: Place,
        way: Direction,
        pod: &ProxiedPod,
    ) -> impl Iterator<Item = M> {
        let filled = self.filled(way, pod).filter(move |(of, _)| *of == place);
        filled.filter_map(|(_, bytes)| {
            let decoded = M::decode(&*bytes);
            // It was made of this type, and texts in it are texts.
            decoded.inspect_err(|error| tracing::error!(%error, "a resource of --proxy-config")).ok()
        })
    }

    /// Whether something of it is done with each request of a direction.
    pub(super) fn sees_requests(&self, way: Direction) -> bool {
        let of_requests = |place| matches!(place, Place::HttpFilter | Place::Route | Place::VirtualHost);
        self.additions.iter().any(|one| of_requests(one.place) && one.way.is_none_or(|only| only == way))
    }

    /// The same bytes for the same files, whatever order fields of a map come in when they are sent.
    pub(super) fn seed(&self, way: Direction, pod: &ProxiedPod) -> Vec<u8> {
        self.filled(way, pod)
            .flat_map(|(place, bytes)| [place.type_name().as_bytes(), &bytes].concat())
            .collect()
    }

    fn filled(&self, way: Direction, pod: &ProxiedPod) -> impl Iterator<Item = (Place, Vec<u8>)> {
        let meant = self.additions.iter().filter(move |one| one.way.is_none_or(|only| only == way));
        meant.map(move |one| (one.place, one.template.fill(Some((pod, way)))))
    }
}

/// One file's.
#[cfg(test)]
pub(super) fn read_one(text: &str) -> Result<UserConfig, String> {
    let file = read::File { name: "my.yaml".to_owned(), content: text.as_bytes().to_vec() };
    read::read(&[file]).map_err(|errors| errors.to_string())
}

#[cfg(test)]
mod tests;
