//! Envoy's admin interface, on a unix socket.
//!
//! Owns: one question and its answer, and what Envoy says of itself. Never does: know what is asked for otherwise.
//! Called by: `proxy::supervise`.

use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use http::{Request, StatusCode};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long an answer may take: its main thread is busy while it takes a configuration.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest answer, in bytes: what it says of itself has some thousand.
const LONGEST: usize = 1 << 20;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// Nobody listens there.
    #[error("connect to its admin interface: {0}")]
    Connect(io::Error),
    /// What was said is not HTTP, or ended too early.
    #[error("talk to its admin interface: {0}")]
    Http(#[from] hyper::Error),
    /// It does not do what was asked.
    #[error("its admin interface says {0}")]
    Status(StatusCode),
    /// What was asked is no path, or what was answered is not what was asked for.
    #[error("ask its admin interface: {0}")]
    Form(String),
    /// Nothing was said in time.
    #[error("its admin interface has not answered within {} s", PATIENCE.as_secs())]
    Silent,
}

/// What an Envoy is, and how far.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct ServerInfo {
    /// `PRE_INITIALIZING`, `INITIALIZING`, `LIVE` or `DRAINING`.
    pub state: String,
    /// Its build.
    pub version: String,
    /// What it was started with.
    pub command_line_options: CommandLine,
}

/// The part of it that is of interest.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct CommandLine {
    /// Of how many that have taken over from each other it is the last.
    #[serde(default)]
    pub restart_epoch: u32,
}

impl ServerInfo {
    /// Asks for it.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn ask(socket: &Path) -> Result<Self, AskError> {
        let text = ask(socket, "/server_info").await?;
        serde_json::from_slice(&text).map_err(|error| AskError::Form(error.to_string()))
    }

    /// `1.40.0`, of `9e55…/1.40.0/Clean/RELEASE/BoringSSL`.
    pub fn release(&self) -> String {
        self.version.split('/').nth(1).unwrap_or(&self.version).to_owned()
    }
}

/// Asks for a path, and waits for all of the answer.
///
/// # Errors
/// Why there is none.
pub async fn ask(socket: &Path, path: &str) -> Result<Vec<u8>, AskError> {
    timeout(PATIENCE, converse(socket, path)).await.map_err(|_elapsed| AskError::Silent)?
}

async fn converse(socket: &Path, path: &str) -> Result<Vec<u8>, AskError> {
    let stream = UnixStream::connect(socket).await.map_err(AskError::Connect)?;
    let request = Request::get(path).header("host", "envoy").header("connection", "close");
    let request = request.body(String::new()).map_err(|error| AskError::Form(error.to_string()))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let asking = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = whole(response.into_body()).await?;
        if status == StatusCode::OK { Ok(body) } else { Err(AskError::Status(status)) }
    };
    // The answer counts: an end of the connection after it is none of ours, and one before it is in the answer.
    let (answer, _ended) = tokio::join!(asking, connection);
    answer
}

async fn whole(mut body: Incoming) -> Result<Vec<u8>, AskError> {
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
        if bytes.len() > LONGEST {
            return Err(AskError::Form(format!("it has said more than {LONGEST} bytes")));
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_envoy_says_of_itself_is_understood() {
        let said = r#"{"version": "9e55/1.40.0/Clean/RELEASE/BoringSSL", "state": "LIVE", "hot_restart_version": "11.104",
            "uptime_current_epoch": "17s", "command_line_options": {"base_id": "1", "restart_epoch": 2}}"#;
        let info: ServerInfo = serde_json::from_str(said).unwrap();
        assert_eq!(info.release(), "1.40.0");
        assert_eq!(info.command_line_options.restart_epoch, 2);
    }
}
