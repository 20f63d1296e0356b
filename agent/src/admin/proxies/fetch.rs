//! One GET, to whoever is at the other end of a stream, with limits.
//!
//! Owns: HTTP as a client. Never does: connect, or believe what comes. Called by: `admin::proxies`.

use std::io;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::AbortOnDropHandle;

/// What Prometheus calls the text form that it reads since ever; Istio's agent would speak another one unasked.
const TEXT: &str = "text/plain;version=0.0.4";
/// Longest head of an answer, in bytes, and what is read ahead.
const MAX_HEAD: usize = 32 << 10;

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    /// The stream, before anything was said.
    #[error("connect: {0}")]
    Connect(#[from] io::Error),
    /// It is no HTTP, or breaks off.
    #[error("ask: {0}")]
    Http(#[from] hyper::Error),
    /// The answer is another one.
    #[error("it answers with {0}")]
    Status(StatusCode),
    /// The request cannot be made.
    #[error("ask for {path}: {source}")]
    Path {
        /// What was to be asked for.
        path: String,
        /// Why it cannot be.
        source: http::Error,
    },
}

/// An answer that is being read. The connection ends with it.
#[derive(Debug)]
pub(super) struct Answer {
    body: Incoming,
    _connection: AbortOnDropHandle<()>,
}

/// Asks for `path`.
pub(super) async fn get<S>(stream: S, host: &str, path: &str) -> Result<Answer, FetchError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut client = http1::Builder::new();
    client.max_buf_size(MAX_HEAD);
    let (mut requests, connection) = client.handshake(TokioIo::new(stream)).await?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a proxy broke off");
        }
    }));
    let request = Request::get(path).header(HOST, host).header(ACCEPT, TEXT).body(Empty::<Bytes>::new());
    let request = request.map_err(|source| FetchError::Path { path: path.to_owned(), source })?;
    let response = requests.send_request(request).await?;
    if response.status() != StatusCode::OK {
        return Err(FetchError::Status(response.status()));
    }
    Ok(Answer { body: response.into_body(), _connection: connection })
}

impl Answer {
    /// The next bytes; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(bytes) = frame?.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }
}
