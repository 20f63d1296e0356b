//! What was found out about a node, before anybody judges it.
//!
//! Texts are the kernel's or the file system's own words. Filled in by `platform::probe` and `commands::doctor`.

use std::time::Duration;

use crate::model::BackendName;

/// Something that was tried, and why it did not work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tried {
    /// What.
    pub name: String,
    /// The error's text, with all its lines.
    pub outcome: Result<(), String>,
}

/// Why something cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The system's words.
    pub words: String,
    /// Whether it is this process that may not.
    pub denied: bool,
}

/// Everything about the node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Kernel release and machine, for the heading alone: no decision depends on it.
    pub kernel: String,
    /// Who asks.
    pub process: Process,
    /// What the kernel says to the eBPF datapath.
    pub ebpf: Ebpf,
    /// What the kernel says to redirection by nf_tables, in each family.
    pub nftables: Vec<Tried>,
    /// Settings of the kernel.
    pub kernel_settings: KernelSettings,
    /// The cgroup tree.
    pub cgroups: Cgroups,
    /// Whose programs are at the hooks.
    pub hooks: Vec<Hook>,
    /// The file systems.
    pub places: Places,
    /// The agent of this node.
    pub agent: Agent,
    /// The runtime's CNI configuration.
    pub cni: Cni,
    /// What else redirects.
    pub redirections: Redirections,
    /// How long all of this took.
    pub took: Duration,
}

/// The process that looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Process {
    /// Effective user.
    pub uid: u32,
    /// Effective capabilities, a bit each, as in `include/uapi/linux/capability.h`.
    pub capabilities: u64,
    /// Bytes that it may lock (`RLIMIT_MEMLOCK`); `None`: no limit.
    pub locked_memory: Option<u64>,
}

/// The trial of the eBPF datapath.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ebpf {
    /// The maps of the node's object, made at once.
    pub maps: Option<Result<usize, String>>,
    /// Kinds of map, one by one; tried where the maps could not be made.
    pub map_kinds: Vec<Tried>,
    /// Each program's loading.
    pub programs: Vec<Tried>,
    /// Each program's attaching in a cgroup and a netns of the trial's own.
    pub hooks: Vec<Tried>,
    /// Whether a netns tells its cookie.
    pub netns_cookie: Option<Result<CookieFrom, String>>,
    /// Whether the inbound program may ask on which interface a connection arrives; absent where it does not load.
    pub arrival_interface: Option<Result<(), String>>,
}

/// Who tells the cookie of a netns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CookieFrom {
    /// The kernel, to whoever asks.
    Kernel,
    /// A program, before Linux 5.14.
    Program,
}

/// Settings of the kernel that matter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KernelSettings {
    /// `net.core.bpf_jit_enable`; absent where the kernel has no such switch.
    pub jit: Option<String>,
    /// `/sys/kernel/security/lockdown`; absent without lockdown.
    pub lockdown: Option<String>,
    /// Whether the kernel speaks IPv6.
    pub ipv6: bool,
}

/// The cgroup tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cgroups {
    /// Where hierarchies of version 1 are mounted.
    pub v1: Vec<String>,
    /// Where version 2 is mounted.
    pub v2: Vec<String>,
    /// Where the programs are attached, or will be.
    pub target: Result<String, String>,
    /// Who says so.
    pub chosen_by: ChosenBy,
    /// Pods' processes.
    pub pods: PodProcesses,
}

/// Why it is this cgroup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChosenBy {
    /// `--cgroup`.
    Flag,
    /// The agent that runs.
    Agent,
    /// `auto`.
    Auto,
}

/// Processes that a hierarchy of cgroups knows as a pod's.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PodProcesses {
    /// Below the target, in version 2.
    pub inside: usize,
    /// Elsewhere in version 2.
    pub outside: usize,
    /// The process id of one that is outside, and its path in version 2.
    pub example: Option<(u32, String)>,
    /// Known as a pod's by version 1 alone.
    pub in_v1_alone: usize,
}

