//! A node that fills up: with pods that each have an Envoy, or with pods that share one.

use std::fs;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tempfile::TempDir;
use veer_common::cni::{Reply, Verb};
use veer_tests::agent::Agent;
use veer_tests::attachment;
use veer_tests::bare_pod::BarePod;
use veer_tests::cgroup::Cgroup;
use veer_tests::envoy::{Envoy, Sidecar};
use veer_tests::launch::{Identity, Launch};
use veer_tests::manifest::Manifest;
use veer_tests::mesh::APP;
use veer_tests::netns::NetNs;
use veer_tests::node_proxy::{self, NodeProxy};
use veer_tests::pod::{TestPod, World};
use veer_tests::wait;

use crate::end::{Client, Server};
use crate::footprint;
use crate::order::Cpus;
use crate::report::milliseconds;

/// A port of the server that no proxy takes for HTTP.
pub(super) const BYTES: u16 = 9000;
/// Workers of each Envoy, as Istio's sidecars have.
const WORKERS: u32 = 2;
/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(5);

/// Whose proxies the pods have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Driver {
    /// Each its own.
    Sidecar,
    /// All the same.
    Node,
}

/// What the Envoys of a node take while nobody talks.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(crate) struct Standing {
    pub(crate) envoys: usize,
    /// The sum of what they hold resident.
    pub(crate) resident_mb: f64,
    /// The same, with each page that several share counted once.
    pub(crate) proportional_mb: f64,
    /// Parts of one CPU.
    pub(crate) idle_cpu: f64,
}

/// The agent of a node and the Envoys of its pods. Fields are in the order of taking down.
#[derive(Debug)]
struct Proxies {
    sidecars: Vec<Envoy>,
    shared: Option<NodeProxy>,
    agent: Agent,
    adds: Vec<f64>,
    readies: Vec<f64>,
    /// The agent's `--proxy-dir`, and each sidecar's directory.
    scratch: TempDir,
    /// The shared one's.
    _own: Cgroup,
}

/// A node. Fields are in the order of taking down.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) client: Client,
    _server: Server,
    proxies: Proxies,
    filling: Vec<(BarePod, Cgroup)>,
    pub(super) called: TestPod,
    _calling: TestPod,
    cgroup: Cgroup,
}

impl Side {
    /// With two pods that talk, and manifests of all that there will be.
    pub(super) fn start(world: &World, driver: Driver, pods: u16, cpus: Cpus) -> Result<Self> {
        let cgroup = Cgroup::new()?;
        let mut proxies = Proxies::start(world, &cgroup, driver)?;
        announce(&proxies.agent, driver, pods)?;
        let pod = |number: u16| TestPod::new(world, &cgroup, &name(number));
        let (calling, called) = (pod(0)?, pod(1)?);
        for pod in [&calling, &called] {
            proxies.join(pod.name(), pod.netns(), pod.cgroup())?;
        }
        let server = Server::start_for_many(&called.launch(Identity::app()), cpus.server, &[APP, BYTES])?;
        let client = Client::start(&calling.launch(Identity::app()), cpus.client)?;
        let filling = Vec::new();
        Ok(Self { client, _server: server, proxies, filling, called, _calling: calling, cgroup })
    }

    /// Makes as many pods as are missing.
    pub(super) fn fill(&mut self, pods: u16) -> Result<()> {
        while self.filling.len() + 2 < usize::from(pods) {
            let number = u16::try_from(self.filling.len() + 2)?;
            let (pod, cgroup) = (BarePod::new(&name(number), number)?, self.cgroup.child(&name(number))?);
            self.proxies.join(pod.name(), pod.netns(), &cgroup)?;
            self.filling.push((pod, cgroup));
        }
        Ok(())
    }

