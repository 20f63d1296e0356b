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
use crate::envoy::{Direction, Entry};
use crate::http::{self, Headers};
use crate::launch::{Identity, Launch};
use crate::netns::NetNs;
use crate::process::Process;
use crate::prometheus::{self, Sample};
use crate::{envoy, scratch, wait};

/// A directory for an agent's `--proxy-dir`, which anybody may pass through.
pub fn directory() -> Result<TempDir> {
    let directory = scratch::directory()?;
    fs::set_permissions(directory.path(), Permissions::from_mode(0o711)).context("let Envoy pass")?;
    Ok(directory)
}

/// A header of which the access log shows the value, to recognise a request by.
pub const MARK: &str = "x-request-id";

/// A running one.
#[derive(Debug)]
pub struct NodeProxy {
    process: Process,
    admin: PathBuf,
}

impl NodeProxy {
    /// Starts one in a netns that is no pod's, and a cgroup below that which the agent is attached to, and waits until it
    /// is ready. `place` is the agent's `--proxy-dir`.
    pub fn start(place: &Path, netns: &NetNs, cgroup: &Cgroup) -> Result<Self> {
        Self::start_as(Identity::proxy(), place, netns, cgroup)
    }

    /// The same as somebody else, with the same capability.
    pub fn start_as(who: Identity, place: &Path, netns: &NetNs, cgroup: &Cgroup) -> Result<Self> {
        Self::launch_as(who, place, Launch::new().in_netns(netns).in_cgroup(cgroup))
    }

    /// The same, launched otherwise. Its log is in `place`, too.
    pub fn launch(place: &Path, launch: Launch) -> Result<Self> {
        Self::launch_as(Identity::proxy(), place, launch)
    }

    fn launch_as(who: Identity, place: &Path, launch: Launch) -> Result<Self> {
        let launch = launch.with_identity(who);
        let mut command = launch.keeping(CapabilitySet::SYS_ADMIN).command(envoy::binary()?)?;
        command.arg("--config-path").arg(place.join("envoy.json"));
        // One that may restart hot asks to end with its parent, which an agent's or a demo's may not.
        command.args(["--concurrency", "2", "--disable-hot-restart", "--log-level", "warning"]);
        // What a pod that has gone leaves open lasts as long, in place of ten minutes.
        command.args(["--drain-time-s", "2", "--file-flush-interval-msec", "100"]);
        let mut process = Process::start("node-proxy", command, &place.join("envoy.log"))?;
        let admin = place.join("admin.sock");
        process.wait_ready(|| {
            let ready = ask(&admin, "/ready")?;
            ensure!(ready.starts_with("LIVE"), "/ready says {ready}");
            Ok(())
        })?;
        Ok(Self { process, admin })
    }

    /// Its process.
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// The same, for waiting for its end.
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

    /// The access log's entry of a pod's request with this [`MARK`], if it is there already.
    pub fn find_entry(&self, pod: &str, direction: Direction, mark: &str) -> Result<Option<Entry>> {
        let expected = [("pod", pod), ("direction", direction.name()), ("request_id", mark)];
        let log = self.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let found = lines.find(|line| expected.iter().all(|(name, value)| line[*name] == **value));
        found.map(|line| entry(direction, &line)).transpose()
    }

    /// What it has counted.
    pub fn counted(&self) -> Result<Vec<Sample>> {
        prometheus::parse(&self.admin("/stats/prometheus?usedonly")?)
    }
}

/// Asks an admin interface.
pub fn ask(socket: &Path, path: &str) -> Result<String> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    let response = http::get(&mut stream, "envoy", path, &Headers::new())?;
    String::from_utf8(response.body).context("its answer is no text")
}

/// What a line of the access log says, in the words of a sidecar's.
fn entry(direction: Direction, line: &Value) -> Result<Entry> {
    let text = |name: &str| line[name].as_str().map(ToOwned::to_owned);
    let address = |name: &str| text(name).and_then(|text| text.parse().ok());
    Ok(Entry {
        direction,
        mark: text("request_id"),
        status: serde_json::from_value(line["status"].clone()).context("its status")?,
        flags: text("flags"),
        client: address("source"),
        original_destination: address("destination"),
        cluster: None,
        upstream: address("upstream"),
        upstream_source: address("upstream_source"),
    })
}
