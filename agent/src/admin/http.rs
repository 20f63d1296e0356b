//! HTTP/1.1 as far as probes and scrapers speak it.
//!
//! Owns: limits and the form of an answer. Never does: know what is asked. Called by: `admin`.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::StreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::proxies::Pieces;
use crate::accept;

/// Connections at once: a few scrapers and the kubelet. Further ones wait to be accepted.
const MOST: usize = 32;
/// How long a head may take to arrive, and so how long a connection may be idle.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection may last: whoever reads slowly must not hold one for ever.
const LIFETIME: Duration = Duration::from_mins(2);
/// Largest head, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Request {
    pub(super) path: String,
    /// Behind the question mark; empty without one.
    pub(super) query: String,
}

/// What is said.
pub(super) struct Answer {
    status: StatusCode,
    kind: &'static str,
    body: UnsyncBoxBody<Bytes, Infallible>,
}

impl Answer {
    /// For people and probes.
    pub(super) fn text(status: u16, body: String) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, kind: "text/plain; charset=utf-8", body: whole(body) }
    }

    /// For scrapers.
    pub(super) fn open_metrics(body: String) -> Self {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        Self { status: StatusCode::OK, kind, body: whole(body) }
    }

    /// For scrapers, in Prometheus' own form, which comes piece by piece.
    pub(super) fn prometheus(pieces: Pieces) -> Self {
        let frames = pieces.map(|piece| Ok(Frame::data(piece)));
        let kind = "text/plain; version=0.0.4; charset=utf-8";
        Self { status: StatusCode::OK, kind, body: StreamBody::new(frames).boxed_unsync() }
    }
}

fn whole(text: String) -> UnsyncBoxBody<Bytes, Infallible> {
    Full::new(Bytes::from(text)).boxed_unsync()
}

impl From<Answer> for Response<UnsyncBoxBody<Bytes, Infallible>> {
    fn from(answer: Answer) -> Self {
        let mut response = Self::new(answer.body);
        *response.status_mut() = answer.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.kind));
        response
    }
}

/// Answers whoever connects, until `stop`.
pub(super) async fn serve<F, A>(listener: TcpListener, stop: CancellationToken, answer: F)
where
    F: Fn(Request) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(MOST));
    accept::serve(
        "probe or scraper",
        &stop,
        || next(&listener, &room),
        |(stream, place)| {
            let (stop, answer) = (stop.clone(), answer.clone());
            async move {
                let conversation = tokio::time::timeout(LIFETIME, converse(stream, answer));
                // Whoever is in the middle of an answer asks again.
                let _ended = stop.run_until_cancelled(conversation).await;
                drop(place);
            }
        },
    )
    .await;
}

/// The next connection, once there is room for it.
async fn next(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _peer) = listener.accept().await?;
    Ok((stream, place))
}

async fn converse<F, A>(stream: TcpStream, answer: F)
where
    F: Fn(Request) -> A,
    A: Future<Output = Answer>,
{
    let respond = service_fn(|request: hyper::Request<Incoming>| {
        let asked = Request {
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
        };
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let answer = is_read.then(|| answer(asked));
        async move {
            Ok::<Response<_>, Infallible>(match answer {
                Some(answer) => answer.await.into(),
                None => not_allowed(),
            })
        }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), respond).await {
        tracing::debug!(%error, "a probe or scraper broke off");
    }
}

fn not_allowed() -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let mut response = Response::from(Answer::text(405, "only GET and HEAD\n".to_owned()));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}
