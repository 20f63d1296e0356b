//! The agent: builds all of its parts, starts them in order and stops them in order.
//!
//! Owns: the composition. Never does: anything that one of the parts
//! could do. Stopping changes nothing for the pods: programs, links and maps stay pinned.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{Admin, ListenError, Proxies, View};
use crate::cluster::client::ConnectError;
use crate::cni::answer::Answerer;
use crate::cni::server;
use crate::config::{AgentConfig, HealConfig};
use crate::control::{AgentStatus, Control};
use crate::enrol::versions::OtherVersions;
use crate::enrol::{EnrolError, Node, NodeHandle, follow};
use crate::installer::InstallState;
use crate::installer::watch::Installer;
use crate::lock::{self, LockError};
use crate::model::BackendName;
use crate::platform::bpf::BpfError;
use crate::platform::bpf::events::Events;
use crate::platform::bpf::load::{build_id, build_text};
use crate::platform::bpf::order::Neighbours;
use crate::platform::bpf::pins::Pins;
use crate::platform::cgroup::CgroupError;
use crate::platform::netlink::changes::AddressChanges;
use crate::platform::netns::{NetnsError, NetnsThread};
use crate::platform::records::RecordError;
use crate::proxy::supervise::Watched;
use crate::proxy::watch::{ProxyNews, ProxyWatch};
use crate::readiness::probe::Probe;
use crate::readiness::{Condition, Readiness};
use crate::reconcile::{Reconciler, Report};
use crate::socket;
use crate::source::{PodSource, Source, SourceError};
use crate::wall_clock;

mod choice;
mod pods;
mod proxy;
mod supervise;

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Another agent has the run directory.
    #[error("another agent runs on {path}: a node has one; `veer status` names it, SIGTERM ends it", path = path.display())]
    Running {
        /// The lock.
        path: PathBuf,
    },
    /// A file or socket.
    #[error("{attempt} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A thread, the runtime or a signal.
    #[error("{attempt}: {source}")]
    System {
        /// What was tried.
        attempt: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The datapath.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// The directory of records.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The agent's own netns.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// What an earlier agent has left.
    #[error("take over what is enrolled: {0}")]
    TakeOver(#[from] EnrolError),
    /// The pods' source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Where metrics or health were to be served.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Where the API server is, or who the agent is to it.
    #[error(transparent)]
    Cluster(#[from] ConnectError),
}

impl From<LockError> for AppError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Held { path, .. } => Self::Running { path },
            LockError::File { attempt, path, source } => Self::File { attempt, path, source },
        }
    }
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// Whatever keeps it from starting.
pub fn run(config: &AgentConfig) -> Result<(), AppError> {
    let lock = lock::take(&config.place)?;
    let runtime = runtime()?;
    let readiness = Readiness::default();
    let pods::Pods { source, notices, redirections, cluster } =
        runtime.block_on(pods::pods(config, &readiness))?;
    let admin = Admin::bind(&config.admin)?;
    let choice::Chosen { loaded, reason } = choice::choose(config)?;
    let backend = if loaded.is_some() { BackendName::Ebpf } else { BackendName::Nftables };
    tracing::info!(backend = backend.name(), %reason, "backend");
    raise_descriptor_limit();
    let (cgroup, pins) = loaded.as_ref().map(choice::Loaded::places).unzip();
    let neighbours = neighbours(loaded.as_ref());
    // Before the pods are looked at, so that no change is missed in between.
    let changes = address_changes();
    let netns = NetnsThread::start()?;
    let others = OtherVersions::below(&config.place.bpffs);
    let node = Node::take_over(choice::backends(loaded, &config.place, &netns)?, netns.clone(), others)?;
    release_memory();

    let system = |attempt| move |source| AppError::System { attempt, source };
    let news = ProxyNews::default();
    let around =
        proxy::Around { netns: &netns, news: &news, attached: cgroup.as_deref(), readiness: &readiness };
    let (drivers, proxy, watched) = proxy::Tasks::of(config, redirections, &around);
    let granted = choice::settings(config, backend);
    let node = node.with_drivers(drivers.clone()).with_ambient(granted.settings.ztunnel)?;
    let started = node.start();
    let (handle, thread) = started.map_err(system("start the node's thread"))?;
    let (installer, cni) = Installer::of(config, &admin.metrics, &readiness);
    let status = AgentStatus {
        cgroup: cgroup.map(|path| path.display().to_string()),
        cni: cni.borrow().clone(),
        ..status(config, source.name(), &admin, &granted, (backend, reason))
    };
    let follower = changes.map(|changes| (changes, handle.clone()));
    let probe = Arc::new(Probe::new(&readiness, handle.clone(), config.place.cni_socket()));
    let (settings, node, metrics) = (granted.settings, handle, admin.metrics.clone());
    let answerer = Arc::new(Answerer { source, settings, node, notices, drivers, metrics });
    let proxies = Arc::new(ProxyWatch::new(Arc::clone(&answerer), news));
    let report = Report::default();
    let control = Control::new(&proxies, status, neighbours, Arc::clone(&report), cni, watched.clone());
    let reconciler = reconciler(&config.heal, &readiness, &proxies, netns, report);
    let view = view(config, &reconciler, readiness, Arc::clone(&probe), watched);
    let parts = Parts {
        pins,
        control,
        answerer,
        proxy,
        follower,
        proxies,
        reconciler,
        cluster,
        admin,
        view,
        probe,
        installer,
    };

    runtime.block_on(serve(config, parts))?;
    drop(runtime);
    join(thread);
    drop(lock);
    Ok(())
}

