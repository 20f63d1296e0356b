//! A listener of the proxy that lets nobody in: connections to it stay on their way.

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use socket2::Socket;

use crate::mesh::{self, OUTBOUND};
use crate::pod::TestPod;
use crate::socket_maker::Maker;

/// The listener, on the outbound port for IPv6, with a full queue.
#[derive(Debug)]
pub struct Jam {
    _listener: Socket,
    _first: Socket,
}

impl Jam {
    /// Listens with room for one connection, and takes the room.
    pub fn start(pod: &TestPod, remote: SocketAddr) -> Result<Self> {
        let listener = pod.proxy().tcp6()?;
        listener.set_only_v6(true)?;
        listener.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, OUTBOUND)).into())?;
        // The kernel's queue is one longer than it is told.
        listener.listen(0)?;
        let first = mesh::tcp(pod.app(), remote)?;
        mesh::connect(&first, remote).context("fill the queue")?;
        Ok(Self { _listener: listener, _first: first })
    }
}

/// Begins to connect and does not wait for the end.
pub fn begin(app: &Maker, remote: SocketAddr) -> Result<Socket> {
    let socket = mesh::tcp(app, remote)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&remote.into()) {
        Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => Ok(socket),
        Err(error) => Err(error).with_context(|| format!("begin to dial {remote}")),
        Ok(()) => bail!("dialled {remote} at once, where it should take its time"),
    }
}
