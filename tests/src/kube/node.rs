//! A Kubernetes node: containerd, kubelet and kube-proxy in a netns, a mount namespace and a cgroup of their own.
//!
//! Ready after about ten seconds. The node's directory is visible from outside, and each process of it, containers
//! included, is in a cgroup below the node's: so all of them go with the guard, and after a killed test with the
//! next one.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::control_plane::ControlPlane;
use super::hierarchies::Hierarchies;
use super::runtime::Runtime;
use super::{images, programs};
use crate::cgroup::Cgroup;
use crate::launch::{Launch, kit_binary};
use crate::netns::NetNs;
use crate::process::Process;
use crate::veth::{self, End};
use crate::{envoy, istio_init, scratch, wait};

/// Its name in the cluster.
pub const NAME: &str = "node-1";
/// Its address.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 2);
/// The world outside of the cluster, as the node's pods see it.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);
/// Its pods' addresses.
pub const PODS: &str = "10.80.0.0/22";
/// The image of our own programs, which are named as a container's command.
pub const IMAGE: &str = "localhost/kit:1";
/// The image of Envoy.
pub const PROXY_IMAGE: &str = "localhost/proxy:1";
/// What a plugin chain begins with here.
pub const CONFLIST: &str = "10-pods.conflist";

/// How long a runtime or a kubelet may take to start.
const LIMIT: Duration = Duration::from_mins(1);
/// Where static pods are, in the node's directory and below `/var/lib`.
const STATIC_PODS: &str = "kubelet/manifests";
const CNI_PLUGINS: [&str; 5] = ["loopback", "ptp", "bridge", "host-local", "portmap"];

/// A running node with a control plane of its own, both in its netns.
#[derive(Debug)]
pub struct Node {
    // In this order: kubelet is not to find its containers dead, nor the API server its node.
    proxy: Process,
    kubelet: Process,
    containerd: Process,
    control_plane: ControlPlane,
    place: Place,
}

/// Where a node is: what stays when its processes are started anew.
#[derive(Debug)]
struct Place {
    mounts: Process,
    cgroup: Cgroup,
    pods: Cgroup,
    _hierarchies: Hierarchies,
    netns: NetNs,
    outside: NetNs,
    scratch: TempDir,
    runtime: Runtime,
}

impl Node {
    /// Makes one, with its images, and waits until it takes pods.
    pub fn start() -> Result<Self> {
        Self::start_with(Runtime::own()?)
    }

    /// The same with another container runtime.
    pub fn start_with(runtime: Runtime) -> Result<Self> {
        let place = Place::make(runtime)?;
        let control_plane = ControlPlane::start_in(&place.netns, ADDRESS)?;
        place.write_conflist(&[])?;
        let mut containerd = place.start_containerd()?;
        containerd.wait_ready(|| place.run_ctr(&["version"]).map(drop))?;
        place.import_images()?;
        let kubelet = place.start_kubelet(&control_plane)?;
        let proxy = place.start_proxy(&control_plane)?;
        let mut node = Self { proxy, kubelet, containerd, control_plane, place };
        node.wait_ready()?;
        Ok(node)
    }

    /// Waits until the API server says that it takes pods.
    pub fn wait_ready(&mut self) -> Result<()> {
        let client = self.control_plane.client().clone();
        let path = format!("/api/v1/nodes/{NAME}");
        wait::until_some("the node to be ready", LIMIT, || {
            if let Ok(Some(status)) = self.kubelet.ended() {
                return Some(Err(anyhow::anyhow!("kubelet ended with {status}")));
            }
            let node = client.get(&path).ok()?;
            let conditions = node.pointer("/status/conditions")?.as_array()?.iter();
            let mut ready = conditions.filter(|condition| condition["type"] == "Ready");
            let has_taints = node.pointer("/spec/taints").is_some();
            (ready.any(|condition| condition["status"] == "True") && !has_taints).then_some(Ok(()))
        })
        .and_then(|ready| ready)
        .with_context(|| format!("kubelet said:\n{}", self.kubelet.last_words()))
    }

