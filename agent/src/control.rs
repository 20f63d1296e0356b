//! The commands' socket: what only the running agent knows.
//!
//! Owns: `RUN_DIR/control.sock`, one JSON line as the question, JSON lines as the answer; the one reader of
//! the ring buffer, and its copies for whoever watches. Never does: what the pins can tell without an
//! agent; `veer status` and `veer pods` read those themselves, so that they work when it is dead.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use veer_common::cni::PodReference;
use veer_common::event::{Event, NO_ID, PROXY_BEGAN, PROXY_CEASED, UDP};
use veer_common::maps::NetnsCookie;
use veer_common::reason::Reason;

use crate::cluster::notice::{NoticeCounts, Notices};
use crate::enrol::{Enrolled, NodeHandle};
use crate::installer::InstallState;
use crate::lookup::Lookup;
use crate::model::{BackendName, Driver};
use crate::platform::bpf::events::Events;
use crate::platform::bpf::order::{Neighbours, RunsBefore};
use crate::proxy::ads::Standing;
use crate::proxy::driver::Depth;
use crate::proxy::state::ProxyState;
use crate::proxy::supervise::{ProxyProcess, Watched};
use crate::proxy::watch::{PodProxy, ProxyWatch};
use crate::proxy::zds;
use crate::reconcile::{Look, Report, Unrepaired};
use crate::socket;
use crate::source::{PodSource, SourceHealth};
use crate::wall_clock;

/// The socket's name below the run directory.
pub const SOCKET_NAME: &str = "control.sock";
/// Longest question in bytes.
const LONGEST_QUESTION: u64 = 4096;
/// How long a question may take to arrive.
const PATIENCE: Duration = Duration::from_secs(5);
/// Decisions that a slow watcher may lag behind; then it is told how many it missed.
const BACKLOG: usize = 8192;

/// What a command asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub enum Question {
    /// Who are you?
    Status,
    /// Every decision from now on.
    Monitor,
    /// How do the pods' proxies stand? They are asked themselves. Answered with a list of [`PodProxy`].
    Proxies,
    /// What do you know of this pod? Answered with [`PodFacts`](crate::explain::causes::PodFacts).
    Pod {
        /// Kubernetes namespace.
        namespace: String,
        /// Pod name.
        name: String,
    },
}

/// What the agent says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// Release.
    pub version: String,
    /// The eBPF programs that it has: those of another build are other ones, of the same release, too.
    pub build: String,
    /// Process id.
    pub pid: u32,
    /// Start, in seconds since the epoch.
    pub started_at: u64,
    /// Where pods are read from.
    pub pods_from: String,
    /// Whether what that knows is current; absent where it looks each time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceHealth>,
    /// What has become of the Events of pods; absent where nobody writes any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_events: Option<NoticeCounts>,
    /// What redirects new pods.
    pub backend: BackendName,
    /// Why that.
    pub backend_reason: String,
    /// Where the programs are attached; none of them are needed for nftables.
    pub cgroup: Option<String>,
    /// Where metrics are served; `None` where that is off.
    pub admin_addr: Option<String>,
    /// Where health and readiness are.
    pub health_addr: Option<String>,
    /// Namespaces that are left alone.
    pub exclude_namespaces: Vec<String>,
    /// Pods that are enrolled.
    pub enrolled: usize,
    /// What makes a process the proxy in pods that are enrolled from now on: `uid` or `container`.
    pub proxy_identity: String,
    /// Why that is not what the agent's flag says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity_problem: Option<String>,
    /// What becomes of connections before a pod's proxy has listened, in pods that are enrolled from now on:
    /// `refuse` or `direct`.
    pub before_proxy: String,
    /// Why that is not what the agent's flag says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before_proxy_problem: Option<String>,
    /// The node's proxy, if one is connected or a pod is to be served by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_proxy: Option<Standing>,
    /// The process that it is, if the agent starts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_proxy_process: Option<ProxyProcess>,
    /// The node's ztunnel, if the agent drives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ztunnel: Option<zds::Standing>,
    /// Proxies by driver and state.
    #[serde(default)]
    pub proxies: BTreeMap<Driver, BTreeMap<ProxyState, usize>>,
    /// Those that are missing or dead, or refuse.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proxy_problems: Vec<PodProxy>,
    /// Foreign programs that see a connection before veer's.
    pub runs_before: Vec<RunsBefore>,
    /// When the last look at everything ended, in seconds since the epoch; `None` before the first.
    pub looked_at: Option<u64>,
    /// Pods that have lost something, or run without redirection, and could not be repaired by that look.
    pub unrepaired: Vec<Unrepaired>,
    /// Whether the plugin is in the runtime's configuration, as far as the agent sees to it.
    pub cni: InstallState,
}

