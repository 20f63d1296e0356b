//! The server that the node's ztunnel (Istio ambient) is told by: ZDS on a unix socket.
//!
//! Owns: the socket `--ztunnel-socket`, where ztunnel dials as it dials Istio's node agent, an unmodified one; the task that has the state
//! ([`Protocol`]), and one more for each connection. Who asks for a pod to be served waits until ztunnel has said yes or no.
//! Never does: decide what is said when, which is [`Protocol`]'s; redirect anything; or hold on to a netns: it is opened by its path when
//! ztunnel is told of the pod, if it still is the file that it was.
//! Called by: `app`, and as the driver ([`ProxyDriver`]) of pods in ambient mode:
//! * an ADD is redirected first, and then waits until the pod is served; if that fails it is undone;
//! * when an agent starts, it is told of each pod that is enrolled already, with the service account that only the manifest has, and
//!   then that these were all: before that no ztunnel gets its snapshot, and so none drops what an earlier agent has told it of;
//! * a pod that goes is taken from it.

mod connection;
mod listener;
pub mod message;
mod peer;
pub mod protocol;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use veer_common::cni::PodReference;

use self::connection::Order;
use self::protocol::{ConnectionId, Protocol, Request, State, Step, Uid, Workload};
use super::driver::{DriverError, ProxiedPod, ProxyDriver};
use crate::cluster::redirection::{Redirection, Redirections};
use crate::model::Driver;
use crate::platform::netns::{self, NetnsId};

pub use self::listener::{open, serve};
pub use self::peer::Peer;

/// Questions that wait for the task: a node starts 16 pods at once at the most.
const QUEUE: usize = 256;
/// How long a pod waits for ztunnel. A runtime gives an ADD minutes, and kubelet tries again.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Why a pod is not served.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ZdsError {
    /// The agent drives none.
    #[error("the agent drives no ztunnel: it was started without --ztunnel-socket")]
    Off,
    /// Nobody has connected.
    #[error("ztunnel is not connected: is it running on this node? `veer status` tells of it")]
    NotConnected,
    /// It cannot serve the pod.
    #[error("ztunnel refuses it: {0}")]
    Refused(String),
    /// It does not answer.
    #[error("ztunnel has not answered within {} s", PATIENCE.as_secs())]
    Silent,
    /// It was taken from ztunnel meanwhile.
    #[error("the pod has gone meanwhile")]
    Gone,
    /// The agent ends.
    #[error("the agent is stopping")]
    Stopping,
}

/// How ztunnel stands.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Standing {
    /// How many are connected: two while one takes over from the other.
    pub connected: usize,
    /// Whether the newest was told of all pods, which is what makes it ready.
    pub has_snapshot: bool,
    /// Pods that it is to serve.
    pub pods: usize,
    /// Of them, those that it serves.
    pub served: usize,
    /// Why it does not serve others, by the pod's name.
    pub refused: BTreeMap<String, String>,
}

impl Standing {
    /// For people: `connected, serves 3 of 3 pods`.
    pub fn text(&self) -> String {
        let connected = match (self.connected, self.has_snapshot) {
            (0, _) => "not connected",
            (_, false) => "connecting",
            (_, true) => "connected",
        };
        let refuses = match self.refused.len() {
            0 => String::new(),
            count => format!(", refuses {count}"),
        };
        format!("{connected}, serves {} of {} pods{refuses}", self.served, self.pods)
    }
}

/// The way to the task.
#[derive(Clone, Debug)]
pub struct Zds {
    commands: mpsc::Sender<Command>,
    /// Whether the task runs at all.
    is_on: bool,
}

type Answer = oneshot::Sender<Result<(), ZdsError>>;
/// What a connection is given: its number, and what it is to send.
type Opened = (ConnectionId, mpsc::Receiver<Order>);

#[derive(Debug)]
enum Command {
    Serve { workload: Box<Workload>, answer: Answer },
    Forget { uid: Uid, netns: NetnsId },
    Complete,
    Open { netns: Option<OwnedFd>, opened: oneshot::Sender<Opened> },
    Sent { connection: ConnectionId },
    Said { connection: ConnectionId, packet: Vec<u8> },
    Gone { connection: ConnectionId },
    Standing { answer: oneshot::Sender<Standing> },
    Peers { answer: oneshot::Sender<Vec<Peer>> },
}

