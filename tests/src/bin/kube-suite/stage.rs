//! The node with veer on it, on which most checks are made.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use veer_tests::envoy::{Direction, Entry, MARK};
use veer_tests::http::{self, Echo, Headers};
use veer_tests::kube::client::{Client, LIMIT};
use veer_tests::kube::node::{self, Node};
use veer_tests::kube::pods::{PORT, Running};
use veer_tests::kube::{agent, recorder};
use veer_tests::launch::veer_binary;
use veer_tests::netns::NetNs;
use veer_tests::process::Process;
use veer_tests::wait;

/// The namespace whose pods are left alone unless the node is told otherwise.
const EXCLUDED: &str = "kube-system";

/// A node, and the agent on it.
pub(crate) struct Stage {
    pub(crate) node: Node,
    /// None where the agent is a pod of the node.
    agent: Option<Process>,
    kubeconfig: PathBuf,
    /// Namespaces whose pods are left alone.
    excluded: Vec<String>,
    marks: u32,
}

impl Stage {
    /// Makes the node, puts the plugin into its chain and starts the agent.
    pub(crate) fn set() -> Result<Self> {
        Self::set_on(Node::start()?)
    }

    /// The same on a node that is there.
    pub(crate) fn set_on(node: Node) -> Result<Self> {
        let kubeconfig = agent::grant(node.control_plane())?;
        let excluded = vec![EXCLUDED.to_owned()];
        let agent = Some(start_agent(&node, &kubeconfig, &excluded)?);
        recorder::install(&node, &veer_binary("VEER_CNI_BIN", "veer-cni")?, "veer-cni")?;
        let stage = Self { node, agent, kubeconfig, excluded, marks: 0 };
        stage.chain()?;
        Ok(stage)
    }

    /// A node as it is, without an agent.
    pub(crate) const fn bare(node: Node) -> Self {
        Self { node, agent: None, kubeconfig: PathBuf::new(), excluded: Vec::new(), marks: 0 }
    }

    pub(crate) fn client(&self) -> &Client {
        self.node.control_plane().client()
    }

    /// Puts the plugin into the chain.
    pub(crate) fn chain(&self) -> Result<()> {
        self.node.write_conflist(&[json!({"type": "veer-cni", "runDir": "/run/veer", "logLevel": "info",
            "excludeNamespaces": self.excluded})])
    }

    /// Leaves the pods of these namespaces alone, too, from now on: as who changes the chart's values does it, with
    /// another configuration of the plugin and an agent that starts anew.
    pub(crate) fn exclude(&mut self, further: &[&str]) -> Result<()> {
        self.excluded = [EXCLUDED].iter().chain(further).map(ToString::to_string).collect();
        self.chain()?;
        self.kill_agent()?;
        self.start_agent()
    }

    /// Takes it out.
    pub(crate) fn unchain(&self) -> Result<()> {
        self.node.write_conflist(&[])
    }

    /// Waits until no pod is enrolled: the API forgets a pod before the runtime has taken its network away.
    pub(crate) fn wait_nobody_enrolled(&self) -> Result<()> {
        wait::until_ok("all pods to be forgotten", LIMIT, || {
            let enrolled = self.enrolled()?;
            ensure!(enrolled.is_empty(), "still enrolled: {enrolled:?}");
            Ok::<_, anyhow::Error>(())
        })
    }

    /// A mark that no other request has.
    pub(crate) fn mark(&mut self) -> String {
        self.marks += 1;
        format!("request-{}", self.marks)
    }

    pub(crate) fn kill_agent(&mut self) -> Result<()> {
        self.agent.as_mut().context("no agent was started")?.kill().map(drop)
    }

    pub(crate) fn start_agent(&mut self) -> Result<()> {
        self.agent = Some(start_agent(&self.node, &self.kubeconfig, &self.excluded)?);
        Ok(())
    }

    pub(crate) fn agent_log(&self) -> String {
        self.agent.as_ref().map_or_else(String::new, Process::last_words)
    }

