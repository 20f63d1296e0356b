//! What a sidecar says of its own readiness, as kubelet asks for it: over HTTP, on port 15021 of the pod.
//!
//! Owns: one question, from inside of the pod's netns, so that no rule or policy on the way matters. Never does: believe that
//! whoever does not answer is not ready: not every proxy has that port. Called by: [`Sidecar`](super::sidecar::Sidecar).

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;

use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpSocket;
use veer_common::address::Port;

use crate::platform::netlink;
use crate::platform::netns::NetnsThread;

/// Where Istio's proxies tell (`statusPort`).
const PORT: Port = Port::new(15021);
/// What they are asked.
const PATH: &str = "/healthz/ready";

/// The status of the answer; `None` if there is none. Whoever asks sets the time. Nobody is dialled where nobody listens:
/// rules count what is dialled in the pod, whoever does.
pub(super) async fn status(thread: &NetnsThread, netns: &File) -> Option<u16> {
    let (looking, of) = (thread.clone(), netns.try_clone().ok()?);
    let look = move || looking.run(of.as_fd(), || netlink::listeners(&[PORT])).ok()?.ok();
    let found = tokio::task::spawn_blocking(look).await.ok()??;
    let is_v4 = found.first()?.bound.is_ipv4();
    let localhost = if is_v4 { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) };
    ask(thread, netns, SocketAddr::new(localhost, PORT.get())).await
}

async fn ask(thread: &NetnsThread, netns: &File, to: SocketAddr) -> Option<u16> {
    let (thread, netns) = (thread.clone(), netns.try_clone().ok()?);
    let make = move || {
        // A socket stays in the netns that it was made in.
        let made = thread.run(netns.as_fd(), move || {
            Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))
        });
        made.ok()?.ok()
    };
    let socket = tokio::task::spawn_blocking(make).await.ok()??;
    let stream = TcpSocket::from_std_stream(TcpStream::from(socket)).connect(to).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request = Request::builder().method(Method::GET).uri(PATH).header(HOST, "localhost");
    let request = request.header(CONNECTION, "close").body(String::new()).ok()?;
    let mut answer = std::pin::pin!(sender.send_request(request));
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        // Either there is an answer now, or there will be none.
        _ended = connection => answer.await,
    };
    answer.ok().map(|answer| answer.status().as_u16())
}