    /// The control plane.
    pub const fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The same, for outages.
    pub const fn control_plane_mut(&mut self) -> &mut ControlPlane {
        &mut self.control_plane
    }

    /// The node's netns.
    pub const fn netns(&self) -> &NetNs {
        &self.place.netns
    }

    /// A netns outside of the cluster, [`OUTSIDE`], which has a route to the pods.
    pub const fn outside(&self) -> &NetNs {
        &self.place.outside
    }

    /// The v2 cgroup that is above all pods'.
    pub fn pods_cgroup(&self) -> &Path {
        self.place.pods.path()
    }

    /// The directory that has `net.d`, `bin`, `kubelet`, `cni`, `log` (the node's `/var/log`) and `veer` (its `/run/veer`).
    pub fn directory(&self) -> &Path {
        self.place.directory()
    }

    /// A process on the node: in its netns, its mounts and its cgroup.
    pub fn launch(&self) -> Launch {
        self.place.launch()
    }

    /// A directory of manifests whose pods kubelet runs without being told by the API server: static pods.
    pub fn static_pods(&self) -> PathBuf {
        self.directory().join(STATIC_PODS)
    }

    /// Writes the conflist: the usual plugins, and behind them these.
    pub fn write_conflist(&self, further: &[Value]) -> Result<()> {
        self.place.write_conflist(further)
    }

    /// Brings the images of an archive to the runtime.
    pub fn import(&self, archive: &Path) -> Result<()> {
        self.place.run_ctr(&["images", "import", &archive.display().to_string()]).map(drop)
    }

    /// A command in a running container, with what the container's own process may: as `kubectl exec` has it done.
    pub fn exec(&self, container: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = self.place.ctr()?;
        command.args(["tasks", "exec", "--exec-id", &scratch::unique_name(), container]).args(arguments);
        Ok(command)
    }

    /// The first process of a running container, as the machine numbers it.
    pub fn process_of(&self, container: &str) -> Result<u32> {
        let tasks = self.place.run_ctr(&["tasks", "list"])?;
        let mut lines = tasks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let pid = lines.find_map(|line| match line.as_slice() {
            [id, pid, "RUNNING"] if *id == container => pid.parse().ok(),
            _ => None,
        });
        pid.with_context(|| format!("container {container} does not run: {tasks}"))
    }

    /// Writes a file of the CNI directory, whatever is in it.
    pub fn write_file(&self, name: &str, content: &[u8]) -> Result<()> {
        self.place.write_file(name, content)
    }

    /// containerd's log.
    pub fn runtime_log(&self) -> String {
        self.containerd.log()
    }

    /// kubelet's log.
    pub fn kubelet_log(&self) -> String {
        self.kubelet.log()
    }

    /// A reboot, as far as there is one without a kernel: nothing of kubelet, runtime and containers lives on, what is
    /// in `/run` and in the bpffs is gone, and the node starts again.
    pub fn reboot(&mut self) -> Result<()> {
        for process in [&mut self.proxy, &mut self.kubelet, &mut self.containerd] {
            process.kill()?;
        }
        self.place.kill_everything()?;
        self.place.renew_mounts()?;
        self.containerd = self.place.start_containerd()?;
        let place = &self.place;
        self.containerd.wait_ready(|| place.run_ctr(&["version"]).map(drop))?;
        self.kubelet = self.place.start_kubelet(&self.control_plane)?;
        self.proxy = self.place.start_proxy(&self.control_plane)?;
        self.wait_ready()
    }
}

