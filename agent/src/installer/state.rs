//! What is told of the installation: to `veer status`, to readiness and to metrics.

use serde::{Deserialize, Serialize};

use crate::install::Placed;

/// The installation at a moment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstallState {
    /// What `--cni-install` says.
    pub asked: String,
    /// How it is.
    pub phase: Phase,
    /// Since when, in seconds since the epoch.
    pub since: u64,
    /// The runtime's configuration.
    pub directory: String,
    /// Where our entry is, or was before somebody took it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placed: Option<Placed>,
    /// Why it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Who took it out the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_writer: Option<Writer>,
    /// What was done so far.
    pub installs: Installs,
}

/// How the installation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Somebody else sees to it: `--cni-install=off`.
    Off,
    /// It is there.
    Installed,
    /// It waits for a network to be put into.
    Waiting,
    /// Somebody took it out, again and again, and it waits before it is put in again.
    Drifted,
    /// It cannot be put in.
    Failed,
}

impl Phase {
    /// As outputs name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Installed => "installed",
            Self::Waiting => "waiting",
            Self::Drifted => "drifted",
            Self::Failed => "failed",
        }
    }
}

/// Somebody who wrote the configuration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Writer {
    /// What he changed: a file of the configuration, or the plugin.
    pub file: String,
    /// Who he probably is, by the plugins in there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// The file's owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// When it was seen, in seconds since the epoch.
    pub at: u64,
    /// How often since the agent started.
    pub times: u64,
}

/// Installations since the agent started, by how they ended: `istio_cni_installs_total`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Installs {
    /// Something was changed, and all is there. The first one counts also if nothing had to be.
    pub success: u64,
    /// The plugin could not be copied.
    pub copy_failed: u64,
    /// The configuration could not be changed.
    pub config_failed: u64,
}

impl InstallState {
    /// Nobody has looked yet.
    pub fn begin(asked: &str, directory: String, off: bool, now: u64) -> Self {
        let (phase, problem) = if off {
            (Phase::Off, None)
        } else {
            (Phase::Waiting, Some("it is not looked at yet".to_owned()))
        };
        Self {
            asked: asked.to_owned(),
            phase,
            since: now,
            directory,
            placed: None,
            problem,
            other_writer: None,
            installs: Installs::default(),
        }
    }

    /// Whether the runtime calls our plugin for pods that are created now, as far as this agent sees to it:
    /// `istio_cni_install_ready`. What somebody else sees to is taken to be so.
    pub fn is_ready(&self) -> bool {
        match self.phase {
            Phase::Off => true,
            Phase::Installed => self.placed.as_ref().is_some_and(Placed::is_effective),
            Phase::Waiting | Phase::Drifted | Phase::Failed => false,
        }
    }

    pub(super) fn enter(&mut self, phase: Phase, problem: Option<String>, now: u64) {
        if self.phase != phase {
            self.since = now;
        }
        (self.phase, self.problem) = (phase, problem);
    }
}
