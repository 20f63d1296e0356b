//! Which backend redirects the node's pods: what was asked for, or what the kernel takes.
//!
//! Owns: the trial. A version says nothing (kernels of distributions are patched both ways), so the programs are
//! really loaded and attached; where that fails nothing of it stays. And what the pods' settings can be, which depends on it.
//! Called by: `app`.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;

use super::AppError;
use crate::config::{AgentConfig, BackendChoice, Place};
use crate::enrol::{Backends, Ebpf, Nftables};
use crate::model::{BackendName, BeforeProxy, NodeSettings, ProxyIdentity};
use crate::platform::bpf::BpfError;
use crate::platform::bpf::load::{Datapath, Origin, build_id, build_text};
use crate::platform::bpf::pins::Pins;
use crate::platform::cgroup::{self, Cgroup, CgroupError};
use crate::platform::netns::NetnsThread;
use crate::platform::records::{RecordError, Records};

/// What was chosen.
pub(super) struct Chosen {
    /// The datapath, for eBPF.
    pub(super) loaded: Option<Loaded>,
    /// Why, in one line.
    pub(super) reason: String,
}

/// The datapath, loaded and attached.
pub(super) struct Loaded {
    pub(super) datapath: Datapath,
    pub(super) pins: Pins,
    pub(super) cgroup: PathBuf,
}

impl Loaded {
    /// Where it hangs, and where it is pinned.
    pub(super) fn places(&self) -> (PathBuf, Pins) {
        (self.cgroup.clone(), self.pins.clone())
    }
}

/// Chooses, and loads what is to be loaded.
///
/// # Errors
/// If what was asked for cannot be had; with `auto`, if what stands in the way is not the kernel's.
pub(super) fn choose(config: &AgentConfig) -> Result<Chosen, AppError> {
    let asked = |name: BackendName| format!("--backend {}", name.name());
    match config.backend {
        BackendChoice::Only(BackendName::Ebpf) => {
            Ok(Chosen { loaded: Some(load(config)?), reason: asked(BackendName::Ebpf) })
        }
        BackendChoice::Only(BackendName::Nftables) => {
            warn_of_pods_of_ebpf(config);
            Ok(Chosen { loaded: None, reason: asked(BackendName::Nftables) })
        }
        BackendChoice::Auto => automatic(config),
    }
}

fn automatic(config: &AgentConfig) -> Result<Chosen, AppError> {
    let pins = Pins::new(&config.place.bpffs);
    let had_datapath = pins.root().exists();
    match load(config) {
        Ok(loaded) => {
            let reason = "the kernel takes the eBPF programs".to_owned();
            Ok(Chosen { loaded: Some(loaded), reason })
        }
        // Pods that eBPF redirects would be left without an agent that knows them.
        Err(error) if !had_datapath && is_the_nodes(&error) => {
            tracing::warn!(%error, "the eBPF programs cannot be used on this node, nftables takes their place");
            discard(&pins);
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            Ok(Chosen { loaded: None, reason: format!("eBPF cannot be used: {first}") })
        }
        Err(error) => {
            if had_datapath && is_the_nodes(&error) {
                let pins = pins.root().display();
                tracing::error!(
                    %pins,
                    "eBPF has redirected pods on this node, so nftables does not take its place; if none of them is left, \
                     or none is to stay: veer uninstall"
                );
            }
            Err(error)
        }
    }
}

/// The backends: what was chosen for new pods, and nftables in any case, for pods that it has enrolled.
///
/// # Errors
/// If there is no place for records.
pub(super) fn backends(
    loaded: Option<Loaded>,
    place: &Place,
    netns: &NetnsThread,
) -> Result<Backends, RecordError> {
    let records = Records::new(&place.records());
    if loaded.is_none() {
        // Also without a pod the commands find that an agent has been here.
        records.create()?;
    }
    let ebpf = loaded.map(|loaded| Ebpf::new(loaded.datapath, netns.clone()));
    Ok(Backends::new(ebpf, Nftables::new(records, netns.clone())))
}

fn load(config: &AgentConfig) -> Result<Loaded, AppError> {
    let cgroup = Cgroup::find(config.cgroup.as_deref())?;
    let pins = Pins::new(&config.place.bpffs);
    let datapath = Datapath::start(pins.clone(), cgroup.directory.as_fd(), cgroup.id)?;
    let (build, before) = (build_text(build_id()), before(datapath.origin()));
    tracing::info!(
        cgroup = %cgroup.path.display(), pins = %pins.root().display(), build, before,
        "datapath attached"
    );
    Ok(Loaded { datapath, pins, cgroup: cgroup.path })
}