/// A line of `veer monitor`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Line {
    /// Pods whose decisions cannot be reported: those that nftables redirects.
    Silent {
        /// How many there are now.
        pods: usize,
        /// Whether new pods are such, too, so that nothing will ever be reported.
        all: bool,
    },
    /// The agent has begun to watch: decisions from here on are reported.
    Watching,
    /// A decision.
    Decision(Decided),
    /// Decisions that were not reported, because the watcher was too slow.
    Missed {
        /// How many.
        count: u64,
    },
}

/// A decision, with names instead of numbers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Decided {
    /// Milliseconds since the epoch.
    pub time_ms: u64,
    /// `namespace/name`, or the netns cookie of a pod that is gone.
    pub pod: String,
    /// `inbound` or `outbound`.
    pub direction: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// What was done.
    pub action: String,
    /// Why.
    pub reason: String,
    /// Creator of the socket; outbound only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its group; outbound only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Whether these are the proxy's ids, and the creator was in another container than the proxy's, in a pod
    /// where that counts; absent if not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub impostor: bool,
    /// Index of the interface that it arrived on, in a pod whose annotations name any; of what the pod dials the
    /// one that the socket is tied to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub interface: Option<u32>,
    /// Where it comes from; without a port while there is none.
    pub source: String,
    /// Where it was dialled to.
    pub destination: String,
}

/// What the control socket answers from.
#[derive(Debug)]
pub struct Control<S> {
    node: NodeHandle,
    lookup: Lookup<S>,
    status: AgentStatus,
    neighbours: Option<Neighbours>,
    report: Report,
    notices: Notices,
    cni: watch::Receiver<InstallState>,
    proxies: Arc<ProxyWatch<S>>,
    proxy: Watched,
    lines: broadcast::Sender<Line>,
    watchers: Arc<AtomicUsize>,
}

impl<S: PodSource + Send + Sync + 'static> Control<S> {
    /// `status` is what does not change while the agent runs.
    pub fn new(
        proxies: &Arc<ProxyWatch<S>>,
        status: AgentStatus,
        neighbours: Option<Neighbours>,
        report: Report,
        cni: watch::Receiver<InstallState>,
        proxy: Watched,
    ) -> Arc<Self>
    where
        S: Clone,
    {
        let (lines, _nobody) = broadcast::channel(BACKLOG);
        let lookup = Lookup::of(proxies.answerer());
        let (node, notices) = (lookup.node.clone(), proxies.answerer().notices.clone());
        let proxies = Arc::clone(proxies);
        Arc::new(Self {
            node,
            lookup,
            status,
            neighbours,
            report,
            notices,
            cni,
            proxies,
            proxy,
            lines,
            watchers: Arc::default(),
        })
    }

    /// Serves questions until `stop`.
    pub async fn serve(self: Arc<Self>, listener: UnixListener, stop: CancellationToken) {
        socket::serve(listener, SOCKET_NAME, stop.clone(), |stream| {
            let (control, stop) = (Arc::clone(&self), stop.clone());
            async move { control.converse(stream, stop).await }
        })
        .await;
    }

    async fn converse(&self, stream: UnixStream, stop: CancellationToken) -> io::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read.take(LONGEST_QUESTION));
        let mut line = String::new();
        timeout(PATIENCE, read.read_line(&mut line)).await??;
        match serde_json::from_str(&line)? {
            Question::Status => send(&mut write, &self.status().await).await,
            Question::Pod { namespace, name } => {
                let pod = PodReference { namespace, name, uid: None };
                send(&mut write, &self.lookup.facts(&pod).await).await
            }
            Question::Proxies => send(&mut write, &self.proxies.look(None, Depth::Asked).await).await,
            Question::Monitor => {
                if let Some(silent) = self.silent().await {
                    send(&mut write, &silent).await?;
                }
                let mut lines = self.lines.subscribe();
                self.watch(1).await;
                let outcome = tokio::select! {
                    () = stop.cancelled() => Ok(()),
                    // The watcher says nothing more; that it can be read again means that it has left.
                    _left = read.read_line(&mut line) => Ok(()),
                    outcome = forward(&mut lines, &mut write) => outcome,
                };
                self.watch(-1).await;
                outcome
            }
        }
    }

    async fn status(&self) -> AgentStatus {
        let enrolled = self.node.run(|node| node.registry().len()).await.unwrap_or_default();
        let runs_before = self.neighbours.as_ref().map(Neighbours::before_ours).unwrap_or_default();
        let Look { ended_at: looked_at, unrepaired } =
            self.report.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let source = self.lookup.source.health();
        let pod_events = self.notices.counts();
        let cni = self.cni.borrow().clone();
        let standing = self.lookup.drivers.node.standing().await;
        let node_proxy = (!standing.is_idle()).then_some(standing);
        let ztunnel = self.lookup.drivers.ztunnel.standing().await;
        let mut proxies = BTreeMap::<_, BTreeMap<_, usize>>::new();
        let mut proxy_problems = self.proxies.look(None, Depth::Seen).await;
        for one in &proxy_problems {
            *proxies.entry(one.driver).or_default().entry(one.proxy.state).or_default() += 1;
        }
        proxy_problems.retain(|one| one.proxy.state.is_wrong());
        AgentStatus {
            source,
            pod_events,
            enrolled,
            node_proxy,
            node_proxy_process: self.proxy.standing(),
            ztunnel,
            proxies,
            proxy_problems,
            runs_before,
            looked_at,
            unrepaired,
            cni,
            ..self.status.clone()
        }
    }

    async fn silent(&self) -> Option<Line> {
        let of_nftables = |pod: &&Enrolled| pod.backend == BackendName::Nftables;
        let count = self.node.run(move |node| node.registry().iter().filter(of_nftables).count()).await;
        let (pods, all) = (count.unwrap_or_default(), self.status.backend == BackendName::Nftables);
        (all || pods > 0).then_some(Line::Silent { pods, all })
    }

    /// Events are written exactly while somebody watches. The node's thread looks at the number when it
    /// turns the switch, so that one who comes while another leaves does not find it off.
    async fn watch(&self, change: isize) {
        self.watchers.fetch_add(change.cast_unsigned(), Ordering::SeqCst);
        let watchers = Arc::clone(&self.watchers);
        let switched =
            self.node.run(move |node| node.set_watched(watchers.load(Ordering::SeqCst) != 0)).await;
        if let Ok(Err(error)) = switched {
            tracing::error!(%error, "switch events");
        }
    }

    /// Hands the events of the ring buffer to all watchers, until `stop`.
    pub async fn publish(self: Arc<Self>, mut events: Events, stop: CancellationToken) {
        let mut names = HashMap::new();
        loop {
            let batch = tokio::select! {
                () = stop.cancelled() => return,
                batch = events.next() => batch,
            };
            match batch {
                Ok(mut batch) => {
                    batch.retain(|event| !self.is_of_proxy(event));
                    self.learn_names(&batch, &mut names).await;
                    for event in &batch {
                        // Nobody left to hear it: the switch is about to be turned.
                        drop(self.lines.send(Line::Decision(describe(event, &names))));
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "read events");
                    return;
                }
            }
        }
    }

    /// Whether an event is no decision but news of a pod's proxy, which goes to those who look at it.
    fn is_of_proxy(&self, event: &Event) -> bool {
        let is_news = matches!(event.reason, PROXY_BEGAN | PROXY_CEASED);
        if is_news {
            self.proxies.news().of_pod(event.cookie);
        }
        is_news
    }

    /// A cookie never gets another pod, so a name that is known stays right.
    async fn learn_names(&self, batch: &[Event], names: &mut HashMap<NetnsCookie, String>) {
        if batch.iter().all(|event| names.contains_key(&event.cookie)) {
            return;
        }
        let known = self
            .node
            .run(|node| node.registry().iter().map(|pod| (pod.cookie, pod.full_name())).collect::<Vec<_>>())
            .await
            .unwrap_or_default();
        *names = known.into_iter().collect();
    }
}

