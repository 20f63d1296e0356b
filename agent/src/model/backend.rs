//! The ways of redirecting a pod.

use serde::{Deserialize, Serialize};

/// What redirects a pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendName {
    /// Programs on its cgroup and its netns.
    Ebpf,
    /// Rules in its netns.
    Nftables,
}

impl BackendName {
    /// The name that flags, commands and logs show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Nftables => "nftables",
        }
    }
}
