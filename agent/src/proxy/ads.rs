//! The server that the node's Envoy is told by: incremental ADS on a unix socket.
//!
//! Owns: `ads.sock` in `--proxy-dir`, the task that has the state ([`Delta`]), and one more for each connection. Who asks for
//! a pod to be served waits until Envoy has said yes or no.
//! Never does: decide what is sent, which is [`Delta`]'s. Called by: `app`, `cni`.

mod server;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::delta::{Delta, Owner, Request, Response, State, StreamId};
use super::driver::{DriverError, ProxiedPod, ProxyDriver};
use super::resources::Resources;

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
    /// The agent ends.
    #[error("the agent is stopping")]
    Stopping,
}

/// How the node's proxy stands.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Standing {
    /// Envoys that are connected: two while one takes over from the other.
    pub connected: usize,
    /// Pods that it is to serve.
    pub pods: usize,
    /// Of them, those that it serves.
    pub served: usize,
    /// Why it does not serve others: Envoy's words, by the pod's name.
    pub refused: BTreeMap<String, String>,
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
        format!("{connected}, serves {} of {} pods{refuses}", self.served, self.pods)
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
    Serve { owner: Owner, resources: Box<Resources>, answer: Answer },
    Forget { owner: Owner },
    Complete,
    Open { opened: oneshot::Sender<Opened> },
    Said { stream: StreamId, request: Request },
    Close { stream: StreamId },
    Standing { answer: oneshot::Sender<Standing> },
}

impl Ads {
    /// The way, and the task, which runs only if it `is_on`.
    pub fn new(is_on: bool) -> (Self, Task) {
        let (commands, queue) = mpsc::channel(QUEUE);
        let (delta, streams, waiting) = (Delta::default(), HashMap::new(), Vec::new());
        (Self { commands, is_on }, Task { queue, delta, streams, waiting })
    }

    /// How it stands.
    pub async fn standing(&self) -> Standing {
        let (answer, answered) = oneshot::channel();
        drop(self.commands.send(Command::Standing { answer }).await);
        answered.await.unwrap_or_default()
    }

    async fn served(&self, pod: &ProxiedPod) -> Result<(), ProxyError> {
        if !self.is_on {
            return Err(ProxyError::Off);
        }
        let (answer, answered) = oneshot::channel();
        let resources = Box::new(Resources::of(pod));
        let command = Command::Serve { owner: pod.owner(), resources, answer };
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

    async fn begin(&self, pod: &ProxiedPod) {
        let (answer, _nobody) = oneshot::channel();
        let command = Command::Serve { owner: pod.owner(), resources: Box::new(Resources::of(pod)), answer };
        drop(self.commands.send(command).await);
    }

    async fn complete(&self) {
        drop(self.commands.send(Command::Complete).await);
    }

    fn forget(&self, pod: &ProxiedPod) {
        // Without the task there is nobody to tell.
        drop(self.commands.blocking_send(Command::Forget { owner: pod.owner() }));
    }
}

/// The state, and who waits for it.
#[derive(Debug)]
pub struct Task {
    queue: mpsc::Receiver<Command>,
    delta: Delta,
    /// Never fuller than two responses for each pod: a pod's next one waits for the answer to the last.
    streams: HashMap<StreamId, mpsc::UnboundedSender<Response>>,
    waiting: Vec<(Owner, Answer)>,
}

impl Task {
    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        while let Some(Some(command)) = stop.run_until_cancelled(self.queue.recv()).await {
            for response in self.perform(command) {
                // One that has gone is closed with the next command.
                if let Some(stream) = self.streams.get(&response.stream) {
                    drop(stream.send(response));
                }
            }
            self.answer();
        }
    }

    fn perform(&mut self, command: Command) -> Vec<Response> {
        match command {
            Command::Serve { owner, resources, answer } => {
                let responses = self.delta.want(&owner, *resources);
                self.waiting.push((owner, answer));
                responses
            }
            Command::Forget { owner } => self.delta.forget(&owner),
            Command::Complete => self.delta.complete(),
            Command::Open { opened } => {
                let (sender, receiver) = mpsc::unbounded_channel();
                let stream = self.delta.open();
                self.streams.insert(stream, sender);
                if opened.send((stream, receiver)).is_err() {
                    self.close(stream);
                }
                Vec::new()
            }
            Command::Said { stream, request } => {
                if let Some(words) = &request.refused {
                    tracing::error!(kind = ?request.kind, %words, "the node's proxy refuses");
                }
                self.delta.request(stream, request)
            }
            Command::Close { stream } => {
                self.close(stream);
                Vec::new()
            }
            Command::Standing { answer } => {
                drop(answer.send(self.standing()));
                Vec::new()
            }
        }
    }

    fn close(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
        self.delta.close(stream);
    }

    fn standing(&self) -> Standing {
        let mut standing = Standing { connected: self.delta.connected(), ..Standing::default() };
        for owner in self.delta.owners() {
            standing.pods += 1;
            match self.delta.state(owner) {
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
        let waiting = std::mem::take(&mut self.waiting);
        for (owner, answer) in waiting {
            let result = match self.delta.state(&owner) {
                State::Served => Ok(()),
                State::Refused(words) => Err(ProxyError::Refused(words)),
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