/// Addresses that pods gain or lose.
fn address_changes() -> Option<AddressChanges> {
    let changes = AddressChanges::listen().inspect_err(|error| {
        tracing::warn!(%error, "addresses that pods gain or lose later are not followed: CAP_NET_BROADCAST?");
    });
    changes.ok()
}

/// Every handle is gone with the runtime's tasks, so the thread's queue has ended.
fn join(thread: std::thread::JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("the node's thread panicked");
    }
}

/// What brings back what is lost, and how far it is with that.
fn reconciler(
    config: &HealConfig,
    readiness: &Readiness,
    proxies: &Arc<ProxyWatch<Source>>,
    netns: NetnsThread,
    report: Report,
) -> Reconciler<Source> {
    let HealConfig { cni_cache, interval } = config.clone();
    let condition = |name| -> Condition { readiness.condition(name, "not looked at yet") };
    let (settled, shared) = (condition("settled"), condition("datapath"));
    let (answerer, proxies) = (Arc::clone(proxies.answerer()), Arc::clone(proxies));
    let metrics = answerer.metrics.clone();
    Reconciler { answerer, proxies, netns, cni_cache, interval, report, metrics, settled, shared }
}

/// What does not change while it runs; all else is looked at when somebody asks.
fn status(
    config: &AgentConfig,
    pods_from: String,
    admin: &Admin,
    granted: &choice::Granted,
    (backend, backend_reason): (BackendName, String),
) -> AgentStatus {
    let choice::Granted { settings, identity_problem, before_proxy_problem } = granted;
    AgentStatus {
        admin_addr: admin.scraped_at(),
        health_addr: admin.probed_at(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        build: build_text(build_id()),
        pid: std::process::id(),
        started_at: wall_clock::seconds(),
        pods_from,
        source: None,
        pod_events: None,
        backend,
        backend_reason,
        cgroup: None,
        exclude_namespaces: config.exclude_namespaces.iter().cloned().collect(),
        proxy_identity: settings.proxy_identity.name().to_owned(),
        identity_problem: identity_problem.clone(),
        before_proxy: settings.before_proxy.name().to_owned(),
        before_proxy_problem: before_proxy_problem.clone(),
        node_proxy: None,
        ztunnel: None,
        proxies: BTreeMap::new(),
        proxy_problems: Vec::new(),
        node_proxy_process: None,
        enrolled: 0,
        runs_before: Vec::new(),
        looked_at: None,
        unrepaired: Vec::new(),
        cni: InstallState::begin(config.cni.asked(), String::new(), config.cni.is_off, 0),
    }
}

/// Whom monitors are answered from.
fn view(
    config: &AgentConfig,
    reconciler: &Reconciler<Source>,
    readiness: Readiness,
    probe: Arc<Probe>,
    proxy: Watched,
) -> View<Source> {
    let (answerer, standing) = (&reconciler.answerer, Arc::clone(&reconciler.proxies));
    let (node, metrics) = (answerer.node.clone(), answerer.metrics.clone());
    let (netns, ads) = (reconciler.netns.clone(), answerer.drivers.node.clone());
    let (directory, zds) = (config.proxy_dir.clone(), answerer.drivers.ztunnel.clone());
    let proxies = Proxies::new(directory, node.clone(), netns, metrics.clone(), ads, zds);
    let (source, report) = (answerer.source.clone(), Arc::clone(&reconciler.report));
    let proxies = Arc::new(proxies);
    View { source, node, report, standing, metrics, readiness, probe, proxies, proxy }
}

/// Who else is where the programs hang.
fn neighbours(loaded: Option<&choice::Loaded>) -> Option<Neighbours> {
    let neighbours =
        loaded.map(|loaded| Neighbours { pins: loaded.pins.clone(), cgroup: loaded.cgroup.clone() });
    for program in neighbours.iter().flat_map(Neighbours::before_ours) {
        tracing::warn!("{program}");
    }
    neighbours
}

/// One thread is plenty: requests are a few a second, and the work is on the node's thread.
fn runtime() -> Result<Runtime, AppError> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|source| AppError::System { attempt: "start the runtime", source })
}

