//! The real plugin, `veer-cni`, as a runtime executes it: a process for each command.
//!
//! Owns: its environment and input, those of a plugin that is behind a bridge in its conflist, and the reading
//! of its output. Never does: anything in place of the plugin. [`cni`](crate::cni) executes whole conflists.

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use veer_common::cni::Attachment;

use crate::cni::PluginError;
use crate::launch::veer_binary;
use crate::pod::ROUTER_V4;

/// The plugin of a node whose agent has this run directory.
#[derive(Clone, Debug)]
pub struct Plugin {
    executable: PathBuf,
    run_dir: PathBuf,
}

/// A plugin that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    started: Instant,
}

/// How a plugin ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// With success, after this time from the start of the process.
    Done(Duration),
    /// With an error in CNI's form.
    Refused(PluginError),
}

impl Plugin {
    /// `VEER_CNI_BIN`, talking to the agent below `run_dir`.
    pub fn new(run_dir: &Path) -> Result<Self> {
        Ok(Self { executable: veer_binary("VEER_CNI_BIN", "veer-cni")?, run_dir: run_dir.to_owned() })
    }

    /// Starts it and gives it its input.
    pub fn start(&self, command: &str, attachment: &Attachment, address: Ipv4Addr) -> Result<Running> {
        let mut process = Command::new(&self.executable);
        process.env_clear();
        process.env("CNI_COMMAND", command).env("CNI_CONTAINERID", &attachment.container_id);
        process.env("CNI_NETNS", &attachment.netns).env("CNI_IFNAME", &attachment.interface);
        if let Some(pod) = &attachment.pod {
            let (namespace, name) = (&pod.namespace, &pod.name);
            // An empty one is none.
            let uid = pod.uid.as_deref().unwrap_or_default();
            let arguments = format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={uid}");
            process.env("CNI_ARGS", arguments);
        }
        process.env("CNI_PATH", self.executable.parent().unwrap_or(Path::new("/")));
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let input = configuration(&self.run_dir, attachment, address).to_string();
        let started = Instant::now();
        let mut child = process.spawn().with_context(|| format!("start {}", self.executable.display()))?;
        // A plugin that fails early does not read to the end; its error says more than ours would.
        child.stdin.take().and_then(|mut stdin| stdin.write_all(input.as_bytes()).ok());
        Ok(Running { child, started })
    }

    /// Runs it to its end.
    pub fn run(&self, command: &str, attachment: &Attachment, address: Ipv4Addr) -> Result<Ended> {
        self.start(command, attachment, address)?.wait()
    }

    /// Runs it to its end, which is to be success; gives back how long it took.
    pub fn succeed(&self, command: &str, attachment: &Attachment, address: Ipv4Addr) -> Result<Duration> {
        let what = || format!("{command} of {}", attachment.container_id);
        match self.run(command, attachment, address).with_context(what)? {
            Ended::Done(took) => Ok(took),
            Ended::Refused(error) => Err(error).with_context(what),
        }
    }
}

impl Running {
    /// Waits for its end.
    pub fn wait(self) -> Result<Ended> {
        let output = self.child.wait_with_output().context("wait for the plugin")?;
        let took = self.started.elapsed();
        if output.status.success() {
            return Ok(Ended::Done(took));
        }
        match serde_json::from_slice(&output.stdout) {
            Ok(error) => Ok(Ended::Refused(error)),
            Err(_not_json) => bail!("the plugin ended with {}: {output:?}", output.status),
        }
    }

    /// Kills it (SIGKILL) once it has run for so long, and waits. The time may be shorter than any sleep.
    pub fn kill_after(mut self, time: Duration) -> Result<()> {
        while self.started.elapsed() < time {
            std::hint::spin_loop();
        }
        self.child.kill().context("kill the plugin")?;
        self.child.wait().context("wait for the plugin")?;
        Ok(())
    }
}

/// The plugin's entry of a conflist, behind a bridge that has given the pod its address.
fn configuration(run_dir: &Path, attachment: &Attachment, address: Ipv4Addr) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": attachment.network,
        "type": "veer-cni",
        "runDir": run_dir,
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": attachment.netns}],
            "ips": [{"address": format!("{address}/24"), "gateway": ROUTER_V4, "interface": 1}],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dns": {},
        },
    })
}
