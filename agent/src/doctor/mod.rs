//! What facts about a node mean: is it able, what would be used, and what is to be done. Pure.
//!
//! Owns: [`facts`] (what is looked at), the findings and their levels, the verdict, and the [`text`]. One room
//! for each thing that is examined: [`kernel`], [`privileges`], [`cgroup`], [`places`], [`cni`], [`redirection`]; what
//! nftables is tried with is in [`trial`].
//! Never does: look at anything; that is `platform::probe`. Called by: `commands::doctor`.

pub mod cgroup;
pub mod cni;
pub mod facts;
pub mod kernel;
pub mod places;
pub mod privileges;
pub mod redirection;
pub mod text;
pub mod trial;

use serde::Serialize;

use self::facts::Facts;
use crate::model::BackendName;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Something works less well, or cannot be told.
    Warning,
    /// Pods cannot be redirected, or are redirected wrongly.
    Error,
}

/// What a finding is about; findings of one area stand together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    /// What the process may do.
    Privileges,
    /// What the kernel can.
    Kernel,
    /// Where the programs are attached, and beside whom.
    Cgroup,
    /// Directories and the running agent.
    Agent,
    /// The runtime's network configuration.
    Cni,
    /// What else redirects connections.
    Redirection,
}

/// One thing that was found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// What it is about.
    pub area: Area,
    /// Its name, for scripts.
    pub name: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found and what that means.
    pub says: String,
    /// What to do; absent where there is nothing to do.
    #[serde(rename = "do", skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// The kernel's own words: the end of them, where they are long.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub words: Vec<String>,
}

/// The whole answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The worst of the findings.
    pub verdict: Level,
    /// What `--backend auto` uses here; absent if nothing would work, or if it cannot be told.
    pub backend: Option<BackendName>,
    /// This binary's release.
    pub version: String,
    /// Release of the kernel, for the reader alone.
    pub kernel: String,
    /// Who asked.
    pub uid: u32,
    /// How long it took.
    pub took_ms: u64,
    /// Everything, area after area.
    pub findings: Vec<Finding>,
}

/// Judges the facts.
pub fn examine(facts: &Facts) -> Report {
    let mut findings = privileges::examine(&facts.process);
    findings.extend(kernel::examine(facts));
    findings.extend(cgroup::examine(facts));
    findings.extend(places::examine(facts));
    findings.extend(cni::examine(&facts.cni, facts.process.looks_on()));
    findings.extend(redirection::examine(&facts.redirections, facts.process.looks_on()));
    let backend = kernel::backend(facts);
    if backend == Some(BackendName::Nftables) {
        // Pods are redirected all the same.
        findings.iter_mut().filter(|finding| finding.is_of_ebpf()).for_each(Finding::soften);
    }
    Report {
        verdict: findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok),
        backend,
        version: facts.agent.our_release.clone(),
        kernel: facts.kernel.clone(),
        uid: facts.process.uid,
        took_ms: u64::try_from(facts.took.as_millis()).unwrap_or(u64::MAX),
        findings,
    }
}

impl Report {
    /// What the command ends with: 0 all is well, 1 there are warnings, 2 there are errors.
    pub const fn exit_code(&self) -> u8 {
        match self.verdict {
            Level::Ok => 0,
            Level::Warning => 1,
            Level::Error => 2,
        }
    }

    /// How many findings have this level.
    pub fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }
}

/// The advice of everything that only root can see.
const AS_ROOT: &str = "run it as root on the node";
/// Lines of the kernel's words that are kept.
const MOST_WORDS: usize = 12;

impl Finding {
    fn new(area: Area, name: &'static str, level: Level, says: impl Into<String>) -> Self {
        Self { area, name, level, says: says.into(), advice: None, words: Vec::new() }
    }

    fn ok(area: Area, name: &'static str, says: impl Into<String>) -> Self {
        Self::new(area, name, Level::Ok, says)
    }

    fn warning(area: Area, name: &'static str, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..Self::new(area, name, Level::Warning, says) }
    }

    fn error(area: Area, name: &'static str, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..Self::new(area, name, Level::Error, says) }
    }

    /// What cannot be told by somebody who may not look.
    fn untold(area: Area, name: &'static str, what: &str) -> Self {
        Self::warning(area, name, format!("cannot tell {what}: this process may not look"), AS_ROOT)
    }

    /// Whether it concerns nothing but eBPF.
    fn is_of_ebpf(&self) -> bool {
        let places = ["bpffs", "cgroup-layout", "cgroup", "cgroup-pods", "netns-cookie"];
        self.name.starts_with("ebpf-") || places.contains(&self.name)
    }

    /// An error becomes a warning.
    fn soften(&mut self) {
        self.level = self.level.min(Level::Warning);
    }

    /// Adds the kernel's words, without their first line if `says` has it already.
    fn with_words(mut self, words: &str) -> Self {
        let mut lines: Vec<&str> = words.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        if lines.first().is_some_and(|first| self.says.ends_with(first)) {
            lines.remove(0);
        }
        // What the verifier says last is why.
        let skipped = lines.len().saturating_sub(MOST_WORDS);
        self.words = lines.into_iter().skip(skipped).map(str::to_owned).collect();
        self
    }
}

/// Puts a name to others of which the same was said.
fn said_of<'a>(said: &mut Vec<(&'a str, Vec<&'a str>)>, words: &'a str, name: &'a str) {
    match said.iter_mut().find(|(other, _)| *other == words) {
        Some((_, names)) => names.push(name),
        None => said.push((words, vec![name])),
    }
}

fn first_line(words: &str) -> &str {
    words.lines().next().unwrap_or_default()
}

/// "1 pod", "2 pods".
fn number(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests;
