//! How much netfilter there is in a namespace: what iptables, nft and conntrack themselves say.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::netns::NetNs;

/// Kernel's own number of tracked connections in the reader's namespace; not there before the first use.
const TRACKED: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
/// Tables of the old iptables in the reader's namespace.
const LEGACY_TABLES: [&str; 2] =
    ["/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"];

/// The netfilter of a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Netfilter {
    /// Rules that `iptables-save` prints.
    pub iptables: usize,
    /// Rules that `ip6tables-save` prints.
    pub ip6tables: usize,
    /// Rules in `nft list ruleset`; those of iptables count here, too, where it writes nft rules.
    pub nft: usize,
    /// Tables of the old iptables that are registered.
    pub legacy_tables: usize,
    /// Connections that `conntrack -L` prints, or that the kernel counts if those are more.
    pub connections: usize,
}

impl Netfilter {
    /// That of a namespace.
    pub fn of(netns: &NetNs) -> Result<Self> {
        netns.run(Self::here)?.with_context(|| format!("look for netfilter in netns {}", netns.name()))
    }

    /// Rules of every kind.
    pub const fn rules(&self) -> usize {
        self.iptables + self.ip6tables + self.nft
    }

    /// Whether there is nothing at all.
    pub fn none(&self) -> bool {
        *self == Self::default()
    }

    fn here() -> Result<Self> {
        // Before the tools run, which may register what they look for.
        let legacy_tables = LEGACY_TABLES.iter().map(|path| fs::read_to_string(path).unwrap_or_default());
        let legacy_tables = legacy_tables.map(|names| names.lines().count()).sum();
        let rules = |program| -> Result<usize> {
            Ok(say(program, &[])?.lines().filter(|line| line.starts_with("-A ")).count())
        };
        Ok(Self {
            legacy_tables,
            connections: say("conntrack", &["-L"])?.lines().count().max(tracked()?),
            iptables: rules("iptables-save")?,
            ip6tables: rules("ip6tables-save")?,
            nft: nft_rules(&say("nft", &["--json", "list", "ruleset"])?)?,
        })
    }
}

fn nft_rules(ruleset: &str) -> Result<usize> {
    let ruleset: Value = serde_json::from_str(ruleset).context("decode the ruleset of nft")?;
    let objects =
        ruleset.get("nftables").and_then(Value::as_array).context("the ruleset of nft has another form")?;
    Ok(objects.iter().filter(|object| object.get("rule").is_some()).count())
}

fn tracked() -> Result<usize> {
    if !Path::new(TRACKED).exists() {
        return Ok(0);
    }
    let count = fs::read_to_string(TRACKED).with_context(|| format!("read {TRACKED}"))?;
    count.trim().parse().with_context(|| format!("parse {TRACKED}"))
}

fn say(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!("{program} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
