//! The server that the node's Envoy is told by: incremental ADS on a unix socket.
//!
//! Owns: `ads.sock` in `--proxy-dir`, the task that has the state (`Served`), and one more for each connection. Who asks for
//! a pod to be served waits until Envoy has said yes or no.
//! Never does: decide what is sent, which is `proxy::delta`'s. Called by: `app`, `cni`.

mod health;
mod server;
mod trial;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use veer_common::maps::NetnsCookie;

use self::health::Healths;
use self::trial::Served;
use super::config::UserConfig;
use super::delta::{Owner, Request, Response, State, StreamId};
use super::driver::{Depth, DriverError, ProxiedPod, ProxyDriver, SeenProxy};
use super::state::ProxyHealth;
use super::watch::ProxyNews;
use crate::model::Driver;
use crate::readiness::Condition;

pub use self::server::serve;

/// Questions that wait for the task: a node starts 16 pods at once at the most.
const QUEUE: usize = 256;
/// How long a pod waits for Envoy. A runtime gives an ADD minutes, and kubelet tries again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a pod is not served.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ProxyError {
    /// The agent drives none.
    #[error("the agent drives no proxy: it was started without --proxy-dir")]
    Off,
    /// Nobody has connected.
    #[error("the node's proxy is not connected: is it running? `veer status` tells of it")]
    NotConnected,
    /// It does not take the pod's listeners or clusters.
    #[error("the node's proxy refuses it: {0}")]
    Refused(String),
    /// It does not answer.
    #[error("the node's proxy has not answered within {} s", PATIENCE.as_secs())]
    Silent,
    /// What users add to it cannot be read, and nothing that could be read was taken before.
    #[error("--proxy-config: {0}")]
    Config(String),
    /// The agent ends.
    #[error("the agent is stopping")]
    Stopping,
}

/// How the node's proxy stands.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    /// Envoys that are connected: two while one takes over from the other.
    pub connected: usize,
    /// Pods that it is to serve.
    pub pods: usize,
    /// Of them, those that it serves.
    pub served: usize,
    /// Why it does not serve others: Envoy's words, by the pod's name.
    pub refused: BTreeMap<String, String>,
    /// Why what users add (`--proxy-config`) is not what it serves with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_problem: Option<String>,
}

impl Standing {
    /// Whether there is nothing to tell.
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }

    /// For people: `connected, serves 3 pods`.
    pub fn text(&self) -> String {
        let connected = if self.connected == 0 { "not connected" } else { "connected" };
        let refuses = match self.refused.len() {
            0 => String::new(),
            count => format!(", refuses {count}"),
        };
        let misconfigured =
            if self.config_problem.is_some() { ", without the last change of --proxy-config" } else { "" };
        format!("{connected}, serves {} of {} pods{refuses}{misconfigured}", self.served, self.pods)
    }
}

/// The way to the task.
#[derive(Clone, Debug)]
pub struct Ads {
    commands: mpsc::Sender<Command>,
    /// Whether the task runs at all.
    is_on: bool,
}

type Answer = oneshot::Sender<Result<(), ProxyError>>;
/// What a connection is given: its number, and what it is to send.
type Opened = (StreamId, mpsc::UnboundedReceiver<Response>);

#[derive(Debug)]
enum Command {
    Serve { pod: Box<ProxiedPod>, answer: Answer },
    Configure { config: Arc<UserConfig> },
    Misconfigured { problem: String },
    Forget { owner: Owner },
    Complete,
    Open { started: Option<u64>, opened: oneshot::Sender<Opened> },
    Said { stream: StreamId, request: Request },
    Close { stream: StreamId },
    Standing { answer: oneshot::Sender<Standing> },
    KnowsConfig { answer: oneshot::Sender<bool> },
    State { owner: Owner, answer: oneshot::Sender<State> },
    Health { of: Vec<(NetnsCookie, Owner)>, answer: oneshot::Sender<Vec<(NetnsCookie, ProxyHealth)>> },
}