async fn forward(lines: &mut broadcast::Receiver<Line>, write: &mut OwnedWriteHalf) -> io::Result<()> {
    send(write, &Line::Watching).await?;
    loop {
        let line = match lines.recv().await {
            Ok(line) => line,
            Err(broadcast::error::RecvError::Lagged(count)) => Line::Missed { count },
            Err(broadcast::error::RecvError::Closed) => return Ok(()),
        };
        send(write, &line).await?;
    }
}

async fn send<T: Serialize>(write: &mut OwnedWriteHalf, value: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    write.write_all(&line).await
}

fn describe(event: &Event, names: &HashMap<NetnsCookie, String>) -> Decided {
    let reason = Reason::from_number(event.reason);
    let id = |id: u32| (id != NO_ID).then_some(id);
    let inbound = reason.is_some_and(Reason::is_inbound);
    Decided {
        time_ms: u64::try_from(wall_clock::of_monotonic(event.monotonic_ns).as_millis()).unwrap_or(u64::MAX),
        pod: names.get(&event.cookie).cloned().unwrap_or_else(|| format!("netns {}", event.cookie)),
        direction: if inbound { "inbound" } else { "outbound" }.to_owned(),
        protocol: if event.protocol == UDP { "udp" } else { "tcp" }.to_owned(),
        action: reason.map_or("unknown", |reason| reason.action().name()).to_owned(),
        reason: reason.map_or("unknown", Reason::name).to_owned(),
        uid: id(event.uid),
        gid: id(event.gid),
        impostor: event.is_impostor != 0,
        interface: (event.interface != 0).then_some(event.interface),
        source: endpoint(event.source, event.source_port),
        destination: endpoint(event.destination, event.port),
    }
}

fn endpoint(address: veer_common::address::Address, port: veer_common::address::Port) -> String {
    let ip = std::net::IpAddr::from(address);
    if port.get() == 0 { ip.to_string() } else { std::net::SocketAddr::new(ip, port.get()).to_string() }
}
