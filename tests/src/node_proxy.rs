//! The real Envoy as the node's proxy: 1337:1337 with CAP_SYS_ADMIN, told everything by the agent.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::thread::CapabilitySet;
use serde_json::Value;
use tempfile::TempDir;

use crate::cgroup::Cgroup;
use crate::http::{self, Headers};
use crate::launch::{Identity, Launch};
use crate::netns::NetNs;
use crate::process::Process;
use crate::{envoy, scratch, wait};

/// A directory for an agent's `--proxy-dir`, which anybody may pass through.
pub fn directory() -> Result<TempDir> {
    let directory = scratch::directory()?;
    fs::set_permissions(directory.path(), Permissions::from_mode(0o711)).context("let Envoy pass")?;
    Ok(directory)
}

/// A running one.
#[derive(Debug)]
pub struct NodeProxy {
    process: Process,
    admin: PathBuf,
    directory: TempDir,
}

impl NodeProxy {
    /// Starts one in a netns that is no pod's, and a cgroup below that which the agent is attached to, and waits until it
    /// is ready. `place` is the agent's `--proxy-dir`.
    pub fn start(place: &Path, netns: &NetNs, cgroup: &Cgroup) -> Result<Self> {
        let directory = scratch::directory()?;
        let launch = Launch::new().in_netns(netns).in_cgroup(cgroup).with_identity(Identity::proxy());
        let mut command = launch.keeping(CapabilitySet::SYS_ADMIN).command(envoy::binary()?)?;
        command.arg("--config-path").arg(place.join("envoy.json"));
        command.args(["--concurrency", "2", "--use-dynamic-base-id", "--log-level", "warning"]);
        // What a pod that has gone leaves open lasts as long, in place of ten minutes.
        command.args(["--drain-time-s", "2"]);
        let mut process = Process::start("node-proxy", command, &directory.path().join("envoy.log"))?;
        let admin = place.join("admin.sock");
        process.wait_ready(|| {
            let ready = ask(&admin, "/ready")?;
            ensure!(ready.starts_with("LIVE"), "/ready says {ready}");
            Ok(())
        })?;
        Ok(Self { process, admin, directory })
    }

    /// Its process.
    pub const fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Everything that it has logged, its access log included.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// What its admin interface says.
    pub fn admin(&self, path: &str) -> Result<String> {
        ask(&self.admin, path)
    }

    /// Waits for the access log's line that `is_it`.
    pub fn entry(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        wait::until_some(&format!("Envoy to log {what}"), wait::LIMIT, || {
            let log = self.log();
            let mut entries = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            entries.find(|entry| is_it(entry))
        })
    }

    /// Its directory, which goes with it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

/// Asks an admin interface.
fn ask(socket: &PathBuf, path: &str) -> Result<String> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    let response = http::get(&mut stream, "envoy", path, &Headers::new())?;
    String::from_utf8(response.body).context("its answer is no text")
}
