//! The commands and their flags, as `--help` teaches them.
//!
//! Owns: names and help texts. Never does: parse a value. All values come in as text, so that `config` can
//! report everything that is wrong with them at once.

use clap::{Args, Parser, Subcommand};

/// Puts pods into a service mesh without touching them.
#[derive(Debug, Parser)]
#[command(
    name = "veer",
    version,
    about = "Puts pods into a service mesh without touching them: eBPF instead of istio-init",
    after_help = "Exit codes: 0 done, 64 usage or configuration, 69 no agent or datapath here, 70 failed, \
                  75 `veer uninstall`, `install-cni` and `uninstall-cni`: an agent runs, 126 `veer check`: the redirection is missing. `veer doctor` has 1 and 2 of its own."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node's agent
    Agent(Box<AgentFlags>),
    /// Show the node at a glance: agent, programs, pods
    Status(ReadFlags),
    /// List the enrolled pods, with where their connections went
    Pods(PodsFlags),
    /// Show decisions as they are made
    Monitor(MonitorFlags),
    /// The agent's own child: see `platform::userns`.
    #[command(name = crate::platform::userns::CHILD_COMMAND, hide = true)]
    JoinUserNamespace,
    /// The parent of the node's proxy: see `platform::proxy::shim`.
    #[command(name = crate::platform::proxy::shim::CHILD_COMMAND, hide = true)]
    KeepProxy {
        /// What it is told.
        charge: String,
    },
    /// Run in a pod, by anybody: prove that its connections are redirected
    Check(CheckFlags),
    /// Tell whether this node is able, what would be used, and what is in the way
    Doctor(DoctorFlags),
    /// Explain where a connection goes: the verdict, the rule, what gave the rule, and the rules before it
    Explain(ExplainFlags),
    /// Put the plugin into the runtime's CNI configuration, once
    InstallCni(InstallCniFlags),
    /// Take the plugin out of the runtime's CNI configuration again
    UninstallCni(UninstallCniFlags),
    /// Take everything of veer off this node: pods are no longer redirected
    Uninstall(UninstallFlags),
}

/// Where things are; all commands have them.
#[derive(Debug, Clone, Args)]
pub struct PlaceFlags {
    /// Directory of the agent's sockets
    #[arg(long, env = "VEER_RUN_DIR", value_name = "DIR", default_value = "/run/veer")]
    pub run_dir: String,
    /// Directory on a bpffs for programs, links and maps
    #[arg(long, env = "VEER_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf/veer")]
    pub bpffs: String,
}

/// Flags of `veer agent`.
#[derive(Debug, Clone, Args)]
pub struct AgentFlags {
    /// Directory that the agent shares with the node's proxy, which serves pods with the label veer.dev/proxy=node, of their own or
    /// of their namespace; it is made, and has what Envoy is started with (envoy.json). Without it, pods with a label of their own are refused
    #[arg(long, env = "VEER_PROXY_DIR", value_name = "DIR")]
    pub proxy_dir: Option<String>,
    /// Start the node's proxy, and another one when it ends: the absolute path of an Envoy and flags of it, separated by blanks.
    /// It needs --proxy-dir to be set. It goes on without the agent; SIGHUP, or another start of the agent, has a changed one take over
    #[arg(long, env = "VEER_PROXY_COMMAND", value_name = "COMMAND")]
    pub proxy_command: Option<String>,
    /// Socket where ztunnel (Istio ambient) is told of its pods, by Istio's default /var/run/ztunnel/ztunnel.sock; it is made.
    /// Without it, no ztunnel is driven
    #[arg(long, env = "VEER_ZTUNNEL_SOCKET", value_name = "PATH")]
    pub ztunnel_socket: Option<String>,
    /// Directory of Envoy's resources (YAML or JSON) that are added to what the node's proxy is told: filters, routes,
    /// virtual hosts, clusters. Changes are followed; what is wrong is in the log and in `veer status`, and changes nothing
    #[arg(long, env = "VEER_PROXY_CONFIG", value_name = "DIR")]
    pub proxy_config: Option<String>,
    /// Where pods are read from: the API server, or a directory with one manifest of a Pod or a Namespace (YAML or JSON) in each file
    #[arg(long, env = "VEER_PODS_FROM", value_name = "kube|DIR")]
    pub pods_from: Option<String>,
    /// With --pods-from kube.
    #[command(flatten)]
    pub kube: KubeFlags,
    /// Where things are.
    #[command(flatten)]
    pub place: PlaceFlags,
    /// What redirects the pods; auto takes ebpf where the kernel takes its programs, else nftables
    #[arg(long, env = "VEER_BACKEND", value_name = "auto|ebpf|nftables", default_value = "auto")]
    pub backend: String,
    /// Cgroup v2 directory of the pods; auto finds kubepods, else the root
    #[arg(long, env = "VEER_CGROUP", value_name = "auto|PATH", default_value = "auto")]
    pub cgroup: String,
    /// What the plugin goes by, too.
    #[command(flatten)]
    pub common: CommonFlags,
    /// What is captured on this node.
    #[command(flatten)]
    pub capture: CaptureFlags,
    /// How what is lost or was missed is found again.
    #[command(flatten)]
    pub heal: HealFlags,
    /// Where the agent is watched.
    #[command(flatten)]
    pub admin: AdminFlags,
    /// Put the plugin into the runtime's CNI configuration and keep it there: off, or the mode; auto chooses it
    #[arg(
        long,
        env = "VEER_CNI_INSTALL",
        value_name = "off|auto|chained|owned|multus|dropin",
        default_value = "off"
    )]
    pub cni_install: String,
    /// Where and what.
    #[command(flatten)]
    pub cni: CniFlags,
    /// Form of the log on stderr: text or json
    #[arg(long, env = "VEER_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: String,
}