/// Programs at one hook of the target, in the order of their running.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hook {
    /// As the kernel's documentation names it: `connect4`.
    pub name: String,
    /// Whether a program there may change where a connection or datagram goes.
    pub rewrites: bool,
    /// The programs.
    pub programs: Result<Vec<HookProgram>, String>,
}

/// A program at a hook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HookProgram {
    /// Its id.
    pub id: u32,
    /// Its name, empty if it has none.
    pub name: String,
    /// The cgroup that it hangs on; `None` if that cannot be seen.
    pub cgroup: Option<String>,
    /// Whether it is one of ours.
    pub ours: bool,
}

/// The file systems.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Places {
    /// The directory of pins (`--bpffs`).
    pub pins: String,
    /// Where a bpffs is mounted.
    pub bpffs_mounts: Vec<String>,
    /// Whether the directory is on a bpffs and can be written to.
    pub pins_usable: Result<(), PinsProblem>,
    /// Versions of the ABI that have pins there: `v2`.
    pub versions: Vec<String>,
    /// This binary's version of the ABI.
    pub our_version: String,
    /// The run directory (`--run-dir`).
    pub run_dir: String,
    /// Whether it is there or can be made, and written to.
    pub run_dir_usable: Result<(), Problem>,
}

/// Why nothing can be pinned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PinsProblem {
    /// It is no bpffs.
    NotBpffs,
    /// It is one.
    Unusable(Problem),
}

/// The agent of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agent {
    /// What it answers, or why it does not.
    pub answer: Result<Answer, String>,
    /// Whether its socket is there.
    pub socket: bool,
    /// Our programs that are pinned and hang on no cgroup.
    pub detached: Vec<String>,
    /// Pods that are enrolled, as the pinned maps tell; `None` without maps, or if they cannot be read.
    pub enrolled: Option<usize>,
    /// This binary's release.
    pub our_release: String,
}

/// What a running agent says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Its release.
    pub version: String,
    /// Its process id.
    pub pid: u64,
    /// Where it has attached its programs.
    pub cgroup: Option<String>,
    /// Why proxies are not known by what `--proxy-identity` says.
    pub identity_problem: Option<String>,
    /// What redirects new pods.
    pub backend: BackendName,
    /// Why that; an earlier release does not say.
    pub backend_reason: Option<String>,
}

/// The runtime's CNI configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cni {
    /// The directory that was looked at.
    pub directory: String,
    /// Other places of runtimes that have configurations, too.
    pub others: Vec<String>,
    /// The files in it, sorted by name as a runtime sorts them.
    pub files: Result<Vec<ConfigFile>, Problem>,
    /// The directory of plugins.
    pub plugins: String,
    /// Whether `veer-cni` is in it and can be executed.
    pub veer: Result<(), Problem>,
}

/// A file of the CNI configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigFile {
    /// Its name without the directory.
    pub name: String,
    /// What stands in it.
    pub content: Result<String, String>,
}

/// What else redirects connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Redirections {
    /// The namespaces that were looked at; the node's own is not among them.
    pub netns: Vec<Netns>,
    /// Chains of the node's own netns.
    pub node: Result<Vec<Chain>, String>,
    /// Namespaces that were not looked at, because there are too many.
    pub left_off: usize,
    /// Processes whose namespace could not be seen.
    pub hidden: usize,
}

/// A netns other than the node's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Netns {
    /// Its inode number.
    pub inode: u64,
    /// Whose it is: the pod, or one of its processes.
    pub who: String,
    /// Whether it is that of an enrolled pod.
    pub enrolled: bool,
    /// Its chains.
    pub chains: Result<Vec<Chain>, String>,
}

/// A chain of nf_tables or of iptables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// The table's name.
    pub table: String,
    /// The chain's.
    pub name: String,
}
