//! The two conditions that nobody reports: that the node's thread answers, and that the plugin's socket does.
//!
//! Owns: asking for them as a plugin would, over the socket. Never does: repair either. Called by: `admin`, whenever
//! somebody asks for the readiness, and by `app`: where the API server is told of it, it asks by itself, too, rarely.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use veer_common::cni::{PROTOCOL_VERSION, Reply, Request, Verb, encode, message_length};

use super::{Condition, Readiness};
use crate::enrol::NodeHandle;

/// How long either may take to answer before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it asks by itself.
const INTERVAL: Duration = Duration::from_secs(30);

/// Who asks.
#[derive(Debug)]
pub struct Probe {
    handle: NodeHandle,
    path: PathBuf,
    node: Condition,
    socket: Condition,
}

impl Probe {
    /// For the node's thread, and the plugin's socket at `path`.
    pub fn new(readiness: &Readiness, handle: NodeHandle, path: PathBuf) -> Self {
        let node = readiness.condition("node", "its thread has not been asked yet");
        let socket = readiness.condition("socket", "the plugin's socket is not served yet");
        Self { handle, path, node, socket }
    }

    /// Asks both; their conditions are as they are then.
    pub async fn ask(&self) {
        let (node, socket) = tokio::join!(self.node_answers(), self.socket_answers());
        self.node.is(&node);
        self.socket.is(&socket);
    }

    /// Whether the node's thread answers.
    ///
    /// # Errors
    /// Why not, in words.
    pub async fn node_answers(&self) -> Result<(), String> {
        match timeout(PATIENCE, self.handle.run(|_node| ())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_elapsed) => Err(format!("its thread has not answered for {} s", PATIENCE.as_secs())),
        }
    }

    async fn socket_answers(&self) -> Result<(), String> {
        let path = self.path.display();
        let problem = match timeout(PATIENCE, status(&self.path)).await {
            Ok(Ok(Reply::Done)) => return Ok(()),
            Ok(Ok(Reply::Failed { msg, .. })) => msg,
            Ok(Ok(Reply::Passed { .. })) => "it is not the agent that answers".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        Err(format!("the plugin is not answered on {path}: {problem}"))
    }

    /// Asks now and again until `stop`.
    pub async fn serve(self: Arc<Self>, stop: CancellationToken) {
        let ask = async {
            loop {
                self.ask().await;
                sleep(INTERVAL).await;
            }
        };
        stop.run_until_cancelled(ask).await;
    }

    /// Nobody can say any more.
    pub fn stopping(&self) {
        self.socket.unknown("the agent is stopping");
    }
}

/// STATUS, as the plugin asks it.
async fn status(path: &Path) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(&encode(&Request { version: PROTOCOL_VERSION, verb: Verb::Status })?).await?;
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await?;
    let mut bytes = vec![0; message_length(prefix)?];
    stream.read_exact(&mut bytes).await?;
    serde_json::from_slice(&bytes).map_err(io::Error::from)
}