/// What agent and plugin both go by: the agent writes it into the plugin's entry.
#[derive(Debug, Clone, Args)]
pub struct CommonFlags {
    /// Namespaces whose pods are left alone, and start without the agent; separated by commas
    #[arg(long, env = "VEER_EXCLUDE_NAMESPACES", value_name = "NAMES", default_value = "kube-system")]
    pub exclude_namespaces: String,
    /// Least important messages that are logged: error, warn, info, debug or trace
    #[arg(long, env = "VEER_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
}

/// Where metrics and health are served.
#[derive(Debug, Clone, Args)]
pub struct AdminFlags {
    /// Where /metrics is served (OpenMetrics), or off
    #[arg(long, env = "VEER_ADMIN_ADDR", value_name = "ADDRESS|off", default_value = "0.0.0.0:15014")]
    pub admin_addr: String,
    /// Where /healthz and /readyz are served, or off
    #[arg(long, env = "VEER_HEALTH_ADDR", value_name = "ADDRESS|off", default_value = "0.0.0.0:8000")]
    pub health_addr: String,
}

/// How the API server is found, and who this node is to it.
#[derive(Debug, Clone, Args)]
pub struct KubeFlags {
    /// This node's name in the cluster; --pods-from kube needs it
    #[arg(long, env = "VEER_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Kubeconfig to find the API server with; absent: the service account of the agent's pod
    #[arg(long, env = "VEER_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<String>,
    /// Remove the taint veer.dev/agent-not-ready from the node when pods can be enrolled, and put it back when not
    #[arg(long, env = "VEER_NODE_TAINT", value_parser = clap::builder::FalseyValueParser::new())]
    pub node_taint: bool,
}

/// Settings of what is captured, for all pods of the node; Istio's plugin has the first three.
#[derive(Debug, Clone, Args)]
pub struct CaptureFlags {
    /// Primary groups whose outbound connections are captured: * or ids separated by commas
    #[arg(long, env = "VEER_OUTBOUND_OWNER_GROUPS", value_name = "*|GIDS", default_value = "*")]
    pub outbound_owner_groups: String,
    /// Primary groups whose outbound connections are not captured: ids separated by commas
    #[arg(long, env = "VEER_OUTBOUND_OWNER_GROUPS_EXCLUDE", value_name = "GIDS", default_value = "")]
    pub outbound_owner_groups_exclude: String,
    /// What counts as localhost, which the proxy reaches directly
    #[arg(long, env = "VEER_HOST_IPV4_LOOPBACK_CIDR", value_name = "CIDR", default_value = "127.0.0.1/32")]
    pub host_ipv4_loopback_cidr: String,
    /// What makes a process the proxy: its uid or gid, or besides that its container
    #[arg(long, env = "VEER_PROXY_IDENTITY", value_name = "uid|container", default_value = "uid")]
    pub proxy_identity: String,
    /// What becomes of a pod's connections before its proxy has listened for the first time, such as those of init
    /// containers: refuse, as with istio-cni, or direct, which is past the mesh, without mTLS and without policies
    #[arg(long, env = "VEER_BEFORE_PROXY", value_name = "refuse|direct", default_value = "refuse")]
    pub before_proxy: String,
}