impl Ads {
    /// The way, and the task, which runs only if it `is_on`, and says whose standing has changed. If users add something
    /// (`has_config`), nobody is served before that is known.
    pub fn new(is_on: bool, has_config: bool, news: ProxyNews) -> (Self, Task) {
        let (commands, queue) = mpsc::channel(QUEUE);
        let (served, streams, waiting) = (Served::new(has_config), HashMap::new(), Vec::new());
        let healths = Healths::new(news);
        let away_since = Some(Instant::now());
        let task = Task { queue, served, streams, waiting, has_been_connected: false, away_since, healths };
        (Self { commands, is_on }, task)
    }

    /// How it stands.
    pub async fn standing(&self) -> Standing {
        let (answer, answered) = oneshot::channel();
        drop(self.commands.send(Command::Standing { answer }).await);
        answered.await.unwrap_or_default()
    }

    /// Whether it is known what users add. Before that nobody is served, and an Envoy that comes has nothing.
    pub async fn knows_config(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        drop(self.commands.send(Command::KnowsConfig { answer }).await);
        answered.await.unwrap_or_default()
    }

    /// From now on this is what users add.
    pub async fn configure(&self, config: UserConfig) {
        drop(self.commands.send(Command::Configure { config: Arc::new(config) }).await);
    }

    /// What users add cannot be read.
    pub async fn misconfigured(&self, problem: String) {
        drop(self.commands.send(Command::Misconfigured { problem }).await);
    }

    /// How far a pod is.
    pub async fn state(&self, owner: Owner) -> State {
        let (answer, answered) = oneshot::channel();
        drop(self.commands.send(Command::State { owner, answer }).await);
        answered.await.unwrap_or(State::NoProxy)
    }

    async fn served(&self, pod: &ProxiedPod) -> Result<(), ProxyError> {
        if !self.is_on {
            return Err(ProxyError::Off);
        }
        let (answer, answered) = oneshot::channel();
        let command = Command::Serve { pod: Box::new(pod.clone()), answer };
        self.commands.send(command).await.map_err(|_closed| ProxyError::Stopping)?;
        match timeout(PATIENCE, answered).await {
            Ok(answered) => answered.map_err(|_closed| ProxyError::Stopping)?,
            Err(_elapsed) if self.standing().await.connected == 0 => Err(ProxyError::NotConnected),
            Err(_elapsed) => Err(ProxyError::Silent),
        }
    }
}

impl ProxyDriver for Ads {
    /// The pod is served also if nobody waits for that any more.
    async fn serve(&self, pod: &ProxiedPod) -> Result<(), DriverError> {
        Ok(self.served(pod).await?)
    }

    async fn is_there(&self, _driver: Driver) -> Result<(), DriverError> {
        if !self.is_on {
            return Err(ProxyError::Off.into());
        }
        if self.standing().await.connected == 0 { Err(ProxyError::NotConnected.into()) } else { Ok(()) }
    }

    async fn begin(&self, pod: &ProxiedPod) {
        let (answer, _nobody) = oneshot::channel();
        let command = Command::Serve { pod: Box::new(pod.clone()), answer };
        drop(self.commands.send(command).await);
    }

    async fn complete(&self) {
        drop(self.commands.send(Command::Complete).await);
    }

    fn forget(&self, pod: &ProxiedPod) {
        // Without the task there is nobody to tell.
        drop(self.commands.blocking_send(Command::Forget { owner: pod.owner() }));
    }

    async fn health(&self, seen: Vec<SeenProxy>, _depth: Depth) -> Vec<(NetnsCookie, ProxyHealth)> {
        let of = seen.iter().map(|seen| (seen.pod.cookie, seen.pod.owner())).collect();
        let (answer, answered) = oneshot::channel();
        drop(self.commands.send(Command::Health { of, answer }).await);
        answered.await.unwrap_or_default()
    }
}

/// The state, and who waits for it.
#[derive(Debug)]
pub struct Task {
    queue: mpsc::Receiver<Command>,
    served: Served,
    /// Never fuller than two responses for each pod: a pod's next one waits for the answer to the last.
    streams: HashMap<StreamId, mpsc::UnboundedSender<Response>>,
    waiting: Vec<(Owner, Answer)>,
    has_been_connected: bool,
    /// Since when no Envoy is.
    away_since: Option<Instant>,
    healths: Healths,
}

