//! A node whose agent starts the node's proxy itself.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::agent::Agent;
use crate::cgroup::Cgroup;
use crate::launch::Launch;
use crate::pod::{TestPod, World};
use crate::{envoy, node_proxy, scratch, wait};

/// Flags of Envoy, so that its log is there at once, and one that was followed by another goes within seconds.
const FLAGS: &str = "--concurrency 2 --file-flush-interval-msec 100 --log-level warning --drain-time-s 2 \
                     --parent-shutdown-time-s 6";

/// The node. What is dropped first is named first: the agent, and then the cgroup with all Envoys in it.
#[derive(Debug)]
pub struct Supervised {
    /// Its agent.
    pub agent: Agent,
    /// Where its pods are.
    pub world: World,
    cgroup: Cgroup,
    place: Place,
}

/// Where agent and Envoys meet, and what they leave in the machine's memory.
#[derive(Debug)]
struct Place(TempDir);

impl Supervised {
    /// With the Envoy of the tests, and waits until that is live.
    pub fn start(further: &[&str]) -> Result<Self> {
        let node = Self::with_command(&format!("{} {FLAGS}", envoy::binary()?.display()), further)?;
        node.wait_live(|_pid| true)?;
        Ok(node)
    }

    /// With a command, which need not work.
    pub fn with_command(command: &str, further: &[&str]) -> Result<Self> {
        let cgroup = Cgroup::new()?;
        let place = Place(node_proxy::directory()?);
        let directory = format!("--proxy-dir={}", place.directory().display());
        let command = format!("--proxy-command={command}");
        let arguments = [&[directory.as_str(), &command], further].concat();
        let agent = Agent::start_with(&cgroup, Launch::new(), &arguments)?;
        Ok(Self { agent, world: World::new()?, cgroup, place })
    }

    /// A pod that the node's proxy serves.
    pub fn pod(&self, name: &str) -> Result<TestPod> {
        let pod = TestPod::new(&self.world, &self.cgroup, name)?;
        self.agent.enrol_as(&pod, &pod.manifest().with_node_proxy())?;
        Ok(pod)
    }

    /// Envoy's cgroup.
    pub fn proxys_cgroup(&self) -> PathBuf {
        self.cgroup.path().join("veer-proxy")
    }

    /// What `veer status` says of the process.
    pub fn process(&self) -> Result<Value> {
        let status = self.agent.json(&["status"])?;
        Ok(status.pointer("/agent/nodeProxyProcess").cloned().unwrap_or_default())
    }

    /// Waits until an Envoy is live whose process `is_it`, and gives that back.
    pub fn wait_live(&self, is_it: impl Fn(u32) -> bool) -> Result<u32> {
        let live = || {
            let process = self.process()?;
            let is_live = process.get("phase").is_some_and(|phase| phase == "live");
            let pid = process.get("pid").and_then(Value::as_u64).and_then(|pid| u32::try_from(pid).ok());
            match pid.filter(|pid| is_live && is_it(*pid)) {
                Some(pid) => Ok(pid),
                None => bail!("it is {process}"),
            }
        };
        wait::until_ok("the node's proxy to be live", wait::LIMIT, live)
            .with_context(|| format!("the agent's log:\n{}", self.agent.log()))
    }

    /// Waits until so many Envoys have found the agent.
    pub fn wait_connected(&self, count: u64) -> Result<()> {
        wait::until_ok("the Envoys to connect", wait::LIMIT, || {
            let status = self.agent.json(&["status"])?;
            let connected = status.pointer("/agent/nodeProxy/connected").and_then(Value::as_u64);
            ensure!(connected == Some(count), "{connected:?} are");
            anyhow::Ok(())
        })
    }

    /// Sends a signal to a process that is the node's.
    pub fn signal(&self, pid: u32, signal: Signal) -> Result<()> {
        let processes = fs::read_to_string(self.proxys_cgroup().join("cgroup.procs"))?;
        ensure!(processes.lines().any(|line| line == pid.to_string()), "{pid} is none of the node's");
        kill(Pid::from_raw(i32::try_from(pid)?), signal).with_context(|| format!("{signal} to {pid}"))
    }

    /// What Envoy's admin interface says.
    pub fn admin(&self, path: &str) -> Result<String> {
        node_proxy::ask(&self.place.directory().join("admin.sock"), path)
    }

    /// The directory that is the Envoys'.
    pub fn envoys(&self) -> PathBuf {
        self.place.directory().join("envoy")
    }
}

impl Place {
    fn directory(&self) -> PathBuf {
        self.0.path().join("proxy")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Killed with its cgroup, a shim has not removed it. Its name is in the names of the sockets.
        let entries = fs::read_dir(self.directory().join("envoy")).into_iter().flatten().flatten();
        for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
            if let Some(id) = name.strip_prefix("hot-restart_parent_").and_then(|id| id.get(..id.len() - 1)) {
                // Two sockets may be of one.
                drop(fs::remove_file(format!("/dev/shm/envoy_shared_memory_{id}0")));
            }
        }
    }
}

/// An Envoy of its own file, which can become another one.
#[derive(Debug)]
pub struct OwnEnvoy {
    directory: TempDir,
}

impl OwnEnvoy {
    /// Copies that of the tests.
    pub fn copy() -> Result<Self> {
        let own = Self { directory: scratch::directory()? };
        fs::copy(envoy::binary()?, own.path()).context("copy Envoy")?;
        Ok(own)
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("envoy")
    }

    /// The command with it.
    pub fn command(&self) -> String {
        format!("{} {FLAGS}", self.path().display())
    }

    /// Another build, as far as a file's time tells.
    pub fn become_another(&self) -> Result<()> {
        let file = File::open(self.path()).context("open Envoy")?;
        file.set_modified(SystemTime::now()).context("touch Envoy")
    }

    /// Becomes this file.
    pub fn replace(&self, with: &Path) -> Result<()> {
        let draft = self.directory.path().join("draft");
        fs::copy(with, &draft).context("copy a program")?;
        fs::rename(draft, self.path()).context("replace Envoy")
    }
}
