//! One Envoy that the agent has started: what its shim is told, and what that leaves behind. Pure.
//!
//! Owns: the two documents. An Envoy has a parent of its own, the shim (`platform::proxy::shim`), because it outlives
//! the agent: it ends with its parent, by Envoy's own wish, and somebody has to wait for it and to read what it says. The
//! record is the shim's; an agent that starts reads who is there. Called by: `platform::proxy`, `proxy::supervise`.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::command::ProxyCommand;

/// What a shim is told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Charge {
    /// Its directory, which is the proxy's: log, records, sockets.
    pub directory: PathBuf,
    /// The cgroup that it joins, if there is one.
    pub cgroup: Option<PathBuf>,
    /// User and group that it becomes.
    pub id: u32,
    /// Which one it is.
    pub instance: Instance,
    /// All arguments.
    pub arguments: Vec<String>,
}

/// Which Envoy it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Instance {
    /// Its number: larger than that of any before it.
    pub number: u64,
    /// Envoy's own count of those that have taken over from each other.
    pub epoch: u32,
    /// What it was started from.
    pub build: Build,
}

/// What an Envoy was started from; another one takes over when that changes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Build {
    /// The command.
    pub command: ProxyCommand,
    /// The file that its program was.
    pub program: FileMark,
    /// A digest of the bootstrap.
    pub bootstrap: String,
}

/// By what a file is known: one that is replaced has another inode, one that is written anew another time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileMark {
    /// Device.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since the epoch, of its last change.
    pub changed_ns: i64,
}

/// What a shim leaves of its Envoy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Which one it is.
    pub instance: Instance,
    /// The shim.
    pub shim: ProcessMark,
    /// The Envoy.
    pub envoy: ProcessMark,
    /// When it was started, in seconds since the epoch.
    pub started_at: u64,
    /// How it has ended, once it has.
    pub ended: Option<Ended>,
}

/// By what a process is known: its number may be another's by now, but not with the same start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProcessMark {
    /// Its number.
    pub pid: u32,
    /// When it was started, in the kernel's clock ticks since the boot.
    pub start: u64,
}

/// How an Envoy has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ended {
    /// By what.
    pub by: End,
    /// After how many seconds.
    pub after_s: u64,
    /// When, in seconds since the epoch.
    pub at: u64,
}

/// What ended an Envoy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// It has exited, with this status.
    Exit(i32),
    /// A signal.
    Signal(i32),
    /// Its shim was killed before it could say.
    Unknown,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(status) => write!(f, "exited with status {status}"),
            Self::Signal(signal) => write!(f, "was ended by signal {signal}"),
            Self::Unknown => f.write_str("has ended, and nobody knows how: its shim was killed"),
        }
    }
}

impl Instance {
    /// The name of its record's file.
    pub fn file_name(&self) -> String {
        format!("instance-{}.json", self.number)
    }
}

/// The number in the name of a record's file.
pub fn number_in(file_name: &str) -> Option<u64> {
    file_name.strip_prefix("instance-")?.strip_suffix(".json")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_found_by_its_name() {
        let build = Build {
            command: ProxyCommand::parse("/envoy").unwrap(),
            program: FileMark { device: 1, inode: 2, size: 3, changed_ns: 4 },
            bootstrap: String::new(),
        };
        let name = Instance { number: 17, epoch: 0, build }.file_name();
        assert_eq!(number_in(&name), Some(17));
        assert_eq!(number_in("instance-17.json.draft"), None);
        assert_eq!(number_in("envoy.log"), None);
    }
}
