//! Two pods with their sidecars and apps, and a world with an app: what stays as it is while faults happen.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Type};
use tempfile::TempDir;
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::envoy::{Envoy, Sidecar};
use veer_tests::http::{self, Headers};
use veer_tests::launch::{Identity, Launch, kit_binary};
use veer_tests::mesh::{APP, dual_stack};
use veer_tests::netns::NetNs;
use veer_tests::pod::{REMOTE_V4, TestPod, World};
use veer_tests::process::Process;
use veer_tests::scratch;

use super::request::{Client, Requests, Served};
use super::stream::{EchoServer, Streams};

/// Where apps listen for streams.
const STREAMS: u16 = 9000;
/// Streams of each client.
const STREAMS_EACH: usize = 4;
/// Envoy's workers.
const WORKERS: u32 = 2;

/// What the load needs. Fields are in the order of taking down.
#[derive(Debug)]
pub(crate) struct Scene {
    _echo: [EchoServer; 2],
    _inside: [Inside; 2],
    _world_app: Process,
    /// Who asks.
    pub(crate) a: TestPod,
    /// Who answers.
    pub(crate) b: TestPod,
    /// Everything else.
    pub(crate) world: World,
    _directory: TempDir,
}

/// What runs in a pod.
#[derive(Debug)]
struct Inside {
    _app: Process,
    _envoy: Envoy,
    _directory: TempDir,
}

impl Scene {
    /// Sets it, with both pods enrolled.
    pub(crate) fn set(agent: &Agent, cgroup: &Cgroup) -> Result<Self> {
        let world = World::new()?;
        let [a, b] = ["a", "b"].map(|name| TestPod::new(&world, cgroup, name));
        let (a, b) = (a?, b?);
        for pod in [&a, &b] {
            agent.enrol_as(pod, &dual_stack(pod))?;
        }
        let inside = [Inside::start(&a)?, Inside::start(&b)?];
        let directory = scratch::directory()?;
        let outside = Launch::new().in_netns(world.netns()).with_identity(Identity::app());
        let world_app = start_app("world", &outside, world.netns(), &directory)?;
        let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, STREAMS));
        let of_b = b.app().socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        let echo = [EchoServer::start(of_b, at)?, EchoServer::start(world.tcp4()?, at)?];
        Ok(Self { _echo: echo, _inside: inside, _world_app: world_app, a, b, world, _directory: directory })
    }

    /// Who asks on new connections: pod to pod in both families, pod to world, world to pod.
    pub(crate) fn requests(&self) -> Result<Vec<Requests<'_>>> {
        let app = || Ok::<_, anyhow::Error>(Client::App(self.a.maker(Identity::app())?));
        let (by_sidecar, plainly) = (Served::BySidecar, Served::Plainly);
        Ok(vec![
            Requests { client: app()?, to: (self.b.v4(), APP).into(), served: by_sidecar },
            Requests { client: app()?, to: (self.b.v6(), APP).into(), served: by_sidecar },
            Requests { client: app()?, to: (REMOTE_V4, APP).into(), served: plainly },
            Requests {
                client: Client::World(&self.world),
                to: (self.b.v4(), APP).into(),
                served: by_sidecar,
            },
        ])
    }

    /// Streams of all three ways.
    pub(crate) fn streams(&self) -> Result<Streams<'_>> {
        let app = || Ok::<_, anyhow::Error>(Client::App(self.a.maker(Identity::app())?));
        let (to_b, to_world) = ((self.b.v4(), STREAMS).into(), (REMOTE_V4, STREAMS).into());
        let peers = vec![(app()?, to_b), (app()?, to_world), (Client::World(&self.world), to_b)];
        Streams::open(peers, STREAMS_EACH)
    }
}

impl Inside {
    fn start(pod: &TestPod) -> Result<Self> {
        let directory = scratch::directory()?;
        let of_envoy = directory.path().join("envoy");
        fs::create_dir(&of_envoy).context("make Envoy's directory")?;
        let launch = pod.launch(Identity::proxy());
        let sidecar = Sidecar {
            netns: pod.netns(),
            launch,
            directory: &of_envoy,
            http_ports: &[APP],
            workers: WORKERS,
        };
        let envoy = sidecar.start()?;
        let app = start_app(pod.name(), &pod.launch(Identity::app()), pod.netns(), &directory)?;
        Ok(Self { _app: app, _envoy: envoy, _directory: directory })
    }
}

fn start_app(name: &str, launch: &Launch, netns: &NetNs, directory: &TempDir) -> Result<Process> {
    let mut command = launch.command(kit_binary("echo-app")?)?;
    command.arg("--name").arg(name);
    let mut app = Process::start(name, command, &directory.path().join("app.log"))?;
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, APP));
    app.wait_ready(|| netns.run(|| http::get_from(here, "/", &Headers::new()))?)?;
    Ok(app)
}
