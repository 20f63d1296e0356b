//! What the bench tells a client to do, and what the client answers: lines of JSON.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Workload {
    /// A new connection, until one byte has been there and back.
    Connect,
    /// The same, until both ends have closed it.
    Life,
    /// One byte there and back on an open connection.
    Request,
    /// A block of [`BLOCK`] bytes there, one byte back.
    Bulk,
    /// An HTTP request and its answer on an open connection.
    HttpRequest,
    /// The same on a new connection.
    HttpConnect,
}

/// Bytes that are acknowledged at once: enough that the acknowledgement costs nothing.
pub(crate) const BLOCK: u32 = 8 << 20;
/// Bytes of one write or read.
pub(crate) const BUFFER: usize = 64 << 10;
/// A connection that begins with this byte is for [`Workload::Bulk`].
pub(crate) const BULK: u8 = b'B';
/// What everything else says.
pub(crate) const PING: u8 = b'p';
/// A connection that begins with this byte carries requests.
pub(crate) const GET: u8 = b'G';
/// A request.
pub(crate) const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n";
/// Its answer; a proxy puts headers of its own into it.
pub(crate) const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\np";
/// Where a request ends, and what an answer ends with, whatever its headers are.
pub(crate) const END: &[u8] = b"\r\n\r\n";

/// One slice of a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) workload: Workload,
    pub(crate) to: SocketAddr,
    /// How often.
    pub(crate) operations: u32,
}

/// How long one operation took, in a slice of many.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Slice {
    /// Median: what the path costs.
    pub(crate) median_ns: f64,
    /// Mean: that, and everything that interrupted it.
    pub(crate) mean_ns: f64,
}

impl Workload {
    /// What a reader calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect + 1 byte",
            Self::Life => "connect to close",
            Self::Request => "request/response",
            Self::Bulk => "throughput",
            Self::HttpRequest => "HTTP request",
            Self::HttpConnect => "connect + HTTP request",
        }
    }

    /// Whether it speaks HTTP.
    pub(crate) const fn is_http(self) -> bool {
        matches!(self, Self::HttpRequest | Self::HttpConnect)
    }
}

/// Where the two ends run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Cpus {
    pub(crate) client: usize,
    pub(crate) server: usize,
}

impl Cpus {
    /// Both on the last one that this process may use; the first serves most interrupts. One CPU for both,
    /// because then the time is that of the path: with two, most of it is the waking of the other CPU, the
    /// more so in a virtual machine, and it varies more than what is compared.
    pub(crate) fn same() -> Result<Self> {
        let allowed = sched_getaffinity(None).context("ask for the CPUs that may be used")?;
        let last =
            (0..CpuSet::MAX_CPU).rev().find(|cpu| allowed.is_set(*cpu)).context("no CPU may be used")?;
        Ok(Self { client: last, server: last })
    }
}

impl FromStr for Cpus {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || anyhow!("`{text}` is not two CPU numbers: write 2,3");
        let (client, server) = text.split_once(',').ok_or_else(wrong)?;
        let number = |text: &str| text.parse::<usize>().ok().filter(|cpu| *cpu < CpuSet::MAX_CPU);
        Ok(Self { client: number(client).ok_or_else(wrong)?, server: number(server).ok_or_else(wrong)? })
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.client, self.server)
    }
}

/// Keeps the calling thread, and those it starts later, on one CPU.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("stay on CPU {cpu}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_cpus_are_read_and_anything_else_is_refused() {
        let cpus: Cpus = "2,3".parse().unwrap();
        assert_eq!(cpus, Cpus { client: 2, server: 3 });
        assert_eq!(cpus.to_string(), "2,3");
        for wrong in ["", "2", "2,", "a,b", "2,3,4", "2,99999999"] {
            let error = wrong.parse::<Cpus>().unwrap_err().to_string();
            assert!(error.contains("write 2,3"), "{error}");
        }
    }

    #[test]
    fn an_order_survives_its_line() {
        let order = Order { workload: Workload::Bulk, to: "192.0.2.1:80".parse().unwrap(), operations: 7 };
        let line = serde_json::to_string(&order).unwrap();
        assert_eq!(line, r#"{"workload":"bulk","to":"192.0.2.1:80","operations":7}"#);
        assert_eq!(serde_json::from_str::<Order>(&line).unwrap(), order);
    }
}