impl Zds {
    /// The way, and the task, which runs only if it `is_on`. Pods are told how they stand where `redirections` go.
    pub fn new(is_on: bool, redirections: Redirections) -> (Self, Task) {
        let (commands, queue) = mpsc::channel(QUEUE);
        let task = Task {
            queue,
            protocol: Protocol::default(),
            connections: HashMap::new(),
            waiting: Vec::new(),
            announced: BTreeMap::new(),
            redirections,
            away_since: Some(Instant::now()),
        };
        (Self { commands, is_on }, task)
    }

    /// Has a pod served, and waits for it. Whoever does not wait any more changes nothing: the pod is served all the same,
    /// until it is forgotten.
    ///
    /// # Errors
    /// Why it is not.
    pub async fn serve(&self, workload: Workload) -> Result<(), ZdsError> {
        if !self.is_on {
            return Err(ZdsError::Off);
        }
        let (answer, answered) = oneshot::channel();
        let command = Command::Serve { workload: Box::new(workload), answer };
        self.commands.send(command).await.map_err(|_closed| ZdsError::Stopping)?;
        match timeout(PATIENCE, answered).await {
            Ok(answered) => answered.map_err(|_closed| ZdsError::Stopping)?,
            Err(_elapsed) if self.standing().await.is_some_and(|standing| standing.connected == 0) => {
                Err(ZdsError::NotConnected)
            }
            Err(_elapsed) => Err(ZdsError::Silent),
        }
    }

    /// Has a pod served, and waits for nothing.
    pub async fn begin(&self, workload: Workload) {
        let (answer, _nobody) = oneshot::channel();
        drop(self.commands.send(Command::Serve { workload: Box::new(workload), answer }).await);
    }

    /// Takes a pod from ztunnel, which lets its connections end; nothing, if the pod is in another netns by now. Not from the
    /// runtime's own thread: it may wait for room.
    pub fn forget(&self, uid: Uid, netns: NetnsId) {
        // Without the task there is nobody to tell.
        drop(self.commands.blocking_send(Command::Forget { uid, netns }));
    }

    /// All pods of the node were named: a ztunnel that has more loses it.
    pub async fn complete(&self) {
        drop(self.commands.send(Command::Complete).await);
    }

