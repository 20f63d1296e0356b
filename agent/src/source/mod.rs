//! Where pods are read from: behind one trait, so that decisions do not know.
//!
//! Owns: the sources and their errors. Never does: deciding anything about a pod. Called by: enrolment.

mod directory;
mod kube;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use thiserror::Error;
use veer_common::cni::PodReference;

use crate::model::{ManifestError, Pod};
use crate::wall_clock;

pub use self::directory::Directory;
pub use self::kube::{Current, Kube};

/// Something that knows the node's pods.
pub trait PodSource {
    /// What it is and where, for logs and messages: `directory /etc/veer/pods`.
    fn name(&self) -> String;

    /// The pod that a runtime names; `None` when the source knows for certain that there is none.
    fn pod(&self, reference: &PodReference) -> impl Future<Output = Result<Option<Pod>, SourceError>> + Send;

    /// All pods that it knows; those that it cannot tell are left out.
    fn pods(&self) -> impl Future<Output = Result<Vec<Pod>, SourceError>> + Send;

    /// Whether what it knows is current; `None` where it is, because it looks each time.
    fn health(&self) -> Option<SourceHealth>;

    /// Full names of pods that have started or changed since the last call, and so are worth a look if they are not
    /// enrolled; waits until there are some, for ever if the source hears of no change.
    fn worth_a_look(&self) -> impl Future<Output = BTreeSet<String>> + Send;
}

/// Whether labels of namespaces count: where the node has a proxy that serves pods because of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Namespaces {
    /// Each pod comes with what its namespace asks for, or not at all.
    Read,
    /// Nobody asks for namespaces.
    Unread,
}

/// One of the sources.
#[derive(Clone, Debug)]
pub enum Source {
    /// A directory of manifests.
    Directory(Directory),
    /// The API server.
    Kube(Kube),
}

impl PodSource for Source {
    fn name(&self) -> String {
        match self {
            Self::Directory(directory) => directory.name(),
            Self::Kube(kube) => kube.name(),
        }
    }

    async fn pod(&self, reference: &PodReference) -> Result<Option<Pod>, SourceError> {
        match self {
            Self::Directory(directory) => directory.pod(reference).await,
            Self::Kube(kube) => kube.pod(reference).await,
        }
    }

    async fn pods(&self) -> Result<Vec<Pod>, SourceError> {
        match self {
            Self::Directory(directory) => directory.pods().await,
            Self::Kube(kube) => kube.pods().await,
        }
    }

    fn health(&self) -> Option<SourceHealth> {
        match self {
            Self::Directory(directory) => directory.health(),
            Self::Kube(kube) => kube.health(),
        }
    }

    async fn worth_a_look(&self) -> BTreeSet<String> {
        match self {
            Self::Directory(directory) => directory.worth_a_look().await,
            Self::Kube(kube) => kube.worth_a_look().await,
        }
    }
}

/// Whether what a source knows is current, for whoever asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceHealth {
    /// How it stands.
    pub state: SourceState,
    /// Since when, in seconds since the epoch.
    pub since: u64,
    /// What keeps it from being current.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Pods that it knows.
    pub pods: usize,
    /// What it knows of namespaces, where they count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<NamespacesHealth>,
    /// How often all pods were listed, since the agent's start.
    pub lists: u64,
    /// How often an attempt to be current has failed, with pods or with namespaces.
    pub failures: u64,
    /// How often one pod was asked for, because it was to be enrolled and not known.
    pub lookups: u64,
    /// Changes that it has heard of.
    pub changes: SourceChanges,
}

/// What a source knows of namespaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NamespacesHealth {
    /// How many.
    pub known: usize,
    /// How often all of them were listed, since the agent's start.
    pub lists: u64,
    /// How often one was asked for, because a pod of it was to be enrolled and it was not known.
    pub lookups: u64,
}

/// Changes of pods that a source has heard of, since the agent's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SourceChanges {
    /// Pods that are new to it.
    pub added: u64,
    /// Pods that it knew, and that are otherwise now.
    pub modified: u64,
    /// Pods that are gone.
    pub deleted: u64,
}

