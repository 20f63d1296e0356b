//! A plugin on a node, recorded: its file is `cni-recorder`, which runs it, and writes down what the runtime gave it, what
//! it answered and how long its process took.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use super::node::Node;
use crate::launch::kit_binary;
use crate::wait;

/// What was asked once.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Record {
    /// `CNI_…`
    environment: BTreeMap<String, String>,
    /// The configuration that it was given.
    input: String,
    /// The plugin's whole process.
    pub microseconds: u64,
    /// How it ended.
    pub status: Option<i32>,
}

impl Record {
    /// `CNI_COMMAND`.
    pub fn verb(&self) -> &str {
        self.environment.get("CNI_COMMAND").map_or("", String::as_str)
    }

    /// Whether it was this plugin that was asked.
    pub fn is_of(&self, plugin: &str) -> bool {
        let input: Option<Value> = serde_json::from_str(&self.input).ok();
        input.and_then(|input| Some(input.get("type")? == plugin)).unwrap_or(false)
    }

    /// The pod's netns, as a path on the node.
    pub fn netns(&self) -> Option<&str> {
        self.environment.get("CNI_NETNS").map(String::as_str)
    }

    /// Whether it is an ADD for a pod with this in its name.
    pub fn adds(&self, name: &str) -> bool {
        let has = |variable: &str, text: &str| {
            self.environment.get(variable).is_some_and(|value| value.contains(text))
        };
        has("CNI_COMMAND", "ADD") && has("CNI_ARGS", name)
    }
}

/// Puts a plugin into the node's directory under this name, and the recorder before it.
pub fn install(node: &Node, plugin: &Path, name: &str) -> Result<()> {
    place(node, plugin, &format!("{name}.real"))?;
    place(node, &kit_binary("cni-recorder")?, name)
}

/// Puts a program into the node's directory of plugins.
pub fn place(node: &Node, program: &Path, name: &str) -> Result<()> {
    let file = node.directory().join("bin").join(name);
    fs::copy(program, &file).with_context(|| format!("copy {}", program.display()))?;
    let everybody = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&file, everybody).with_context(|| format!("let everybody run {}", file.display()))
}

/// All that was asked, in no order.
pub fn records(node: &Node) -> Result<Vec<Record>> {
    let directory = directory(node);
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("list {}", directory.display()))?,
    };
    entries
        .map(|entry| {
            let path = entry?.path();
            let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            serde_json::from_slice(&text).with_context(|| format!("decode {}", path.display()))
        })
        .collect()
}

/// Forgets what was asked so far. The runtime may still ask: for the DEL of a pod that the API has forgotten.
pub fn forget(node: &Node) -> Result<()> {
    let directory = directory(node);
    wait::until_ok("what was asked to be forgotten", wait::LIMIT, || match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("remove {}", directory.display())),
    })
}

fn directory(node: &Node) -> PathBuf {
    node.directory().join("bin/.records")
}