    /// What the Envoys take while nobody talks.
    pub(super) fn standing(&self) -> Result<Standing> {
        let pids = self.proxies.pids();
        let (start, before) = (Instant::now(), cpu_time(&pids)?);
        wait::until("nothing to happen", wait::LIMIT, || start.elapsed() >= IDLE)?;
        let ran = cpu_time(&pids)?.saturating_sub(before);
        let idle_cpu = ran.as_secs_f64() / start.elapsed().as_secs_f64();
        Ok(Standing {
            envoys: pids.len(),
            resident_mb: sum_mb(&pids, "Rss:")?,
            proportional_mb: sum_mb(&pids, "Pss:")?,
            idle_cpu,
        })
    }

    /// What the Envoys have run so far.
    pub(super) fn ran(&self) -> Result<Duration> {
        cpu_time(&self.proxies.pids())
    }

    /// Milliseconds of each ADD.
    pub(super) fn adds(&self) -> Vec<f64> {
        self.proxies.adds.clone()
    }

    /// Milliseconds of each sidecar's start.
    pub(super) fn readies(&self) -> Vec<f64> {
        self.proxies.readies.clone()
    }
}

impl Proxies {
    fn start(world: &World, cgroup: &Cgroup, driver: Driver) -> Result<Self> {
        let scratch = node_proxy::directory()?;
        let place = scratch.path().join("proxy");
        let flag = format!("--proxy-dir={}", place.display());
        let (flags, wanted) = match driver {
            Driver::Sidecar => (Vec::new(), None),
            Driver::Node => (vec![flag.as_str()], Some(place.as_path())),
        };
        let agent = Agent::start_with(cgroup, Launch::new(), &flags)?;
        let own = cgroup.child("proxy")?;
        let shared = wanted.map(|place| NodeProxy::start(place, world.netns(), &own)).transpose()?;
        let (sidecars, adds, readies) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { sidecars, shared, agent, adds, readies, scratch, _own: own })
    }

    /// Has a pod enrolled, and starts its sidecar if it is to have one.
    fn join(&mut self, name: &str, netns: &NetNs, cgroup: &Cgroup) -> Result<()> {
        let start = Instant::now();
        let add = Verb::Add(attachment::of(netns, name));
        let reply = attachment::ask(&self.agent.run_dir(), add, Some(netns.as_fd()))?;
        self.adds.push(milliseconds(start.elapsed()));
        if reply != Reply::Done {
            bail!("ADD of {name} answered {reply:?}; the agent's log:\n{}", self.agent.log());
        }
        if self.shared.is_some() {
            return Ok(());
        }
        let directory = self.scratch.path().join(name);
        fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
        let start = Instant::now();
        let sidecar = Sidecar {
            netns,
            launch: Launch::new().in_netns(netns).in_cgroup(cgroup),
            directory: &directory,
            http_ports: &[APP],
            workers: WORKERS,
        };
        self.sidecars.push(sidecar.start()?);
        self.readies.push(milliseconds(start.elapsed()));
        Ok(())
    }

    fn pids(&self) -> Vec<u32> {
        let own = self.sidecars.iter().map(|envoy| envoy.process().pid());
        own.chain(self.shared.iter().map(|envoy| envoy.process().pid())).collect()
    }
}

fn name(number: u16) -> String {
    format!("pod-{number}")
}

/// Gives the agent all manifests, and waits until it takes each for settled.
fn announce(agent: &Agent, driver: Driver, pods: u16) -> Result<()> {
    for number in 0..pods {
        let manifest = Manifest::new(attachment::NAMESPACE, &name(number)).with_dual_stack();
        agent.write_manifest(&match driver {
            Driver::Sidecar => manifest,
            Driver::Node => manifest.with_node_proxy(),
        })?;
    }
    footprint::let_settle()
}

fn cpu_time(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|pid| footprint::cpu_time(*pid)).sum()
}

/// A field of `smaps_rollup` of all of them together, in megabytes of 10^6 bytes.
#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn sum_mb(pids: &[u32], field: &str) -> Result<f64> {
    let one = |pid: &u32| {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let kb = text.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next());
        kb.and_then(|kb| kb.parse::<u64>().ok()).with_context(|| format!("{path} has no {field}"))
    };
    let kb = pids.iter().map(one).sum::<Result<u64>>()?;
    Ok((kb * 1024) as f64 / 1e6)
}
