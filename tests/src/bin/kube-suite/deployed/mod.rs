//! veer as its users have it: the image, brought to a node by the manifests of the chart, run by kubelet.
//!
//! Owns: the node with the DaemonSet, who its agent is, and what is asked by `exec`. Never does: put a plugin or a
//! configuration in its place; the agent does.

pub(crate) mod commands;
pub(crate) mod installed;
pub(crate) mod load;
pub(crate) mod removed;
pub(crate) mod shared;
pub(crate) mod trouble;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Output;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use veer_tests::kube::client::{Client, LIMIT};
use veer_tests::kube::manifests::Manifests;
use veer_tests::kube::node::{CONFLIST, Node};
use veer_tests::wait;

use crate::stage::Stage;

/// What the suite is given to install: `cargo xtask test kube` makes it.
const DEPLOYMENT: &str = "VEER_DEPLOYMENT";
const DAEMON_SET: &str = "/apis/apps/v1/namespaces/veer-system/daemonsets/veer";
const AGENTS: &str = "/api/v1/namespaces/veer-system/pods";

/// A node on which veer was installed from its manifests.
pub(crate) struct Deployed {
    pub(crate) stage: Stage,
    /// The conflist as its vendor wrote it.
    original: Vec<u8>,
    manifests: Manifests,
}

/// The pod of the agent that runs.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Agent {
    pod: String,
    uid: String,
    /// As the runtime names it.
    container: String,
    /// The image that it was made of.
    image: String,
}

impl Deployed {
    /// Makes the node, and installs.
    pub(crate) fn set() -> Result<Self> {
        Self::set_on(Node::start()?)
    }

    /// The same on a node that is there.
    pub(crate) fn set_on(node: Node) -> Result<Self> {
        let stage = Stage::bare(node);
        for image in ["veer.tar", "veer-next.tar"] {
            stage.node.import(&file(image)?)?;
        }
        let manifests = Manifests::read(&file("veer.yaml")?)?;
        let mut deployed = Self { stage, original: Vec::new(), manifests };
        deployed.original = fs::read(deployed.conflist()).context("read the conflist")?;
        deployed.install()?;
        Ok(deployed)
    }

    /// What `kubectl apply` and `kubectl rollout status` do.
    fn install(&self) -> Result<()> {
        self.manifests.apply(self.client())?;
        self.wait_rolled_out()
    }

    fn client(&self) -> &Client {
        self.stage.client()
    }

    fn conflist(&self) -> PathBuf {
        self.stage.node.directory().join("net.d").join(CONFLIST)
    }

    /// Whether the file that the runtime uses has us in it.
    fn is_chained(&self) -> bool {
        fs::read_to_string(self.conflist()).is_ok_and(|text| text.contains("\"veer-cni\""))
    }

    /// Writes it anew as its vendor did, without us.
    fn rewrite(&self) -> Result<()> {
        self.stage.node.write_conflist(&[])
    }

    /// Waits until each node has the newest pod, and it is ready.
    fn wait_rolled_out(&self) -> Result<()> {
        let waited = self.client().wait("the DaemonSet to be rolled out", DAEMON_SET, |daemon_set| {
            let status = daemon_set.get("status")?;
            let is_seen = status.get("observedGeneration")? == daemon_set.pointer("/metadata/generation")?;
            let are_one = ["desiredNumberScheduled", "updatedNumberScheduled", "numberReady"]
                .iter()
                .all(|count| status[count] == 1);
            (is_seen && are_one).then_some(())
        });
        waited.with_context(|| self.log())
    }

    /// Waits until there is an agent that is ready; and who it is.
    fn agent(&self) -> Result<Agent> {
        let found = self.client().wait("a ready pod of the agent", AGENTS, |pods| {
            let items = pods["items"].as_array()?;
            items.iter().find(|pod| pod.pointer("/metadata/deletionTimestamp").is_none()).and_then(ready)
        });
        found.with_context(|| self.log())
    }

    /// What agents have written, as kubelet keeps it.
    pub(crate) fn log(&self) -> String {
        let directory = self.stage.node.directory().join("log/pods");
        let pods = fs::read_dir(directory).into_iter().flatten().flatten();
        let of_agents = pods.filter(|pod| pod.file_name().to_string_lossy().starts_with("veer-system_"));
        let files = of_agents.flat_map(|pod| fs::read_dir(pod.path().join("agent")).into_iter().flatten());
        let texts = files.flatten().map(|file| fs::read_to_string(file.path()).unwrap_or_default());
        let text = texts.collect::<String>();
        let kubelet = self.stage.node.kubelet_log();
        let is_about_us = |line: &&str| line.contains("veer-system") && line.starts_with(['E', 'W']);
        let said = kubelet.lines().filter(is_about_us);
        let said: Vec<_> = said.collect();
        let last = said.get(said.len().saturating_sub(20)..).unwrap_or_default().join("\n");
        format!("the agents said:\n{text}\nkubelet said:\n{last}")
    }

    /// `kubectl exec` in the agent's pod.
    fn exec(&self, arguments: &[&str]) -> Result<Output> {
        let agent = self.agent()?;
        let mut command = self.stage.node.exec(&agent.container, arguments)?;
        command.output().with_context(|| format!("run {} in {}", arguments.join(" "), agent.pod))
    }

    /// The same, and what it wrote as JSON.
    fn exec_json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.exec(&[arguments, &["--json"]].concat())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}: {errors}{text}", arguments.join(" "), output.status);
        serde_json::from_str(&text).with_context(|| format!("{} wrote {text}", arguments.join(" ")))
    }

    /// What the node says of itself: status and message of `VeerReady`.
    fn wait_condition(&self, status: &str) -> Result<String> {
        let path = format!("/api/v1/nodes/{}", veer_tests::kube::node::NAME);
        let found = self.client().wait(&format!("VeerReady to be {status}"), &path, |node| {
            let conditions = node.pointer("/status/conditions")?.as_array()?;
            let ours = conditions.iter().find(|one| one["type"] == "VeerReady" && one["status"] == status)?;
            ours["message"].as_str().map(str::to_owned)
        });
        found.with_context(|| self.log())
    }

    /// Waits until the plugin is in the file that the runtime uses.
    fn wait_chained(&self) -> Result<()> {
        let waited = wait::until("veer to be in the chain", LIMIT, || self.is_chained());
        waited.with_context(|| self.log())
    }
}

/// A pod of which each container is ready.
fn ready(pod: &Value) -> Option<Agent> {
    let status = pod.pointer("/status/containerStatuses/0")?;
    let text = |value: &Value, pointer: &str| value.pointer(pointer)?.as_str().map(str::to_owned);
    (status["ready"] == true).then_some(Agent {
        pod: text(pod, "/metadata/name")?,
        uid: text(pod, "/metadata/uid")?,
        container: text(status, "/containerID")?.strip_prefix("containerd://")?.to_owned(),
        image: text(pod, "/spec/containers/0/image")?,
    })
}

/// A file of the deployment.
fn file(name: &str) -> Result<PathBuf> {
    let Some(directory) = env::var_os(DEPLOYMENT) else {
        bail!("{DEPLOYMENT} is not set: cargo xtask test kube sets it");
    };
    Ok(PathBuf::from(directory).join(name))
}
