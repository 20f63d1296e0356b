//! The real Envoy as a pod's sidecar: 1337:1337, no capability, listeners shaped as Istio shapes them; for TPROXY as
//! 0:1337 with NET_ADMIN.

mod access_log;
mod agent;
mod bootstrap;

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::{Gid, Uid, chown};
use rustix::thread::CapabilitySet;
use serde::Deserialize;

pub use access_log::{Direction, Entry};
use bootstrap::Inbound;

use crate::http::{self, Headers, Response};
use crate::launch::{Identity, Launch, executable};
use crate::netns::NetNs;
use crate::process::Process;
use crate::wait;

/// Its admin interface, inside of the pod.
pub const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);
/// Where Istio's agent, `pilot-agent`, answers in a proxy's container: health, metrics, probes of the app.
pub const AGENT: u16 = 15020;
/// Where the proxy says whether it is ready.
pub const STATUS: u16 = 15021;
/// Where the proxy's own metrics are.
pub const TELEMETRY: u16 = 15090;
/// Header that the access log shows, to recognise a request by.
pub const MARK: &str = "x-veer-request";

/// What a sidecar is started with.
#[derive(Clone, Debug)]
pub struct Sidecar<'a> {
    /// The pod's namespace.
    pub netns: &'a NetNs,
    /// Where and how it is launched: in the pod's netns and cgroup. The identity is set here.
    pub launch: Launch,
    /// An empty directory for its configuration and logs.
    pub directory: &'a Path,
    /// Ports that are spoken to with HTTP; all others are TCP.
    pub http_ports: &'a [u16],
    /// Worker threads, each with its own listening sockets.
    pub workers: u32,
}

/// A running Envoy.
#[derive(Debug)]
pub struct Envoy {
    process: Process,
    directory: PathBuf,
}

/// Its whole configuration, for whoever starts it otherwise; `access_log` is a path where it runs. It is that of a
/// proxy beside a pilot-agent ([`STATUS`], [`TELEMETRY`]), and of a destination rule with which each request to
/// another pod has a connection of its own (`maxRequestsPerConnection: 1`): so a Service chooses for each.
pub fn configuration(access_log: &Path, http_ports: &[u16]) -> serde_json::Value {
    let bootstrap = bootstrap::bootstrap(access_log, http_ports, Inbound::Redirected);
    agent::beside(agent::one_request_each(bootstrap))
}

/// The same for a gateway, which listens on `port` and asks `upstream`.
pub fn gateway_configuration(access_log: &Path, port: u16, upstream: SocketAddr) -> serde_json::Value {
    agent::beside(bootstrap::gateway(access_log, port, upstream))
}

/// What is in an access log.
pub fn read_access_log(path: &Path) -> Result<Vec<Entry>> {
    access_log::read(path)
}

impl Sidecar<'_> {
    /// Starts it and waits until it is ready.
    pub fn start(self) -> Result<Envoy> {
        self.start_as(&Identity::proxy(), CapabilitySet::empty(), Inbound::Redirected)
    }

    /// The same for a pod with TPROXY: it takes what is for others' addresses, and shows the app its client's.
    pub fn start_transparent(self) -> Result<Envoy> {
        let proxy = Identity::new(0, Identity::proxy().gid);
        self.start_as(&proxy, CapabilitySet::NET_ADMIN, Inbound::Transparent)
    }

    fn start_as(self, proxy: &Identity, keeps: CapabilitySet, inbound: Inbound) -> Result<Envoy> {
        let Identity { uid, gid, .. } = *proxy;
        let directory = self.directory.to_owned();
        let configuration = directory.join("envoy.json");
        let bootstrap = bootstrap::bootstrap(&access_log::path(&directory), self.http_ports, inbound);
        fs::write(&configuration, serde_json::to_vec_pretty(&bootstrap)?)
            .with_context(|| format!("write {}", configuration.display()))?;
        chown(&directory, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .with_context(|| format!("give {} to the proxy", directory.display()))?;
        let mut command = self.launch.with_identity(proxy.clone()).keeping(keeps).command(binary()?)?;
        command.arg("--config-path").arg(&configuration);
        command.arg("--concurrency").arg(self.workers.to_string());
        // Several on one machine, none of which restarts hot.
        command.arg("--disable-hot-restart");
        command.args(["--file-flush-interval-msec", "100", "--log-level", "warning"]);
        command.args(["--service-node", "sidecar", "--service-cluster", "demo"]);
        let mut process = Process::start("envoy", command, &directory.join("envoy.log"))?;
        process.wait_ready(|| {
            let ready = self.netns.run(|| http::get_from(ADMIN, "/ready", &Headers::new()))??;
            if ready.status == 200 { Ok(()) } else { bail!("/ready says {}", ready.status) }
        })?;
        Ok(Envoy { process, directory })
    }
}

impl Envoy {
    /// Its process.
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// Asks it to end and waits.
    pub fn stop(&mut self) -> Result<()> {
        self.process.stop().map(drop)
    }

    /// Its log, which is empty as long as nothing is wrong.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its access log, one entry for each request or TCP connection that has ended, oldest first.
    pub fn access_log(&self) -> Result<Vec<Entry>> {
        access_log::read(&access_log::path(&self.directory))
    }

    /// Waits for the access log's entry of a request with this [`MARK`]; it is written within 100 ms of
    /// the request's end.
    pub fn entry(&self, direction: Direction, mark: &str) -> Result<Entry> {
        let what = format!("Envoy to log {direction} request {mark}");
        let found = || self.find_entry(direction, mark);
        wait::until_some(&what, wait::LIMIT, || found().transpose())?
    }

    /// The access log's entry of a request with this [`MARK`], if it is there already.
    pub fn find_entry(&self, direction: Direction, mark: &str) -> Result<Option<Entry>> {
        let is_it = |entry: &Entry| entry.direction == direction && entry.mark.as_deref() == Some(mark);
        Ok(self.access_log()?.into_iter().find(is_it))
    }
}

/// Asks the admin interface of the Envoy in `netns`.
pub fn admin(netns: &NetNs, path: &str) -> Result<Response> {
    netns.run(|| http::get_from(ADMIN, path, &Headers::new()))?
}

/// All counters and gauges of the Envoy in `netns` that are not zero.
pub fn stats(netns: &NetNs) -> Result<BTreeMap<String, u64>> {
    #[derive(Deserialize)]
    struct Stats {
        stats: Vec<Stat>,
    }
    #[derive(Deserialize)]
    struct Stat {
        name: Option<String>,
        value: Option<u64>,
    }
    let response = admin(netns, "/stats?format=json&usedonly&type=Counters")?;
    let stats: Stats = serde_json::from_slice(&response.body).context("decode Envoy's stats")?;
    let pairs = stats.stats.into_iter().filter_map(|stat| Some((stat.name?, stat.value?)));
    Ok(pairs.filter(|(_, value)| *value > 0).collect())
}

/// The Envoy to run: what `VEER_ENVOY` names.
pub fn binary() -> Result<PathBuf> {
    let Some(path) = std::env::var_os("VEER_ENVOY") else {
        bail!("VEER_ENVOY is not set; `cargo xtask setup` installs an Envoy and says where");
    };
    executable(path.into(), "VEER_ENVOY")
}
