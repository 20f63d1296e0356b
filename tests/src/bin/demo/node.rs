//! The node with its agent, and a host outside.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::cni::{NetworkList, Runtime};
use veer_tests::launch::{Identity, Launch, veer_binary};
use veer_tests::netns::NetNs;
use veer_tests::node_proxy::NodeProxy;
use veer_tests::process::Process;
use veer_tests::veth::{self, End};

use crate::place;
use crate::pod::start_app;
use crate::proxy::Driver;

/// The host outside, on a link of its own to the node.
pub(crate) const OUTSIDE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// The same for IPv6.
pub(crate) const OUTSIDE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
/// The pods' bridge.
pub(crate) const BRIDGE: &str = "cni0";

const NODE_V4: &str = "192.0.2.2";
const NODE_V6: &str = "2001:db8::2";
const PODS_V4: &str = "10.88.0.0/24";
const PODS_V6: &str = "fd88::/64";

/// What becomes of the processes when the demo ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// They end, too.
    Demo,
    /// They stay until they are taken down.
    Kept,
}

impl Lifetime {
    /// How a process of that lifetime is launched.
    pub(crate) fn launch(self) -> Launch {
        match self {
            Self::Demo => Launch::new(),
            Self::Kept => Launch::new().surviving(),
        }
    }
}

/// A node, and a host outside of it. Fields are in the order of taking down: processes first.
pub(crate) struct Node {
    _outside_app: Process,
    /// The one Envoy of all pods, where they have no sidecars.
    pub(crate) proxy: Option<Shared>,
    pub(crate) agent: Agent,
    /// From the start of its process until it served.
    pub(crate) agent_took: Duration,
    pub(crate) outside: NetNs,
    pub(crate) netns: NetNs,
    pub(crate) lifetime: Lifetime,
    /// What a runtime attaches first, by itself.
    pub(crate) loopback: NetworkList,
    /// The conflist, read from its file.
    pub(crate) network: NetworkList,
    pub(crate) pods: Cgroup,
    outside_cgroup: Cgroup,
    _proxy_cgroup: Cgroup,
    _agent_cgroup: Cgroup,
    _cgroup: Cgroup,
}

/// One Envoy for all pods.
pub(crate) struct Shared {
    pub(crate) envoy: NodeProxy,
    /// From the start of its process until it was ready.
    pub(crate) took: Duration,
}

impl Node {
    /// Sets it up and starts the agent, and an Envoy if the pods will have no sidecars.
    pub(crate) fn set_up(lifetime: Lifetime, driver: Driver) -> Result<Self> {
        fs::create_dir_all(place::path("net.d")).context("make the demo's directory")?;
        let cgroup = Cgroup::named(place::NAME)?;
        let (pods, agent_cgroup, outside_cgroup) =
            (cgroup.child("pods")?, cgroup.child("agent")?, cgroup.child("outside")?);
        let netns = NetNs::named(&place::netns_name("node"))?;
        let outside = NetNs::named(&place::netns_name("outside"))?;
        connect(&netns, &outside)?;
        let launch = lifetime.launch().in_netns(&outside).in_cgroup(&outside_cgroup);
        let app = start_app("outside", &launch.with_identity(Identity::app()), &outside)?;

        let launch = lifetime.launch().in_netns(&netns).in_cgroup(&agent_cgroup);
        let start = Instant::now();
        let meeting_place = place::path("proxy");
        let flag = format!("--proxy-dir={}", meeting_place.display());
        let flags = if driver == Driver::Node { vec![flag.as_str()] } else { Vec::new() };
        let agent = Agent::start_in(Path::new(place::DIRECTORY), &pods, launch, &flags)?;
        let agent_took = start.elapsed();

        // Of the programs' cgroup, so that they see its connections too, and no pod's.
        let proxy_cgroup = pods.child("node-proxy")?;
        let launch = lifetime.launch().in_netns(&netns).in_cgroup(&proxy_cgroup);
        let start = Instant::now();
        let shared = |envoy| Shared { envoy, took: start.elapsed() };
        let proxy = (driver == Driver::Node)
            .then(|| NodeProxy::launch(&meeting_place, launch).map(shared))
            .transpose()?;

        let conflist = place::path("net.d/10-demo.conflist");
        let text = serde_json::to_vec_pretty(&network(&agent.run_dir()))?;
        fs::write(&conflist, text).with_context(|| format!("write {}", conflist.display()))?;
        Ok(Self {
            _outside_app: app,
            proxy,
            agent,
            agent_took,
            outside,
            netns,
            lifetime,
            loopback: serde_json::from_value(loopback())?,
            network: NetworkList::read(&conflist)?,
            pods,
            outside_cgroup,
            _proxy_cgroup: proxy_cgroup,
            _agent_cgroup: agent_cgroup,
            _cgroup: cgroup,
        })
    }

    /// The container runtime: finds the plugins of the CNI project, and ours.
    pub(crate) fn runtime(&self) -> Result<Runtime<'_>> {
        let plugin = veer_binary("VEER_CNI_BIN", "veer-cni")?;
        let directory = plugin.parent().context("VEER_CNI_BIN has no directory")?;
        Ok(Runtime::new(&self.netns, &[directory]))
    }

    /// How a process outside is launched.
    pub(crate) fn outside_launch(&self) -> Launch {
        let launch = self.lifetime.launch().in_netns(&self.outside).in_cgroup(&self.outside_cgroup);
        launch.with_identity(Identity::app())
    }
}

/// A link between node and outside, and the way from there to the pods. The node forwards, and there is
/// no masquerading: whoever is called sees who called.
fn connect(node: &NetNs, outside: &NetNs) -> Result<()> {
    node.set_sysctl("net/ipv4/ip_forward", "1")?;
    node.set_sysctl("net/ipv6/conf/all/forwarding", "1")?;
    let (node_v4, node_v6) = (format!("{NODE_V4}/24"), format!("{NODE_V6}/64"));
    let (outside_v4, outside_v6) = (format!("{OUTSIDE_V4}/24"), format!("{OUTSIDE_V6}/64"));
    veth::pair(
        End { netns: node, name: "eth0", addresses: &[&node_v4, &node_v6] },
        End { netns: outside, name: "eth0", addresses: &[&outside_v4, &outside_v6] },
    )?;
    let to_pods = [(PODS_V4, NODE_V4), (PODS_V6, NODE_V6)];
    veth::ip(outside, to_pods.map(|(pods, node)| format!("route add {pods} via {node}")))
}

fn loopback() -> Value {
    json!({"cniVersion": "1.0.0", "name": "cni-loopback", "plugins": [{"type": "loopback"}]})
}

/// The network of the pods, as an administrator would write it: `veer-cni` last in the chain.
fn network(run_dir: &Path) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "demo",
        "plugins": [
            {
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": true,
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "dataDir": place::path("ipam"),
                    "ranges": [[{"subnet": PODS_V4}], [{"subnet": PODS_V6}]],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "veer-cni", "runDir": run_dir, "logLevel": "info"},
        ],
    })
}