/// How what is lost or was missed is found again.
#[derive(Debug, Clone, Args)]
pub struct HealFlags {
    /// Where the runtime's CNI keeps what it knows of attachments, to find pods that are older than the agent
    #[arg(long, env = "VEER_CNI_CACHE", value_name = "DIR", default_value = "/var/lib/cni")]
    pub cni_cache: String,
    /// Time between two looks at everything, in seconds; what has failed is tried again sooner
    #[arg(long, env = "VEER_RECONCILE_INTERVAL", value_name = "SECONDS", default_value = "300")]
    pub reconcile_interval: String,
}

/// Where a runtime's CNI is.
#[derive(Debug, Clone, Args)]
pub struct CniPlaceFlags {
    /// Directory of the runtime's CNI configuration; auto finds it
    #[arg(long, env = "VEER_CNI_CONF_DIR", value_name = "auto|DIR", default_value = "auto")]
    pub cni_conf_dir: String,
    /// Directory of the runtime's CNI plugins; auto takes the one that belongs to the configuration
    #[arg(long, env = "VEER_CNI_BIN_DIR", value_name = "auto|DIR", default_value = "auto")]
    pub cni_bin_dir: String,
}

/// What is put into a runtime's CNI configuration, and where.
#[derive(Debug, Clone, Args)]
pub struct CniFlags {
    /// Where the runtime's CNI is.
    #[command(flatten)]
    pub directories: CniPlaceFlags,
    /// The plugin that is copied; absent: veer-cni beside this program
    #[arg(long, env = "VEER_CNI_PLUGIN", value_name = "PATH")]
    pub cni_plugin: Option<String>,
    /// The file of the network that pods are to be redirected in; absent: the one that the runtime uses
    #[arg(long, env = "VEER_CNI_PRIMARY", value_name = "FILE")]
    pub cni_primary: Option<String>,
}

