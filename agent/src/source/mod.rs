//! Where pods are read from: behind one trait, so that decisions do not know.
//!
//! Owns: the sources and their errors. Never does: deciding anything about a pod. Called by: enrolment.

mod directory;

use std::path::PathBuf;

use thiserror::Error;
use veer_common::cni::PodReference;

use crate::model::{ManifestError, Pod};

pub use self::directory::Directory;

/// Something that knows the node's pods.
pub trait PodSource {
    /// What it is and where, for logs and messages: `directory /etc/veer/pods`.
    fn name(&self) -> String;

    /// The pod that a runtime names; `None` when the source knows for certain that there is none.
    fn pod(&self, reference: &PodReference) -> impl Future<Output = Result<Option<Pod>, SourceError>> + Send;

    /// All pods that it knows; those that it cannot tell are left out.
    fn pods(&self) -> impl Future<Output = Result<Vec<Pod>, SourceError>> + Send;
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