/// How a source stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    /// It has not heard of any pod yet.
    Starting,
    /// It hears of each change.
    Synced,
    /// It knows what it heard before, and asks for each pod that it does not know.
    Degraded,
}

impl SourceHealth {
    /// For people: `synced, 12 pods`.
    pub fn text(&self) -> String {
        let problem = self.problem.as_deref().unwrap_or_default();
        let seconds = wall_clock::seconds().saturating_sub(self.since);
        let pods = self.pods;
        match self.state {
            SourceState::Synced => format!("synced, {pods} pods"),
            SourceState::Starting if problem.is_empty() => "not synced yet".to_owned(),
            SourceState::Starting => format!("not synced for {seconds} s: {problem}"),
            SourceState::Degraded => format!("degraded for {seconds} s, {pods} pods are known: {problem}"),
        }
    }
}

/// Why a source cannot tell.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The directory of manifests cannot be listed.
    #[error("list pod manifests in {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Two manifests claim to be the same pod; which one is meant, nobody can tell.
    #[error("pod {pod} is in both {first} and {second}, remove one", first = first.display(), second = second.display())]
    Ambiguous {
        /// `namespace/name`.
        pod: String,
        /// A file.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
    /// The manifest is of an earlier or later pod of the same name.
    #[error("pod {pod} has uid {found} in {path} and uid {wanted} at the runtime", path = path.display())]
    OtherUid {
        /// `namespace/name`.
        pod: String,
        /// The manifest.
        path: PathBuf,
        /// The manifest's uid.
        found: String,
        /// The runtime's uid.
        wanted: String,
    },
    /// The pod was not found, and it may be in a file that could not be read.
    #[error("pod {pod} is in no readable manifest; unreadable: {}", listed(.unreadable))]
    Unreadable {
        /// `namespace/name`.
        pod: String,
        /// The files and what is wrong with them, at least one.
        unreadable: Vec<UnreadableManifest>,
    },
    /// Two manifests claim to be the same namespace.
    #[error("namespace {namespace} is in both {first} and {second}, remove one", first = first.display(), second = second.display())]
    AmbiguousNamespace {
        /// Its name.
        namespace: String,
        /// A file.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
    /// What the pod's namespace asks for may be in a file that could not be read.
    #[error("namespace {namespace} of pod {pod} may be in a manifest that is not readable: {}", listed(.unreadable))]
    UnreadableNamespace {
        /// Its name.
        namespace: String,
        /// `namespace/name`.
        pod: String,
        /// The files and what is wrong with them, at least one.
        unreadable: Vec<UnreadableManifest>,
    },
    /// The API server has no answer for a pod, or for its namespace.
    #[error("ask the API server {server} for {object}: {problem} ({watch})")]
    Api {
        /// Where it is.
        server: String,
        /// What was asked for: `pod shop/cart`.
        object: String,
        /// Why not.
        problem: String,
        /// Why it had to be asked.
        watch: String,
    },
    /// The API server has an earlier or later pod of the same name.
    #[error("pod {pod} has uid {found} at the API server and uid {wanted} at the runtime")]
    Replaced {
        /// `namespace/name`.
        pod: String,
        /// The API server's uid.
        found: String,
        /// The runtime's uid.
        wanted: String,
    },
    /// The thread that reads was lost.
    #[error("read pod manifests: {0}")]
    Interrupted(#[source] tokio::task::JoinError),
}

/// A manifest that could not be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnreadableManifest {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it, in words.
    pub problem: String,
}

/// Why one file gives no pod.
#[derive(Debug, Error)]
enum FileError {
    #[error("read: {0}")]
    Read(#[from] std::io::Error),
    #[error("not a regular file")]
    NotAFile,
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

fn listed(unreadable: &[UnreadableManifest]) -> String {
    const MOST: usize = 10;
    let mut text: Vec<String> = unreadable
        .iter()
        .take(MOST)
        .map(|manifest| format!("{} ({})", manifest.path.display(), manifest.problem))
        .collect();
    if let Some(more @ 1..) = unreadable.len().checked_sub(MOST) {
        text.push(format!("and {more} more"));
    }
    text.join(", ")
}