/// Flags of `veer install-cni`.
#[derive(Debug, Clone, Args)]
#[command(
    long_about = "Put the plugin into the runtime's CNI configuration, once.\n\n\
        Copies veer-cni to where the runtime finds it, and then adds it to the network that the runtime uses, in the\n\
        way that fits the node:\n\
        chained: into the vendor's list; one plugin (.conf) becomes a list, and its file is put aside\n\
        owned:   into a copy that sorts first, 00-00-veer.conflist; the vendor's file stays as it is\n\
        multus:  into the list that Multus delegates to, never into Multus's own\n\
        dropin:  into the directory beside the list that libcni 1.3 and newer read\n\
        All other bytes of the vendors' files stay, the network's name and version among them. `veer agent\n\
        --cni-install` does it at its start, and puts it right when a vendor writes its file anew.",
    after_help = "Exit codes: 0 done, or nothing had to be; 64 usage; 69 there is no network yet, or its file is being written: \
        run it again; 70 failed; 75 a running agent sees to it."
)]
pub struct InstallCniFlags {
    /// Where things are.
    #[command(flatten)]
    pub place: PlaceFlags,
    /// The mode; auto chooses it
    #[arg(
        long,
        env = "VEER_CNI_INSTALL",
        value_name = "auto|chained|owned|multus|dropin",
        default_value = "auto"
    )]
    pub cni_install: String,
    /// Where and what.
    #[command(flatten)]
    pub cni: CniFlags,
    /// What the agent goes by, too.
    #[command(flatten)]
    pub common: CommonFlags,
    /// Only tell what would be changed
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `veer uninstall-cni`.
#[derive(Debug, Clone, Args)]
#[command(
    long_about = "Take the plugin out of the runtime's CNI configuration: the vendors' files are as they were, byte for byte.\n\n\
        From then on pods start without veer. The plugin itself stays as long as pods are there that were attached with\n\
        it, because some runtimes (CRI-O) call it when they go: it then succeeds without an agent. Run this again to\n\
        remove it. To take veer off a node: end the agent, then this, then `veer uninstall`.",
    after_help = "Exit codes: 0 done, or nothing was there; the plugin may have stayed, and the output says why; 64 usage; \
        70 something could not be put back, run it again; 75 a running agent would put it in again."
)]
pub struct UninstallCniFlags {
    /// Where things are.
    #[command(flatten)]
    pub place: PlaceFlags,
    /// Where the runtime's CNI is.
    #[command(flatten)]
    pub directories: CniPlaceFlags,
    /// Where the runtime's CNI keeps what it knows of attachments
    #[arg(long, env = "VEER_CNI_CACHE", value_name = "DIR", default_value = "/var/lib/cni")]
    pub cni_cache: String,
    /// Only tell what would be changed
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `veer check`.
#[derive(Debug, Clone, Args)]
#[command(
    long_about = "Run in a pod, by anybody: prove that its connections are redirected.\n\n\
        Listens where the proxy does, dials, and compares where the connection arrives and what its original\n\
        destination is. It needs no capability and no mesh, and it takes the place of istio-validation: run it\n\
        as an init container with the proxy's uid, before the proxy. Run by another user it tries what an app\n\
        does: it dials an address of documentation (192.0.2.1, 2001:db8::1), which must not leave the pod.",
    after_help = "Exit codes: 0 redirected, 126 not redirected (stderr says what is missing), 69 cannot be told \
        here (the proxy has its ports already)."
)]
pub struct CheckFlags {
    /// Families that are tried; auto takes those that Istio captures in this pod
    #[arg(long, value_name = "auto|ipv4|ipv6|both", default_value = "auto")]
    pub family: String,
    /// How long the redirection may take to appear, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "5")]
    pub timeout: String,
    /// The proxy's uid in this pod
    #[arg(long, value_name = "UID", default_value = "1337")]
    pub proxy_uid: String,
    /// Whether the proxy serves IPv6 beside IPv4, as its environment says
    #[arg(long, env = "ISTIO_DUAL_STACK", value_name = "BOOL", default_value = "false")]
    pub dual_stack: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of commands that only read.
#[derive(Debug, Clone, Args)]
pub struct ReadFlags {
    /// Where things are.
    #[command(flatten)]
    pub place: PlaceFlags,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `veer pods`.
#[derive(Debug, Clone, Args)]
pub struct PodsFlags {
    /// Show this pod in full, with every reason that was counted
    #[arg(value_name = "NAMESPACE/NAME")]
    pub pod: Option<String>,
    /// What all readers have.
    #[command(flatten)]
    pub read: ReadFlags,
}

/// Flags of `veer monitor`.
#[derive(Debug, Clone, Args)]
pub struct MonitorFlags {
    /// Only this pod
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub pod: Option<String>,
    /// Only this action: direct, to-outbound, to-inbound, to-dns or drop
    #[arg(long, value_name = "ACTION")]
    pub action: Option<String>,
    /// Only this reason, as `veer pods NAMESPACE/NAME` names it
    #[arg(long, value_name = "REASON")]
    pub reason: Option<String>,
    /// End after so many decisions
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// What all readers have.
    #[command(flatten)]
    pub read: ReadFlags,
}

/// Flags of `veer doctor`.
#[derive(Debug, Clone, Args)]
#[command(
    long_about = "Tell whether this node is able, what would be used, and what is in the way.\n\n\
        Loads every program and makes every map as the agent would, attaches them in a cgroup and a network\n\
        namespace of their own, and lets go of all of it: nothing is pinned, nothing is left, and an agent that\n\
        runs does not notice. Then it looks at where things are and who else is there: other eBPF programs at\n\
        the same hooks and their order, the CNI configuration that the runtime uses, rules of istio-init and of\n\
        other meshes in the pods' namespaces. Each finding says what it means and what to do. Without root it\n\
        says what it can see, and what it cannot.",
    after_help = "Exit codes: 0 all is well, 1 there are warnings, 2 there are errors: pods cannot be redirected, \
        or are redirected wrongly; 64 usage. --json has the same findings with stable names."
)]
pub struct DoctorFlags {
    /// Cgroup v2 directory of the pods; auto takes the running agent's, else finds kubepods, else the root
    #[arg(long, env = "VEER_CGROUP", value_name = "auto|PATH", default_value = "auto")]
    pub cgroup: String,
    /// Directory of the runtime's CNI configuration; auto finds it
    #[arg(long, env = "VEER_CNI_CONF_DIR", value_name = "auto|DIR", default_value = "auto")]
    pub cni_conf_dir: String,
    /// Directory of the runtime's CNI plugins; auto takes the one that belongs to the configuration
    #[arg(long, env = "VEER_CNI_BIN_DIR", value_name = "auto|DIR", default_value = "auto")]
    pub cni_bin_dir: String,
    /// What all readers have.
    #[command(flatten)]
    pub read: ReadFlags,
}

