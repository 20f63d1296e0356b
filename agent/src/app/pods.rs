//! Where pods are read from, and what else of the agent has to do with the API server.
//!
//! Owns: which of it there is, and its start. Called by: `app`.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::AppError;
use crate::cluster::client::ApiServer;
use crate::cluster::events::{self, Writer};
use crate::cluster::node::NodeMarks;
use crate::cluster::notice::Notices;
use crate::cluster::redirection::{self, Redirections};
use crate::config::{AgentConfig, KubeConfig, PodsFrom};
use crate::readiness::Readiness;
use crate::source::{Current, Directory, Kube, Namespaces, Source};

/// The source, and what it comes with.
pub(super) struct Pods {
    pub(super) source: Source,
    /// Where pods are told what has become of them.
    pub(super) notices: Notices,
    /// Where pods of ztunnel are told how their redirection stands.
    pub(super) redirections: Redirections,
    /// What talks to the API server, if there is one.
    pub(super) cluster: Option<Cluster>,
}

/// What talks to the API server.
pub(super) struct Cluster {
    kube: Kube,
    writer: Writer,
    redirections: redirection::Writer,
    marks: NodeMarks,
}

/// Makes all of it. Of the API server nothing is asked yet: it may be away.
pub(super) async fn pods(config: &AgentConfig, readiness: &Readiness) -> Result<Pods, AppError> {
    // Nobody else needs them, nor the right to ask for them.
    let is_read = config.proxy_dir.is_some() || config.ztunnel_socket.is_some();
    let namespaces = if is_read { Namespaces::Read } else { Namespaces::Unread };
    let current = readiness.condition("pods", "the node's pods are not known yet");
    let KubeConfig { node, kubeconfig, node_taint } = match &config.pods_from {
        PodsFrom::Directory(path) => {
            let source = Source::Directory(Directory::open(path, namespaces)?);
            // It looks each time.
            current.holds();
            let (notices, redirections) = (Notices::nowhere(), Redirections::nowhere());
            return Ok(Pods { source, notices, redirections, cluster: None });
        }
        PodsFrom::Kube(config) => config,
    };
    let of_namespaces = || readiness.condition("namespaces", "namespaces are not known yet");
    let current = Current { pods: current, namespaces: is_read.then(of_namespaces) };
    let server = Arc::new(ApiServer::new(kubeconfig.clone()).await?);
    let kube = Kube::new(node.clone(), Arc::clone(&server), current, super::release_memory);
    let (notices, writer) = events::writer(node.clone(), Arc::clone(&server));
    let (redirections, redirection_writer) = redirection::writer(Arc::clone(&server));
    let marks = NodeMarks { node: node.clone(), server, taint: *node_taint, readiness: readiness.clone() };
    let source = Source::Kube(kube.clone());
    let cluster = Cluster { kube, writer, redirections: redirection_writer, marks };
    Ok(Pods { source, notices, redirections, cluster: Some(cluster) })
}

impl Cluster {
    /// Starts all of it.
    pub(super) fn start(self, tasks: &TaskTracker, stop: &CancellationToken) {
        tasks.spawn(self.kube.follow(stop.clone()));
        tasks.spawn(self.writer.serve(stop.clone()));
        tasks.spawn(self.redirections.serve(stop.clone()));
        tasks.spawn(self.marks.serve(stop.clone()));
    }
}