    /// How it stands; `None` if the agent drives none.
    pub async fn standing(&self) -> Option<Standing> {
        if !self.is_on {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        drop(self.commands.send(Command::Standing { answer }).await);
        answered.await.ok()
    }

    /// Where the ztunnels run that are connected; `None` if the agent drives none.
    pub async fn peers(&self) -> Option<Vec<Peer>> {
        if !self.is_on {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        drop(self.commands.send(Command::Peers { answer }).await);
        answered.await.ok()
    }

    /// Talks to a ztunnel, until one of the two has enough.
    async fn converse(&self, stream: UnixStream) {
        let (opened, opening) = oneshot::channel();
        // It is driven all the same.
        let unknown = |error: &io::Error| tracing::warn!(%error, "ztunnel's netns cannot be opened, nor its metrics read");
        let netns = netns::of_peer(stream.as_fd()).inspect_err(unknown).ok();
        if self.commands.send(Command::Open { netns, opened }).await.is_err() {
            return;
        }
        let Ok((connection, orders)) = opening.await else { return };
        let sent = || self.commands.send(Command::Sent { connection });
        let said = |packet| self.commands.send(Command::Said { connection, packet });
        connection::converse(&stream, orders, sent, said).await;
        drop(self.commands.send(Command::Gone { connection }).await);
    }
}

/// The way to a ztunnel.
#[derive(Debug)]
struct Link {
    orders: mpsc::Sender<Order>,
    /// Where it runs, if that could be told. The connection holds it anyway, and goes with ztunnel.
    netns: Option<OwnedFd>,
}

/// The state, and who waits for it.
#[derive(Debug)]
pub struct Task {
    queue: mpsc::Receiver<Command>,
    protocol: Protocol,
    connections: HashMap<ConnectionId, Link>,
    waiting: Vec<(Uid, Answer)>,
    /// What pods were told of how they stand.
    announced: BTreeMap<Uid, Redirection>,
    redirections: Redirections,
    /// Since when none is connected.
    away_since: Option<Instant>,
}

impl Task {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let deadline = self.protocol.deadline();
            let due = async {
                match deadline {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let steps = tokio::select! {
                () = stop.cancelled() => return,
                command = self.queue.recv() => match command {
                    Some(command) => self.perform(command),
                    None => return,
                },
                () = due => self.protocol.tick(Instant::now()),
            };
            self.take(steps);
            if self.protocol.connected() > 0 {
                self.away_since = None;
            } else {
                self.away_since.get_or_insert_with(Instant::now);
            }
            self.answer();
            self.announce();
        }
    }

    fn perform(&mut self, command: Command) -> Vec<Step> {
        let now = Instant::now();
        match command {
            Command::Serve { workload, answer } => {
                self.waiting.push((workload.uid.clone(), answer));
                self.protocol.want(*workload, now)
            }
            Command::Forget { uid, netns } => self.forget(&uid, netns, now),
            Command::Complete => self.protocol.complete(now),
            Command::Open { netns, opened } => {
                // Never fuller: the next message waits for the answer to the last.
                let (orders, receiver) = mpsc::channel(1);
                let (connection, steps) = self.protocol.open(now);
                self.connections.insert(connection, Link { orders, netns });
                if opened.send((connection, receiver)).is_ok() { steps } else { self.gone(connection, now) }
            }
            Command::Sent { connection } => {
                self.protocol.sent(connection, now);
                Vec::new()
            }
            Command::Said { connection, packet } => {
                let before = self.protocol.connected();
                let steps = self.protocol.received(connection, &packet, now);
                if self.protocol.connected() > before {
                    tracing::info!(connection, "ztunnel has connected");
                }
                steps
            }
            Command::Gone { connection } => self.gone(connection, now),
            Command::Standing { answer } => {
                drop(answer.send(self.standing()));
                Vec::new()
            }
            Command::Peers { answer } => {
                let links = self.protocol.greeted().filter_map(|id| self.connections.get(&id));
                drop(answer.send(peer::distinct(links.filter_map(|link| link.netns.as_ref()))));
                Vec::new()
            }
        }
    }

    fn gone(&mut self, connection: ConnectionId, now: Instant) -> Vec<Step> {
        if self.connections.remove(&connection).is_some() {
            tracing::info!(connection, "ztunnel has gone");
        }
        self.protocol.gone(connection, now)
    }

    fn forget(&mut self, uid: &str, netns: NetnsId, now: Instant) -> Vec<Step> {
        let is_meant = |workload: &&Workload| workload.uid == uid && workload.netns == netns;
        let gone = self.protocol.workloads().find(is_meant).map(reference);
        if let Some(gone) = gone {
            self.announced.remove(uid);
            self.redirections.tell(&gone, None);
            for (_, answer) in self.waiting.extract_if(.., |(waiting, _)| waiting == uid) {
                drop(answer.send(Err(ZdsError::Gone)));
            }
        }
        self.protocol.forget(uid, netns, now)
    }

    /// What cannot be sent leads to further steps.
    fn take(&mut self, steps: Vec<Step>) {
        let mut steps = VecDeque::from(steps);
        while let Some(step) = steps.pop_front() {
            match step {
                Step::Close { connection, reason } => {
                    tracing::warn!(connection, %reason, "ztunnel is disconnected");
                    self.connections.remove(&connection);
                }
                Step::Send { to, request } => match order(&request) {
                    Ok(order) => {
                        // One that has gone says so itself.
                        if let Some(link) = self.connections.get(&to) {
                            drop(link.orders.try_send(order));
                        }
                    }
                    Err(problem) => {
                        tracing::warn!(connection = to, uid = request.uid(), %problem, "ztunnel cannot be told");
                        steps.extend(self.protocol.unsendable(to, &problem, Instant::now()));
                    }
                },
            }
        }
    }

    fn standing(&self) -> Standing {
        let (connected, has_snapshot) = (self.protocol.connected(), self.protocol.has_snapshot());
        let mut standing = Standing { connected, has_snapshot, ..Standing::default() };
        for workload in self.protocol.workloads() {
            standing.pods += 1;
            match self.protocol.state(&workload.uid) {
                State::Served => standing.served += 1,
                State::Refused(words) => {
                    standing.refused.insert(format!("{}/{}", workload.namespace, workload.name), words);
                }
                State::NoProxy | State::Pending => {}
            }
        }
        standing
    }

    /// Tells those whose waiting has come to an end, and forgets those who wait no more.
    fn answer(&mut self) {
        // Who has been away for so long is not waited for by each pod anew: many may be moved, one after the other.
        let is_away = self.away_since.is_some_and(|since| since.elapsed() >= PATIENCE);
        let waiting = std::mem::take(&mut self.waiting);
        for (uid, answer) in waiting {
            let result = match self.protocol.state(&uid) {
                State::Served => Ok(()),
                State::Refused(words) => Err(ZdsError::Refused(words)),
                State::NoProxy if is_away => Err(ZdsError::NotConnected),
                State::NoProxy | State::Pending if answer.is_closed() => continue,
                State::NoProxy | State::Pending => {
                    self.waiting.push((uid, answer));
                    continue;
                }
            };
            drop(answer.send(result));
        }
    }

    /// Tells pods how they stand, where that is news. A ztunnel that is away for a while is none: the pod stays what it is to its peers.
    fn announce(&mut self) {
        for workload in self.protocol.workloads() {
            let redirection = match self.protocol.state(&workload.uid) {
                State::Served => Redirection::Enabled,
                State::Refused(_) => Redirection::Pending,
                State::NoProxy | State::Pending => continue,
            };
            if self.announced.insert(workload.uid.clone(), redirection) != Some(redirection) {
                self.redirections.tell(&reference(workload), Some(redirection));
            }
        }
    }
}

impl ProxyDriver for Zds {
    async fn serve(&self, pod: &ProxiedPod) -> Result<(), DriverError> {
        Ok(Self::serve(self, workload(pod)).await?)
    }

    async fn is_there(&self, _driver: Driver) -> Result<(), DriverError> {
        match self.standing().await {
            Some(Standing { connected: 1.., .. }) => Ok(()),
            Some(_) => Err(ZdsError::NotConnected.into()),
            None => Err(ZdsError::Off.into()),
        }
    }

    async fn begin(&self, pod: &ProxiedPod) {
        Self::begin(self, workload(pod)).await;
    }

    async fn complete(&self) {
        Self::complete(self).await;
    }

    fn forget(&self, pod: &ProxiedPod) {
        let Workload { uid, netns, .. } = workload(pod);
        Self::forget(self, uid, netns);
    }
}

/// A pod as ztunnel is told of it. Where the runtime does not say the pod's uid, ztunnel is content with any other that is its alone.
fn workload(pod: &ProxiedPod) -> Workload {
    Workload {
        uid: pod.uid.clone().unwrap_or_else(|| pod.container_id.clone()),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        service_account: pod.service_account.clone(),
        netns_path: pod.netns_path.clone(),
        netns: pod.netns,
    }
}

/// A request as it is sent.
///
/// # Errors
/// Why it cannot be, in words.
fn order(request: &Request) -> Result<Order, String> {
    let packet = message::packet(request).map_err(|error| error.to_string())?;
    let netns = match request {
        Request::Add(workload) => {
            let path = &workload.netns_path;
            Some(open_netns(workload).map_err(|error| format!("open its netns {path}: {error}"))?)
        }
        Request::Keep(_) | Request::Del(_) | Request::SnapshotSent => None,
    };
    Ok(Order { packet, netns })
}

fn open_netns(workload: &Workload) -> io::Result<OwnedFd> {
    // Whatever is there must not be able to hold us up, as a FIFO would.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&workload.netns_path)?;
    if NetnsId::of(file.as_fd())? == workload.netns {
        Ok(file.into())
    } else {
        Err(io::Error::other("it is another one by now"))
    }
}

fn reference(workload: &Workload) -> PodReference {
    let Workload { uid, namespace, name, .. } = workload;
    PodReference { namespace: namespace.clone(), name: name.clone(), uid: Some(uid.clone()) }
}

#[cfg(test)]
mod tests;
