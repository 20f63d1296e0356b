//! A pod of the mesh, made as a container runtime makes one: netns, CNI ADD, then its processes.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use veer_tests::cgroup::Cgroup;
use veer_tests::cni::{Attachment, Runtime};
use veer_tests::envoy::{Envoy, Sidecar};
use veer_tests::http::{self, Headers};
use veer_tests::launch::{Identity, Launch, kit_binary};
use veer_tests::manifest::Manifest;
use veer_tests::netns::NetNs;
use veer_tests::process::Process;

use crate::node::Node;
use crate::place;

/// The port that every app listens on.
pub(crate) const APP_PORT: u16 = 8080;
/// Kubernetes namespace of the pods.
pub(crate) const NAMESPACE: &str = "shop";

/// Each worker has its own listening sockets, all of which the datapath must know.
const WORKERS: u32 = 2;

/// A pod. Fields are in the order of taking down: processes first.
pub(crate) struct Pod {
    pub(crate) name: &'static str,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
    /// How long each plugin took to attach it.
    pub(crate) attached: Vec<(String, Duration)>,
    _app: Process,
    /// Its own Envoy, where the node has none.
    pub(crate) sidecar: Option<Own>,
    attachment: Attachment,
    result: Value,
    pub(crate) netns: NetNs,
    pub(crate) cgroup: Cgroup,
}

/// A sidecar.
pub(crate) struct Own {
    pub(crate) envoy: Envoy,
    /// From the start of its process until it was ready.
    pub(crate) took: Duration,
}

impl Pod {
    /// Makes one, as the injector and the runtime would.
    pub(crate) fn make(node: &Node, name: &'static str) -> Result<Self> {
        let manifest = Manifest::new(NAMESPACE, name).with_dual_stack();
        let manifest = if node.proxy.is_some() { manifest.with_node_proxy() } else { manifest };
        node.agent.write_manifest(&manifest)?;
        let netns = NetNs::named(&place::netns_name(name))?;
        let cgroup = node.pods.child(name)?;
        let attachment = attachment(name, &netns);
        let runtime = node.runtime()?;
        let loopback = Attachment { interface: "lo".to_owned(), ..attachment.clone() };
        let mut attached = runtime.add(&node.loopback, &loopback)?.took;
        let added = runtime.add(&node.network, &attachment)?;
        attached.extend(added.took);
        runtime.check(&node.network, &attachment, &added.result)?;
        let (v4, v6) = addresses(&added.result)?;

        let launch = node.lifetime.launch().in_netns(&netns).in_cgroup(&cgroup);
        let sidecar = if node.proxy.is_none() { Some(start_sidecar(name, &launch, &netns)?) } else { None };
        let app = start_app(name, &launch.with_identity(Identity::app()), &netns)?;
        let result = added.result;
        Ok(Self { name, v4, v6, attached, _app: app, sidecar, attachment, result, netns, cgroup })
    }

    /// How a process of its app is launched.
    pub(crate) fn launch(&self, node: &Node) -> Launch {
        let launch = node.lifetime.launch().in_netns(&self.netns).in_cgroup(&self.cgroup);
        launch.with_identity(Identity::app())
    }

    /// Ends its processes, then detaches it, as a runtime does.
    pub(crate) fn remove(self, runtime: &Runtime<'_>, node: &Node) -> Result<()> {
        let Self { _app: app, sidecar, attachment, result, netns, cgroup, .. } = self;
        drop((app, sidecar));
        runtime.del(&node.network, &attachment, Some(&result))?;
        drop((netns, cgroup));
        Ok(())
    }
}

fn start_sidecar(name: &str, launch: &Launch, netns: &NetNs) -> Result<Own> {
    let directory = place::path(name);
    fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
    let start = Instant::now();
    let sidecar = Sidecar {
        netns,
        launch: launch.clone(),
        directory: &directory,
        http_ports: &[APP_PORT],
        workers: WORKERS,
    };
    let envoy = sidecar.start()?;
    Ok(Own { envoy, took: start.elapsed() })
}

/// Starts an app and waits until it answers.
pub(crate) fn start_app(name: &str, launch: &Launch, netns: &NetNs) -> Result<Process> {
    let mut command = launch.command(kit_binary("echo-app")?)?;
    command.arg("--name").arg(name).arg(format!("--listen=[::]:{APP_PORT}"));
    let mut app = Process::start(name, command, &place::path(&format!("{name}.log")))?;
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, APP_PORT));
    app.wait_ready(|| netns.run(|| http::get_from(here, "/", &Headers::new()))?)?;
    Ok(app)
}

/// What containerd passes; its order of the arguments is random.
fn attachment(name: &str, netns: &NetNs) -> Attachment {
    let container_id = format!("{}-{name}", place::NAME);
    let arguments = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAME", name),
        ("K8S_POD_INFRA_CONTAINER_ID", &container_id),
        ("K8S_POD_NAMESPACE", NAMESPACE),
    ];
    let arguments = arguments.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    Attachment { container_id, netns: netns.path(), interface: "eth0".to_owned(), arguments }
}

/// The pod's addresses, from the result of the chain.
fn addresses(result: &Value) -> Result<(IpAddr, IpAddr)> {
    let ips = result.get("ips").and_then(Value::as_array).context("the chain's result has no ips")?;
    let texts = ips.iter().filter_map(|ip| ip.get("address")?.as_str()?.split('/').next());
    let addresses: Vec<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
    let of_family = |v4| addresses.iter().copied().find(|address| address.is_ipv4() == v4);
    of_family(true).zip(of_family(false)).context("the chain's result lacks an address of a family")
}