/// What runs until the agent is told to stop.
struct Parts {
    /// Of the eBPF programs, if there are any.
    pins: Option<Pins>,
    control: Arc<Control<Source>>,
    answerer: Arc<Answerer<Source>>,
    proxy: proxy::Tasks,
    follower: Option<(AddressChanges, NodeHandle)>,
    proxies: Arc<ProxyWatch<Source>>,
    reconciler: Reconciler<Source>,
    cluster: Option<pods::Cluster>,
    admin: Admin,
    view: View<Source>,
    probe: Arc<Probe>,
    installer: Installer,
}

async fn serve(config: &AgentConfig, parts: Parts) -> Result<(), AppError> {
    let place = &config.place;
    let Parts {
        pins,
        control,
        answerer,
        proxy,
        follower,
        proxies,
        reconciler,
        cluster,
        admin,
        view,
        probe,
        installer,
    } = parts;
    let listen = |path: PathBuf| {
        socket::listen(&path).map_err(|source| AppError::File { attempt: "listen on", path, source })
    };
    let system = |attempt| move |source| AppError::System { attempt, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(system("wait for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("wait for SIGINT"))?;
    let control_socket = listen(place.control_socket())?;
    // The plugin's socket comes last: when it is there, all is ready.
    let cni_socket = listen(place.cni_socket())?;
    let events = pins.as_ref().map(Events::open).transpose()?;

    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    tasks.spawn(Arc::clone(&control).serve(control_socket, stop.clone()));
    if let Some(events) = events {
        tasks.spawn(control.publish(events, stop.clone()));
    }
    if let Some((changes, node)) = follower {
        tasks.spawn(follow::serve(changes, node, stop.clone()));
    }
    if let Some(cluster) = cluster {
        cluster.start(&tasks, &stop);
        // Nobody else hears of it unasked.
        tasks.spawn(Arc::clone(&probe).serve(stop.clone()));
    }
    proxy.start(config, &answerer, &view.readiness, &tasks, &stop)?;
    admin.serve(view, &tasks, &stop).map_err(system("serve metrics and health"))?;
    tasks.spawn(proxies.serve(stop.clone()));
    tasks.spawn(reconciler.serve(stop.clone()));
    tasks.spawn(server::serve(cni_socket, answerer, stop.clone()));
    // Once somebody answers whom the runtime will call.
    tasks.spawn(installer.serve(stop.clone()));
    tracing::info!(run_dir = %place.run_dir.display(), "ready");

    let received = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal = received, "stopping; the pods stay as they are");
    probe.stopping();
    // New ADDs must find no socket, rather than one that nobody serves.
    for path in [place.cni_socket(), place.control_socket()] {
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "remove socket");
        }
    }
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// Lets the agent hold as many descriptors as it may: it has one for each pod, and systems begin with 1,024.
fn raise_descriptor_limit() {
    let most = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }) {
        tracing::warn!(%error, "raise the number of descriptors");
    }
}

/// Gives back what loading took: aya parses the kernel's own types when a loader is made, some 20 MB in
/// small pieces, which glibc would keep.
#[expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]
fn release_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it takes no pointer and may be called at any time.
        let _trimmed = unsafe { libc::malloc_trim(0) };
    }
}
