//! A proxy that tells every client where the kernel says it wanted to go, and the client of it.
//!
//! One such exchange proves a redirected connection from end to end: it arrived at the proxy, the proxy
//! learnt the original destination, and it is that of this connection and of no other.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::mesh::{self, PATIENCE};
use crate::original_dst;
use crate::socket_maker::Maker;

/// Connections that may wait for the server's thread.
const BACKLOG: i32 = 4096;

/// The server. Its thread ends with the guard.
#[derive(Debug)]
pub struct DstServer {
    listener: Arc<Socket>,
    accepted: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl DstServer {
    /// Listens in a pod, as the proxy.
    pub fn start(proxy: &Maker, at: impl Into<SocketAddr>) -> Result<Self> {
        let at = at.into();
        let listener = proxy.socket(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
        if at.is_ipv6() {
            listener.set_only_v6(true)?;
        }
        listener.set_reuse_address(true)?;
        listener.bind(&at.into()).with_context(|| format!("bind to {at}"))?;
        listener.listen(BACKLOG)?;
        let (listener, accepted) = (Arc::new(listener), Arc::new(AtomicU64::new(0)));
        let (socket, count) = (Arc::clone(&listener), Arc::clone(&accepted));
        let thread = thread::spawn(move || serve(&socket, &count));
        Ok(Self { listener, accepted, thread: Some(thread) })
    }

    /// Connections that it got so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for DstServer {
    fn drop(&mut self) {
        // Wakes the thread, whose accept() fails from here on.
        if let Err(error) = self.listener.shutdown(Shutdown::Both) {
            eprintln!("end the server of original destinations: {error}");
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("the server of original destinations panicked");
        }
    }
}

fn serve(listener: &Socket, accepted: &AtomicU64) {
    while let Ok((mut client, _peer)) = listener.accept() {
        accepted.fetch_add(1, Ordering::Relaxed);
        // A client that has gone hears nothing; whatever else goes wrong, the client sees in the text.
        drop(client.write_all(original_destination(&client).as_bytes()));
    }
}

fn original_destination(client: &Socket) -> String {
    let local = match client.local_addr() {
        Ok(local) => local,
        Err(error) => return format!("getsockname: {error}"),
    };
    let answer = if local.is_ipv4() { original_dst::v4(client) } else { original_dst::v6(client) };
    answer.map_or_else(|error| format!("SO_ORIGINAL_DST: {error}"), |address| address.to_string())
}

/// Dials `to` from a pod and wants to hear from the proxy that this is where it wanted to go.
pub fn ask(app: &Maker, to: impl Into<SocketAddr>) -> Result<()> {
    let to = to.into();
    confirm(mesh::tcp(app, to)?, to)
}

/// Connects a socket to `to` and wants to hear from the proxy that this is where it wanted to go.
pub fn confirm(mut socket: Socket, to: SocketAddr) -> Result<()> {
    mesh::connect(&socket, to).with_context(|| format!("dial {to}"))?;
    SockRef::from(&socket).set_read_timeout(Some(crate::wait::scaled(PATIENCE)))?;
    let mut told = String::new();
    socket.read_to_string(&mut told).with_context(|| format!("hear from the proxy about {to}"))?;
    if told.parse() != Ok(to) {
        bail!("dialled {to}, and the proxy says {told:?}");
    }
    Ok(())
}