impl Place {
    fn make(runtime: Runtime) -> Result<Self> {
        let scratch = scratch::directory()?;
        let (netns, outside) = (NetNs::new()?, NetNs::new()?);
        let (inner, outer) = (format!("{ADDRESS}/24"), format!("{OUTSIDE}/24"));
        veth::pair(
            End { netns: &netns, name: "eth0", addresses: &[&inner] },
            End { netns: &outside, name: "node", addresses: &[&outer] },
        )?;
        veth::ip(&netns, [format!("route add default via {OUTSIDE}")])?;
        veth::ip(&outside, [format!("route add {PODS} via {ADDRESS}")])?;
        for name in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            netns.set_sysctl(name, "1")?;
        }
        let name = scratch::unique_name();
        let cgroup = Cgroup::named(&name)?;
        // kubelet would make it for the first pod; whoever attaches programs to it wants it now.
        let pods = cgroup.child("kubepods")?;
        let hierarchies = Hierarchies::new(&name)?;
        let mounts = hold_mounts(scratch.path(), &netns)?;
        let place =
            Self { mounts, cgroup, pods, _hierarchies: hierarchies, netns, outside, scratch, runtime };
        for plugin in CNI_PLUGINS {
            let from = place.runtime.plugins.join(plugin);
            fs::copy(&from, place.directory().join("bin").join(plugin))
                .with_context(|| format!("copy {}", from.display()))?;
        }
        Ok(place)
    }

    fn directory(&self) -> &Path {
        self.scratch.path()
    }

    fn name(&self) -> Result<&str> {
        self.cgroup.path().file_name().and_then(|name| name.to_str()).context("a cgroup has a name")
    }

    fn launch(&self) -> Launch {
        Launch::new().in_netns(&self.netns).in_cgroup(&self.cgroup).in_mounts_of(self.mounts.pid())
    }

    fn command(&self, program: &Path) -> Result<Command> {
        let mut command = self.launch().command(program)?;
        // containerd finds its shim and runc there, and kubelet finds mount.
        let mut path = self.runtime.search_path();
        path.push(":/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("PATH", path);
        Ok(command)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.directory().join(format!("{name}.log"))
    }

    fn write_conflist(&self, further: &[Value]) -> Result<()> {
        let mut plugins = vec![json!({"type": "ptp", "ipam": {"type": "host-local",
            "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}]}})];
        plugins.extend_from_slice(further);
        let conflist = json!({"cniVersion": self.runtime.cni_version, "name": "pods", "plugins": plugins});
        self.write_file(CONFLIST, &serde_json::to_vec_pretty(&conflist)?)
    }

    fn write_file(&self, name: &str, content: &[u8]) -> Result<()> {
        let directory = self.directory().join("net.d");
        let draft = directory.join(".draft");
        fs::write(&draft, content).with_context(|| format!("write {name}"))?;
        // The runtime hears of a rename, and never of half a file.
        fs::rename(&draft, directory.join(name)).with_context(|| format!("publish {name}"))
    }

    /// A command of `ctr`, on what kubelet has the runtime make.
    fn ctr(&self) -> Result<Command> {
        let mut command = self.command(&self.runtime.program("ctr"))?;
        command.args(["--namespace", "k8s.io"]);
        Ok(command)
    }

    /// Runs `ctr` and gives back what it printed.
    fn run_ctr(&self, arguments: &[&str]) -> Result<String> {
        let output = self.ctr()?.args(arguments).output().context("run ctr")?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("ctr {} ended with {}: {errors}", arguments.join(" "), output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn import_images(&self) -> Result<()> {
        let ours = ["pause", "echo-app", "dial", "bookinfo-app"].map(kit_binary);
        let ours = ours.into_iter().collect::<Result<Vec<_>>>()?;
        let proxy = vec![kit_binary("proxy-start")?, envoy::binary()?, istio_init::program()?];
        for (name, programs) in [("kit", ours), ("proxy", proxy)] {
            let directory = self.directory().join("images").join(name);
            fs::create_dir_all(&directory).context("make the directory of an image")?;
            let archive = images::archive(&directory, name, &programs)?;
            self.run_ctr(&["images", "import", &archive.display().to_string()])?;
            fs::remove_dir_all(&directory).context("remove what an image was made of")?;
        }
        Ok(())
    }

    fn start_containerd(&self) -> Result<Process> {
        let configuration = self.directory().join("containerd.toml");
        // Lowering oom_score_adj takes a capability that a container of ours may lack.
        let text = format!(
            r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"#
        );
        fs::write(&configuration, text).context("write containerd's configuration")?;
        let mut command = self.command(&self.runtime.program("containerd"))?;
        command.arg("--config").arg(&configuration);
        Process::start("containerd", command, &self.log("containerd"))
    }

    fn start_kubelet(&self, control_plane: &ControlPlane) -> Result<Process> {
        let user = format!("system:node:{NAME}");
        let kubeconfig = control_plane.kubeconfig_of("kubelet", &user, Some("system:nodes"))?;
        let server = control_plane.authority().server("kubelet-server", &[NAME], &[ADDRESS.into()])?;
        let configuration = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "cgroupDriver": "cgroupfs", "cgroupRoot": format!("/{}", self.name()?), "failCgroupV1": false,
            "enforceNodeAllocatable": [], "failSwapOn": false, "oomScoreAdj": 0, "maxPods": 250,
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true},
                "x509": {"clientCAFile": control_plane.authority().certificate()}},
            "tlsCertFile": server.certificate, "tlsPrivateKeyFile": server.key,
            // A machine of tests is full, and nobody is to be evicted for it.
            "imageGCHighThresholdPercent": 100, "imageMinimumGCAge": "24h",
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0.1%", "imagefs.available": "0.1%"},
            "staticPodPath": format!("/var/lib/{STATIC_PODS}"), "resolvConf": "", "nodeStatusUpdateFrequency": "2s", "syncFrequency": "5s",
            // As fast as the API server takes it: what is measured is not kubelet's patience.
            "kubeAPIQPS": 100, "kubeAPIBurst": 200, "registryPullQPS": 0,
        });
        fs::create_dir_all(self.directory().join(STATIC_PODS))
            .context("make the directory of static pods")?;
        let file = self.directory().join("kubelet.json");
        fs::write(&file, configuration.to_string()).context("write kubelet's configuration")?;
        let mut command = self.command(&programs::kubernetes("kubelet")?)?;
        command.arg("--config").arg(&file).arg("--kubeconfig").arg(&kubeconfig);
        command.arg(format!("--hostname-override={NAME}")).arg(format!("--node-ip={ADDRESS}"));
        Process::start("kubelet", command, &self.log("kubelet"))
    }

    fn start_proxy(&self, control_plane: &ControlPlane) -> Result<Process> {
        let kubeconfig = control_plane.kubeconfig_of("kube-proxy", "system:kube-proxy", None)?;
        let configuration = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": "iptables", "clusterCIDR": PODS, "hostnameOverride": NAME, "oomScoreAdj": 0,
            "clientConnection": {"kubeconfig": kubeconfig},
            // Of the machine, not of the node.
            "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "iptables": {"minSyncPeriod": "0s"},
        });
        let file = self.directory().join("kube-proxy.json");
        fs::write(&file, configuration.to_string()).context("write kube-proxy's configuration")?;
        let mut command = self.command(&programs::kubernetes("kube-proxy")?)?;
        command.arg("--config").arg(&file);
        Process::start("kube-proxy", command, &self.log("kube-proxy"))
    }

    /// Containers, their shims and whoever was started on the node.
    fn kill_everything(&self) -> Result<()> {
        crate::cgroup::empty(self.cgroup.path())
    }

    /// `/run` and the bpffs of a node that has booted are empty.
    fn renew_mounts(&mut self) -> Result<()> {
        self.mounts.kill()?;
        for name in ["veer", "ready"] {
            let path = self.directory().join(name);
            if path.is_dir() {
                fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
            } else if path.exists() {
                fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
        self.mounts = hold_mounts(self.directory(), &self.netns)?;
        Ok(())
    }
}

fn hold_mounts(directory: &Path, netns: &NetNs) -> Result<Process> {
    // Not in the node's cgroup: it outlives what is in it, a reboot excepted.
    let mut command = Launch::new().in_netns(netns).with_own_mounts().command(kit_binary("kube-node")?)?;
    command.arg(directory);
    let mut holder = Process::start("kube-node", command, &directory.join("kube-node.log"))?;
    holder.wait_ready(|| {
        if directory.join("ready").exists() { Ok(()) } else { bail!("its mounts are not there yet") }
    })?;
    Ok(holder)
}
