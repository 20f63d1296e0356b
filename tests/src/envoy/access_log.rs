//! The access log: its format in Envoy's words, and its entries.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::MARK;

/// Which of the sidecar's listeners a connection came to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// 15001: from the app.
    Outbound,
    /// 15006: for the app.
    Inbound,
}

impl Direction {
    /// As the log names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A request, or a connection that is not HTTP.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Which listener.
    pub direction: Direction,
    /// Value of the header [`MARK`].
    pub mark: Option<String>,
    /// Status of the answer; 0 for TCP.
    pub status: u16,
    /// Envoy's flags for what went wrong: `UF`, `NR`, …
    pub flags: Option<String>,
    /// Who dialled.
    pub client: Option<SocketAddr>,
    /// What was dialled: the original destination, where Envoy learnt it.
    pub original_destination: Option<SocketAddr>,
    /// The cluster that the request went to.
    pub cluster: Option<String>,
    /// Where Envoy sent it.
    pub upstream: Option<SocketAddr>,
    /// From which address.
    pub upstream_source: Option<SocketAddr>,
}

pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join("access.log")
}

/// The access loggers of a listener.
pub(super) fn loggers(path: &Path, direction: Direction) -> Value {
    json!([{
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": path,
            "log_format": {"json_format": {
                "direction": direction,
                "mark": format!("%REQ({MARK})%"),
                "status": "%RESPONSE_CODE%",
                "flags": "%RESPONSE_FLAGS%",
                "client": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
                "original_destination": "%DOWNSTREAM_LOCAL_ADDRESS%",
                "cluster": "%UPSTREAM_CLUSTER_RAW%",
                "upstream": "%UPSTREAM_HOST%",
                "upstream_source": "%UPSTREAM_LOCAL_ADDRESS%",
            }},
        },
    }])
}

pub(super) fn read(path: &Path) -> Result<Vec<Entry>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.with_context(|| format!("read {}", path.display()))?,
    };
    // A line without its end is still being written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).with_context(|| format!("decode {line}"))).collect()
}