    /// What a command of `veer` with `--json` says on the node.
    pub(crate) fn json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.command(arguments)?.arg("--json").output().context("run veer")?;
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!("veer {} wrote {text}{}", arguments.join(" "), String::from_utf8_lossy(&output.stderr))
        })
    }

    /// A command of `veer` on the node.
    pub(crate) fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.node.launch().command(veer_binary("VEER_BIN", "veer")?)?;
        command.args(arguments);
        Ok(command)
    }

    /// The names of the enrolled pods.
    pub(crate) fn enrolled(&self) -> Result<Vec<String>> {
        let pods = self.json(&["pods"])?;
        let list = pods.as_array().context("veer pods writes a list")?;
        Ok(list.iter().filter_map(|pod| Some(pod.get("name")?.as_str()?.to_owned())).collect())
    }

    /// The runtime's id of an enrolled pod's sandbox.
    fn sandbox(&self, name: &str) -> Result<String> {
        let pods = self.json(&["pods"])?;
        let list = pods.as_array().context("veer pods writes a list")?;
        let pod = list.iter().find(|pod| pod.get("name").is_some_and(|found| found == name));
        let id = pod.and_then(|pod| pod.get("containerId")?.as_str());
        id.map(str::to_owned).with_context(|| format!("{name} is not enrolled"))
    }

    /// Kills the process that holds a pod's namespaces, and waits until the pod is not enrolled so any more.
    pub(crate) fn kill_sandbox(&self, pod: &Running, name: &str) -> Result<()> {
        let id = self.sandbox(name)?;
        let cgroup = self.node.pods_cgroup().join("besteffort").join(format!("pod{}", pod.uid)).join(&id);
        let file = cgroup.join("cgroup.procs");
        let processes = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let first = processes.lines().next().context("the sandbox has no process")?;
        kill(Pid::from_raw(first.parse()?), Signal::SIGKILL).context("kill a sandbox")?;
        wait::until("the sandbox to be gone", LIMIT, || self.sandbox(name).ok().as_ref() != Some(&id))
    }

    /// Waits until a pod has a sandbox and is enrolled, and gives back its address: what the plugins have noted, for
    /// where the API server does not tell.
    pub(crate) fn wait_new_sandbox(&self, name: &str) -> Result<IpAddr> {
        let leases = self.node.directory().join("cni/networks/pods");
        wait::until_some(&format!("{name} to have a sandbox again"), LIMIT, || {
            let id = self.sandbox(name).ok()?;
            let leases = fs::read_dir(&leases).ok()?.flatten();
            let mut own = leases.filter(|lease| {
                fs::read_to_string(lease.path()).is_ok_and(|text| text.trim().starts_with(&id))
            });
            let address: IpAddr = own.next()?.file_name().to_str()?.parse().ok()?;
            // Its app and its proxy come after it.
            ask_from(self.node.outside(), address, "/", "").ok().map(|_echo| address)
        })
    }

    /// Waits for an entry of this pod's proxy.
    pub(crate) fn entry(&self, pod: &Running, direction: Direction, mark: &str) -> Result<Entry> {
        let is_it = |entry: &Entry| entry.direction == direction && entry.mark.as_deref() == Some(mark);
        wait::until_some(
            &format!("an {direction} entry of {mark} in the proxy of {}", pod.path),
            wait::LIMIT,
            || pod.access_log(self.node.directory()).ok()?.into_iter().find(is_it),
        )
    }

    /// Whether this pod's proxy has seen the request, once it surely would have.
    pub(crate) fn has_entry(&self, pod: &Running, mark: &str) -> Result<bool> {
        let log = pod.access_log(self.node.directory())?;
        Ok(log.iter().any(|entry| entry.mark.as_deref() == Some(mark)))
    }

    /// Asks the app of a pod from outside of the cluster.
    pub(crate) fn ask(&self, pod: &Running, mark: &str) -> Result<Echo> {
        ask_from(self.node.outside(), pod.address, "/", mark)
    }

    /// Has the app of `from` ask the app of `to`.
    pub(crate) fn ask_through(&self, from: &Running, to: IpAddr, port: u16, mark: &str) -> Result<Echo> {
        let path = format!("/to/{}/", SocketAddr::new(to, port));
        ask_from(self.node.outside(), from.address, &path, mark)
    }

    /// Shows on a request that everything that comes to a pod and leaves it goes through its proxy.
    pub(crate) fn prove_redirected(&mut self, pod: &Running, peer: &Running) -> Result<()> {
        let mark = self.mark();
        let echo = self.ask_through(pod, peer.address, PORT, &mark)?;
        let inbound = self.entry(pod, Direction::Inbound, &mark)?;
        ensure!(inbound.original_destination == Some(SocketAddr::new(pod.address, PORT)), "{inbound:?}");
        ensure!(inbound.client.map(|client| client.ip()) == Some(node::OUTSIDE.into()), "{inbound:?}");
        let outbound = self.entry(pod, Direction::Outbound, &mark)?;
        ensure!(outbound.original_destination == Some(SocketAddr::new(peer.address, PORT)), "{outbound:?}");
        ensure!(
            echo.headers.contains_key("x-envoy-expected-rq-timeout-ms")
                || echo.headers.contains_key("x-request-id"),
            "the request has nothing of Envoy's: {echo:?}"
        );
        Ok(())
    }
}

fn ask_from(netns: &NetNs, address: IpAddr, path: &str, mark: &str) -> Result<Echo> {
    let headers = Headers::from([(MARK.to_owned(), mark.to_owned())]);
    let response = netns.run(|| http::get_from(SocketAddr::new(address, PORT), path, &headers))??;
    let text = String::from_utf8_lossy(&response.body);
    ensure!(response.status == 200, "{address}{path} answered {}: {text}", response.status);
    serde_json::from_slice(&response.body).with_context(|| format!("{address}{path} answered {text}"))
}

fn start_agent(node: &Node, kubeconfig: &Path, excluded: &[String]) -> Result<Process> {
    let excluded = format!("--exclude-namespaces={}", excluded.join(","));
    agent::start(node, kubeconfig, &["--reconcile-interval=5", &excluded])
}