impl Task {
    /// Runs until `stop`. The condition is that an Envoy is connected.
    pub async fn run(mut self, connected: Condition, stop: CancellationToken) {
        while let Some(Some(command)) = stop.run_until_cancelled(self.queue.recv()).await {
            let mut responses = self.perform(command);
            responses.extend(self.served.judge());
            for response in responses {
                // One that has gone is closed with the next command.
                if let Some(stream) = self.streams.get(&response.stream) {
                    drop(stream.send(response));
                }
            }
            self.answer();
            // Before the first one there is nothing to miss.
            if self.served.delta.connected() > 0 {
                (self.has_been_connected, self.away_since) = (true, None);
                connected.holds();
            } else {
                self.away_since.get_or_insert_with(Instant::now);
                if self.has_been_connected {
                    connected.fails("no Envoy is connected");
                }
            }
        }
    }

    fn perform(&mut self, command: Command) -> Vec<Response> {
        match command {
            Command::Serve { pod, answer } => {
                let owner = pod.owner();
                let responses = self.served.serve(*pod);
                self.healths.note(&self.served.delta, &owner);
                self.waiting.push((owner, answer));
                responses
            }
            Command::Configure { config } => {
                let responses = self.served.configure(&config);
                self.healths.note_all(&self.served.delta);
                responses
            }
            Command::Misconfigured { problem } => {
                self.served.misconfigured(problem);
                Vec::new()
            }
            Command::Forget { owner } => {
                self.healths.forget(&owner);
                self.served.forget(&owner)
            }
            Command::Complete => self.served.complete(),
            Command::Open { started, opened } => {
                let (sender, receiver) = mpsc::unbounded_channel();
                let stream = self.served.delta.open(started);
                self.streams.insert(stream, sender);
                if opened.send((stream, receiver)).is_err() {
                    self.close(stream);
                }
                Vec::new()
            }
            Command::Said { stream, request } => self.heard(stream, request),
            Command::Close { stream } => {
                self.close(stream);
                Vec::new()
            }
            Command::Standing { answer } => {
                drop(answer.send(self.standing()));
                Vec::new()
            }
            Command::KnowsConfig { answer } => {
                // Who has asked may have gone.
                answer.send(self.served.knows_config()).ok();
                Vec::new()
            }
            Command::State { owner, answer } => {
                drop(answer.send(self.served.delta.state(&owner)));
                Vec::new()
            }
            Command::Health { of, answer } => {
                let of = of.into_iter().map(|(cookie, owner)| (cookie, self.healths.of(&owner)));
                drop(answer.send(of.collect()));
                Vec::new()
            }
        }
    }

    fn heard(&mut self, stream: StreamId, request: Request) -> Vec<Response> {
        if let Some(words) = &request.refused {
            tracing::error!(kind = ?request.kind, %words, "the node's proxy refuses");
        }
        let about = self.served.delta.asked_about(stream, &request.nonce).cloned();
        let responses = self.served.delta.request(stream, request);
        match about {
            Some(owner) => self.healths.note(&self.served.delta, &owner),
            // What it had before it connected.
            None => self.healths.note_all(&self.served.delta),
        }
        responses
    }

    fn close(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
        self.served.delta.close(stream);
        self.healths.note_all(&self.served.delta);
    }

    fn standing(&self) -> Standing {
        let config_problem = self.served.problem.clone();
        let connected = self.served.delta.connected();
        let mut standing = Standing { connected, config_problem, ..Standing::default() };
        for owner in self.served.pods() {
            standing.pods += 1;
            match self.served.delta.state(owner) {
                State::Served => standing.served += 1,
                State::Refused(words) => {
                    let name = owner.split('|').next().unwrap_or(owner);
                    standing.refused.insert(name.to_owned(), words);
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
        for (owner, answer) in waiting {
            let result = match self.served.delta.state(&owner) {
                State::NoProxy | State::Pending if self.served.is_without_config() => {
                    Err(ProxyError::Config(self.served.problem.clone().unwrap_or_default()))
                }
                State::Served => Ok(()),
                State::Refused(words) => Err(ProxyError::Refused(words)),
                State::NoProxy if is_away => Err(ProxyError::NotConnected),
                State::NoProxy | State::Pending if answer.is_closed() => continue,
                State::NoProxy | State::Pending => {
                    self.waiting.push((owner, answer));
                    continue;
                }
            };
            drop(answer.send(result));
        }
    }
}