/// Flags of `veer explain`.
#[derive(Debug, Clone, Args)]
#[command(
    override_usage = "veer explain NAMESPACE/NAME --to IP:PORT [--as UID:GID [--container WHICH]]\n                    \
                      [--source IP] [--interface NAME] [--mark MARK] [--protocol tcp|udp]\n       \
                      veer explain NAMESPACE/NAME --from IP --port PORT [--at IP] [--interface NAME]\n       \
                      veer explain --event LINE|-",
    after_help = "Exit codes: 0 explained, 64 usage, 69 nobody knows the pod or there is no datapath, 70 failed.\n\
                  A pod that is not enrolled is explained, too: veer does nothing to it, and why."
)]
pub struct ExplainFlags {
    /// The pod
    #[arg(value_name = "NAMESPACE/NAME", required_unless_present = "event")]
    pub pod: Option<String>,
    /// A connection that the pod opens: what it dials, 10.0.0.7:443 for one; IPv6 in brackets
    #[arg(long, value_name = "IP:PORT", conflicts_with_all = ["from", "port", "at", "event"])]
    pub to: Option<String>,
    /// Who created the socket; absent: somebody who is not the proxy
    #[arg(long = "as", value_name = "UID:GID", requires = "to")]
    pub identity: Option<String>,
    /// Where --as is, if it has the proxy's ids: in the proxy's container, or in another one
    #[arg(long, value_name = "proxy|other", value_parser = ["proxy", "other"], requires = "identity")]
    pub container: Option<String>,
    /// The mark of the socket (SO_MARK), by which ztunnel is known in ambient mode, and what a TPROXY proxy hands to its app;
    /// absent: none
    #[arg(long, value_name = "MARK", requires = "to")]
    pub mark: Option<String>,
    /// What the socket is bound to; absent: to nothing
    #[arg(long, value_name = "IP", requires = "to")]
    pub source: Option<String>,
    /// A connection that arrives in the pod: the client
    #[arg(long, value_name = "IP", requires = "port", conflicts_with = "event")]
    pub from: Option<String>,
    /// What is spoken: tcp, or udp, of which DNS alone may be captured
    #[arg(long, value_name = "tcp|udp", value_parser = ["tcp", "udp"], default_value = "tcp", conflicts_with = "event")]
    pub protocol: String,
    /// The port that the client dials
    #[arg(long, value_name = "PORT", requires = "from")]
    pub port: Option<u16>,
    /// The pod's address that the client dials; absent: its first of the client's family
    #[arg(long, value_name = "IP", requires = "from")]
    pub at: Option<String>,
    /// The interface that it arrives on, or that the socket is tied to; absent: none that an annotation names,
    /// and none
    #[arg(long, value_name = "NAME", conflicts_with = "event")]
    pub interface: Option<String>,
    /// A line of `veer monitor`, with --json or without; - reads lines from stdin
    #[arg(long, value_name = "LINE|-", conflicts_with = "pod")]
    pub event: Option<String>,
    /// What all readers have.
    #[command(flatten)]
    pub read: ReadFlags,
}

/// Flags of `veer uninstall`.
#[derive(Debug, Clone, Args)]
#[command(
    long_about = "Take everything of veer off this node: pods are no longer redirected.\n\n\
        Removes the pods' policies, the programs' links to cgroups and network namespaces, programs and maps of\n\
        all releases, the addresses ::6 that veer has put on pods' lo, and what is in the run directory. New\n\
        connections go where they are dialled from the first moment on; connections that a proxy has go on, and\n\
        those on their way to one arrive, for which it waits a second or two. It asks nothing, goes on after a\n\
        failure and names all of them, and may be run any number of times.\n\n\
        It does not touch the runtime's CNI configuration or the plugin: as long as veer-cni is in there, new pods\n\
        cannot start without an agent. `veer uninstall-cni` takes it out, and comes first. Nor does it touch pods: a\n\
        sidecar goes with its pod. The node's proxy, if an agent has started it, ends unless connections go through\n\
        it: the output tells of it then.",
    after_help = "Exit codes: 0 all is gone, or nothing was there; 64 usage; 70 something could not be removed \
        (stderr names it; run it again); 75 an agent runs, and nothing was done."
)]
pub struct UninstallFlags {
    /// Where things are.
    #[command(flatten)]
    pub place: PlaceFlags,
    /// The agent's --proxy-dir, if it had one: the proxy that it has started there, and its files, go as well
    #[arg(long, env = "VEER_PROXY_DIR", value_name = "DIR")]
    pub proxy_dir: Option<String>,
    /// Only tell what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
