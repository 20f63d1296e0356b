//! The pod's network namespace, as an open file.
//!
//! Owns: opening `CNI_NETNS` and refusing what cannot be a pod's. Never does: enter it.
//! Used by: [`crate::plugin`]; the file goes to the agent, whose mount namespace may not have the path.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use nix::fcntl::OFlag;
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use thiserror::Error;
use veer_common::cni::code;

use crate::output::Failure;

/// Why `CNI_NETNS` is not one.
#[derive(Debug, Error)]
pub(crate) enum NetnsError {
    #[error("open network namespace {path}: {source}")]
    Open {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not a network namespace")]
    NotOne { path: String },
    #[error("{path} is the network namespace of the node, not of a pod")]
    Own { path: String },
}

impl From<NetnsError> for Failure {
    fn from(error: NetnsError) -> Self {
        Self {
            code: code::INVALID_ENVIRONMENT,
            msg: error.to_string(),
            details: "CNI_NETNS must be the path of the pod's network namespace, which exists until DEL"
                .into(),
        }
    }
}

/// Opens the network namespace of a pod.
///
/// That the file is of a *network* namespace, and not of another kind, is left to the agent: asking the
/// kernel takes an ioctl, and this crate has no unsafe code.
pub(crate) fn open(path: &str) -> Result<File, NetnsError> {
    let named = |source| NetnsError::Open { path: path.to_owned(), source };
    // A named pipe or a terminal must neither block nor become ours.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(named)?;
    let kind = fstatfs(&file).map_err(|errno| named(errno.into()))?.filesystem_type();
    if kind != NSFS_MAGIC {
        return Err(NetnsError::NotOne { path: path.to_owned() });
    }
    // The runtime runs plugins in the node's own namespace. To redirect that one would cut off the node.
    let (pod, node) =
        (file.metadata().map_err(named)?, fs::metadata("/proc/thread-self/ns/net").map_err(named)?);
    if (pod.dev(), pod.ino()) == (node.dev(), node.ino()) {
        return Err(NetnsError::Own { path: path.to_owned() });
    }
    Ok(file)
}
