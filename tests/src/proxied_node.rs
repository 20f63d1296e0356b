//! A node whose pods have no sidecars: an agent, one real Envoy for all of them, and pods in a world.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::agent::Agent;
use crate::cgroup::Cgroup;
use crate::http::{self, Headers};
use crate::launch::{Identity, Launch, kit_binary};
use crate::mesh::APP;
use crate::node_proxy::{self, NodeProxy};
use crate::pod::{TestPod, World};
use crate::process::Process;
use crate::scratch;

/// All of it; what goes first stands first.
#[derive(Debug)]
pub struct ProxiedNode {
    /// The node's Envoy.
    pub proxy: NodeProxy,
    place: TempDir,
    /// Envoy's cgroup, below that which the agent is attached to.
    pub proxys: Cgroup,
    /// The agent.
    pub agent: Agent,
    /// What is around the pods.
    pub world: World,
    /// That of the pods.
    pub cgroup: Cgroup,
    directory: TempDir,
}

impl ProxiedNode {
    /// Starts agent and Envoy.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// Starts them, the agent with further arguments.
    pub fn start_with(arguments: &[&str]) -> Result<Self> {
        let cgroup = Cgroup::new()?;
        let (place, flag) = place()?;
        let agent = Agent::start_with(&cgroup, Launch::new(), &[&[flag.as_str()], arguments].concat())?;
        let world = World::new()?;
        let proxys = cgroup.child("proxy")?;
        let proxy = NodeProxy::start(&place.path().join("proxy"), world.netns(), &proxys)?;
        Ok(Self { proxy, place, proxys, agent, world, cgroup, directory: scratch::directory()? })
    }

    /// The agent's `--proxy-dir`.
    pub fn place(&self) -> PathBuf {
        self.place.path().join("proxy")
    }

    /// Starts another Envoy, in the place of one that has gone.
    pub fn start_proxy(&mut self) -> Result<()> {
        self.proxy = NodeProxy::start(&self.place(), self.world.netns(), &self.proxys)?;
        Ok(())
    }

    /// A pod that is served.
    pub fn pod(&self, name: &str) -> Result<TestPod> {
        let pod = TestPod::new(&self.world, &self.cgroup, name)?;
        self.agent.enrol_as(&pod, &pod.manifest().with_node_proxy())?;
        Ok(pod)
    }

    /// Starts an app in a pod, which answers requests to [`APP`].
    pub fn app(&self, pod: &TestPod) -> Result<Process> {
        let mut command = pod.launch(Identity::app()).command(kit_binary("echo-app")?)?;
        command.arg("--name").arg(pod.name());
        let mut app = Process::start(pod.name(), command, &self.directory.path().join(pod.name()))?;
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, APP));
        app.wait_ready(|| pod.netns().run(|| http::get_from(here, "/", &Headers::new()))?)?;
        Ok(app)
    }

    /// The access log's line on the request of a pod to there.
    pub fn logged(&self, pod: &str, direction: &str, to: SocketAddr) -> Result<Value> {
        let expected = [json!(pod), json!(direction), json!(to.to_string())];
        let what = format!("{direction} of {pod} to {to}");
        let is_it = |entry: &Value| {
            ["pod", "direction", "authority"].map(|name| entry.get(name).cloned().unwrap_or_default())
                == expected
        };
        self.proxy.entry(&what, is_it)
    }

    /// A pod as `veer pods` shows it.
    pub fn view(&self, pod: &str) -> Result<Value> {
        self.agent.json(&["pods", &format!("test/{pod}")])
    }
}

/// A place for an agent and Envoy to meet, and the agent's flag.
pub fn place() -> Result<(TempDir, String)> {
    let place = node_proxy::directory().context("make the directory of the node's proxy")?;
    let flag = format!("--proxy-dir={}", place.path().join("proxy").display());
    Ok((place, flag))
}
