//! A container runtime's half of CNI, by the specification: what executes a conflist's plugins.
//!
//! Owns: the environment and standard input of each plugin, the order of the chain, the passing on of
//! results, and their keeping for CHECK and DEL. Never does: anything in place of a plugin.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::netns::NetNs;

/// A conflist.
#[derive(Clone, Debug, Deserialize)]
pub struct NetworkList {
    /// Name of the network.
    pub name: String,
    /// Version of the specification.
    #[serde(rename = "cniVersion")]
    pub version: String,
    plugins: Vec<Map<String, Value>>,
}

/// A pod's attachment to a network, as the runtime names it.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`.
    pub netns: PathBuf,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_ARGS`.
    pub arguments: Vec<(String, String)>,
}

/// What ADD made.
#[derive(Clone, Debug)]
pub struct Added {
    /// The last plugin's result.
    pub result: Value,
    /// How long each plugin took, as a whole process.
    pub took: Vec<(String, Duration)>,
}

/// A plugin's error, in the specification's form.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, thiserror::Error)]
#[error("code {code}: {msg}: {details}")]
pub struct PluginError {
    /// 0-99 of the specification, 100 and above the plugin's own.
    pub code: u32,
    /// One line.
    pub msg: String,
    /// More of it.
    #[serde(default)]
    pub details: String,
}

/// Executes plugins.
#[derive(Debug)]
pub struct Runtime<'a> {
    /// Where plugins are looked for, in this order.
    pub path: Vec<PathBuf>,
    /// The node's namespace, which plugins run in.
    pub node: &'a NetNs,
}

impl NetworkList {
    /// Reads a conflist.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("decode {}", path.display()))
    }

    fn plugin_input(&self, plugin: &Map<String, Value>, previous: Option<&Value>) -> Value {
        let mut input = plugin.clone();
        input.insert("name".to_owned(), self.name.clone().into());
        input.insert("cniVersion".to_owned(), self.version.clone().into());
        if let Some(previous) = previous {
            input.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(input)
    }
}

impl<'a> Runtime<'a> {
    /// A runtime on a node: plugins of `CNI_PATH` (default `/usr/lib/cni`) and of `directories`.
    pub fn new(node: &'a NetNs, directories: &[&Path]) -> Self {
        let standard = std::env::var_os("CNI_PATH").unwrap_or_else(|| "/usr/lib/cni".into());
        let path = std::env::split_paths(&standard).chain(directories.iter().map(|path| path.to_path_buf()));
        Self { path: path.collect(), node }
    }

    /// Attaches a pod: every plugin gets the result of the one before.
    pub fn add(&self, list: &NetworkList, attachment: &Attachment) -> Result<Added> {
        let mut result = None;
        let mut took = Vec::new();
        for plugin in &list.plugins {
            let start = Instant::now();
            let input = list.plugin_input(plugin, result.as_ref());
            let output = self.execute("ADD", plugin, &input, attachment)?;
            took.push((kind(plugin)?.to_owned(), start.elapsed()));
            result = Some(serde_json::from_slice(&output).context("decode the result of ADD")?);
        }
        Ok(Added { result: result.context("a conflist without plugins")?, took })
    }

    /// Asks every plugin whether the pod is as ADD left it.
    pub fn check(&self, list: &NetworkList, attachment: &Attachment, result: &Value) -> Result<()> {
        for plugin in &list.plugins {
            self.execute("CHECK", plugin, &list.plugin_input(plugin, Some(result)), attachment)?;
        }
        Ok(())
    }

    /// Detaches a pod, last plugin first. Goes on after a failure and reports all of them.
    pub fn del(&self, list: &NetworkList, attachment: &Attachment, result: Option<&Value>) -> Result<()> {
        let detach = |plugin| {
            self.execute("DEL", plugin, &list.plugin_input(plugin, result), attachment).map(drop).err()
        };
        let failures: Vec<_> = list.plugins.iter().rev().filter_map(detach).collect();
        if failures.is_empty() {
            return Ok(());
        }
        let texts: Vec<_> = failures.iter().map(|failure| format!("{failure:#}")).collect();
        Err(anyhow!(texts.join("; ")))
    }

    fn execute(
        &self,
        command: &str,
        plugin: &Map<String, Value>,
        input: &Value,
        attachment: &Attachment,
    ) -> Result<Vec<u8>> {
        let kind = kind(plugin)?;
        let what = || format!("{command} of {kind} for {}", attachment.container_id);
        let executable = self.find(kind)?;
        let input = serde_json::to_vec(input)?;
        let output = self.node.run(|| {
            let mut process = self.process(&executable, command, attachment)?;
            process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            run(&mut process, &input)
        })?;
        let output = output.with_context(what)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let error = serde_json::from_slice::<PluginError>(&output.stdout)
            .map_or_else(|_not_json| anyhow!("{}, and wrote {output:?}", output.status), anyhow::Error::from);
        Err(error).with_context(what)
    }

    fn process(&self, executable: &Path, command: &str, attachment: &Attachment) -> Result<Command> {
        let arguments = attachment.arguments.iter().map(|(name, value)| format!("{name}={value}"));
        let mut process = Command::new(executable);
        process.env("CNI_COMMAND", command);
        process.env("CNI_CONTAINERID", &attachment.container_id);
        process.env("CNI_NETNS", &attachment.netns);
        process.env("CNI_IFNAME", &attachment.interface);
        process.env("CNI_ARGS", arguments.collect::<Vec<_>>().join(";"));
        process.env("CNI_PATH", std::env::join_paths(&self.path).context("a colon in a plugin directory")?);
        process.current_dir("/");
        Ok(process)
    }

    fn find(&self, kind: &str) -> Result<PathBuf> {
        let found = self.path.iter().map(|directory| directory.join(kind)).find(|path| path.is_file());
        let Some(path) = found else {
            bail!(
                "no plugin {kind} in {:?} (package containernetworking-plugins, or set CNI_PATH)",
                self.path
            );
        };
        Ok(path)
    }
}

fn run(process: &mut Command, input: &[u8]) -> Result<Output> {
    let mut child = process.spawn().context("start the plugin")?;
    // A plugin that fails early does not read to the end; its error says more than ours would.
    child.stdin.take().and_then(|mut stdin| stdin.write_all(input).ok());
    child.wait_with_output().context("wait for the plugin")
}

fn kind(plugin: &Map<String, Value>) -> Result<&str> {
    plugin.get("type").and_then(Value::as_str).context("a plugin of the conflist has no type")
}