/// What was attached when this agent came.
fn before(origin: Origin) -> String {
    match origin {
        Origin::Same => "this build, which stays as it is".to_owned(),
        Origin::Other(0) => "a replacement that was interrupted, or programs not in their place".to_owned(),
        Origin::Other(build) => format!("build {}", build_text(build)),
        Origin::Nobody => "nothing".to_owned(),
    }
}

/// Whether an error says what the node cannot do, rather than what is configured wrongly.
#[expect(clippy::wildcard_enum_match_arm, reason = "what is not known to be the node's is an error")]
fn is_the_nodes(error: &AppError) -> bool {
    match error {
        AppError::Cgroup(CgroupError::NoMount)
        | AppError::Bpf(
            BpfError::Object { .. }
            | BpfError::Program { .. }
            | BpfError::Attach { .. }
            | BpfError::Map { .. }
            | BpfError::RawMap { .. },
        ) => true,
        // A kernel that knows the file system wants it mounted.
        AppError::Bpf(BpfError::NotBpffs { .. }) => !has_bpffs(),
        _ => false,
    }
}

fn has_bpffs() -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.split_ascii_whitespace().last() == Some("bpf"))
}

/// What holds for all pods of the node, and what of it is not as it was asked for.
pub(super) struct Granted {
    pub(super) settings: NodeSettings,
    pub(super) identity_problem: Option<String>,
    pub(super) before_proxy_problem: Option<String>,
}

/// The settings, as far as the backend is able to them.
pub(super) fn settings(config: &AgentConfig, backend: BackendName) -> Granted {
    let (proxy_identity, identity_problem) = proxy_identity(config.proxy_identity, backend);
    let (before_proxy, before_proxy_problem) = before_proxy(config.before_proxy, backend);
    let settings = NodeSettings {
        excluded_namespaces: config.exclude_namespaces.clone(),
        owner_groups: config.owner_groups.clone(),
        loopback: config.loopback,
        proxy_identity,
        before_proxy,
        ztunnel: config.ztunnel_socket.is_some(),
    };
    Granted { settings, identity_problem, before_proxy_problem }
}

/// What can make a process the proxy on this node, and why that is not what was asked for.
fn proxy_identity(wanted: ProxyIdentity, backend: BackendName) -> (ProxyIdentity, Option<String>) {
    if wanted == ProxyIdentity::Uid {
        return (wanted, None);
    }
    let problem = match (backend, cgroup::pods_are_in_v1_alone()) {
        // They could match a cgroup (`socket cgroupv2`) from Linux 5.13 on: later than most kernels that need them.
        (BackendName::Nftables, _) => "veer's rules of nftables know a process by its uid and gid".to_owned(),
        (BackendName::Ebpf, Ok(false)) => return (wanted, None),
        (BackendName::Ebpf, Ok(true)) => {
            "the pods' processes are in cgroup v1 alone, where no container can be told from another"
                .to_owned()
        }
        (BackendName::Ebpf, Err(error)) => format!("where the pods' processes are cannot be told: {error}"),
    };
    let problem = format!("--proxy-identity=container is not possible on this node, it is uid: {problem}");
    tracing::warn!("{problem}");
    (ProxyIdentity::Uid, Some(problem))
}

/// What becomes of connections before a pod's proxy has listened, and why that is not what was asked for.
fn before_proxy(wanted: BeforeProxy, backend: BackendName) -> (BeforeProxy, Option<String>) {
    if wanted == BeforeProxy::Refuse || backend == BackendName::Ebpf {
        return (wanted, None);
    }
    // No rule asks whether there is a listener (`socket` asks for the packet's own port), and the agent would have to
    // poll for it: until it looks, an app with its proxy goes past it.
    let problem = "--before-proxy=direct is not possible on this node, it is refuse: veer's rules of nftables do not \
                   change by themselves when the proxy begins to listen";
    tracing::warn!("{problem}");
    (BeforeProxy::Refuse, Some(problem.to_owned()))
}

/// Takes away what a trial has pinned before it failed, and so what it has attached.
fn discard(pins: &Pins) {
    match fs::remove_dir_all(pins.root()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::error!(pins = %pins.root().display(), %error, "remove what the trial has pinned");
        }
        Ok(()) | Err(_) => {}
    }
}

fn warn_of_pods_of_ebpf(config: &AgentConfig) {
    let pins = Pins::new(&config.place.bpffs);
    let pods = fs::read_dir(pins.root().join("netns")).map_or(0, Iterator::count);
    if pods > 0 {
        tracing::warn!(
            pods, pins = %pins.root().display(),
            "pods that eBPF redirects stay as they are, and this agent does not know them: \
             their DEL leaves what is pinned of them, until an agent with eBPF starts"
        );
    }
}
