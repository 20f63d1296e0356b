//! How the node's Envoy stands as a process, for `veer status`, metrics and readiness.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::platform::proxy::Usage;
use crate::proxy::instance::Ended;

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// None runs, and one is started soon.
    Down,
    /// One runs, and is not ready.
    Starting,
    /// It serves.
    Live,
}

/// How the node's Envoy stands, which the agent starts itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyProcess {
    /// What it is started with.
    pub command: String,
    /// How far it is.
    pub phase: Phase,
    /// Its process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its release.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// When it was started, in seconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<u64>,
    /// How often one was started because the one before had ended, since the agent's start.
    pub restarts: u64,
    /// How often one has taken over from another, since the agent's start.
    pub takeovers: u64,
    /// The process that it has taken over from, as long as that runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draining: Option<u32>,
    /// Why there is none, or why another one has not taken over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// How the last one that was not asked to end has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crash: Option<Crash>,
}

/// How one has ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Crash {
    /// Its process.
    pub pid: u32,
    /// By what, and when.
    #[serde(flatten)]
    pub ended: Ended,
    /// What it has said last, the access log aside.
    pub last_words: Vec<String>,
}

impl Crash {
    /// For people: `pid 17 was ended by signal 9 after 3 s`.
    pub fn text(&self) -> String {
        format!("pid {} {} after {} s", self.pid, self.ended.by, self.ended.after_s)
    }
}

impl ProxyProcess {
    /// One that is not there yet.
    pub fn down(command: String) -> Self {
        Self {
            command,
            phase: Phase::Down,
            pid: None,
            version: None,
            started_at: None,
            restarts: 0,
            takeovers: 0,
            draining: None,
            problem: None,
            crash: None,
        }
    }

    /// For people: `live, pid 17, Envoy 1.40.0, restarted 2 times`.
    pub fn text(&self) -> String {
        let phase = match self.phase {
            Phase::Down => "not running",
            Phase::Starting => "starting",
            Phase::Live => "live",
        };
        let mut parts = vec![phase.to_owned()];
        parts.extend(self.pid.map(|pid| format!("pid {pid}")));
        parts.extend(self.version.as_ref().map(|version| format!("Envoy {version}")));
        parts.extend((self.restarts > 0).then(|| format!("restarted {} times", self.restarts)));
        parts.extend((self.takeovers > 0).then(|| format!("taken over {} times", self.takeovers)));
        parts.extend(self.draining.map(|pid| format!("pid {pid} before it keeps its connections")));
        parts.join(", ")
    }
}

/// The way to see how it stands.
#[derive(Clone, Debug)]
pub struct Watched {
    told: watch::Receiver<Option<ProxyProcess>>,
    cgroup: Option<PathBuf>,
}

/// A way to see it, and for the supervisor one to tell of it.
pub fn watched(cgroup: Option<PathBuf>) -> (watch::Sender<Option<ProxyProcess>>, Watched) {
    let (tells, told) = watch::channel(None);
    (tells, Watched { told, cgroup })
}

impl Watched {
    /// How it stands; `None` where the agent starts none.
    pub fn standing(&self) -> Option<ProxyProcess> {
        self.told.borrow().clone()
    }

    /// What monitors are told; without one, all is 0.
    pub fn figures(&self) -> ProxyFigures {
        let Some(standing) = self.standing() else { return ProxyFigures::default() };
        let pids: Vec<u32> = standing.pid.into_iter().chain(standing.draining).collect();
        ProxyFigures {
            is_up: standing.phase == Phase::Live,
            restarts: standing.restarts,
            takeovers: standing.takeovers,
            usage: Usage::of(self.cgroup.as_deref(), &pids),
        }
    }
}

/// What monitors are told.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct ProxyFigures {
    /// Whether it is live.
    pub is_up: bool,
    /// How often one was started because the one before had ended.
    pub restarts: u64,
    /// How often one has taken over from another.
    pub takeovers: u64,
    /// What it uses.
    pub usage: Usage,
}
