//! Streams of bytes between pods, with both of their ends in a test's hands: for what is no HTTP, and for what is to stay open.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};

use crate::pod::{TestPod, World};
use crate::wait;

/// A port of an app that speaks no HTTP.
pub const BYTES: u16 = 9000;

/// An open connection.
#[derive(Debug)]
pub struct Stream {
    /// The end of whoever has dialled.
    pub client: Socket,
    /// The end of the app that was dialled.
    pub server: Socket,
}

/// A listener of a pod's app, for IPv4.
pub fn listen(pod: &TestPod, port: u16) -> Result<Socket> {
    let socket = pod.app().socket(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).context("bind")?;
    socket.listen(16).context("listen")?;
    socket.set_read_timeout(Some(wait::scaled(wait::LIMIT))).context("limit accept")?;
    Ok(socket)
}

impl Stream {
    /// From a pod's app to a listener of another one's.
    pub fn open(from: &TestPod, listener: &Socket, to: SocketAddr) -> Result<Self> {
        Self::of(from.app().socket(Domain::IPV4, Type::STREAM, None)?, listener, to)
    }

    /// From somebody who is in no pod.
    pub fn from_world(world: &World, listener: &Socket, to: SocketAddr) -> Result<Self> {
        Self::of(world.tcp4()?, listener, to)
    }

    fn of(client: Socket, listener: &Socket, to: SocketAddr) -> Result<Self> {
        client
            .connect_timeout(&to.into(), wait::scaled(wait::LIMIT))
            .with_context(|| format!("connect to {to}"))?;
        let (server, _peer) = listener.accept().with_context(|| format!("accept what came to {to}"))?;
        for end in [&client, &server] {
            end.set_read_timeout(Some(wait::scaled(wait::LIMIT))).context("limit reading")?;
        }
        Ok(Self { client, server })
    }

    /// Something goes each way.
    pub fn exchange(&mut self) -> Result<()> {
        self.ask()?;
        self.answer()
    }

    /// Something goes to the app.
    pub fn ask(&mut self) -> Result<()> {
        say(&mut self.client, &mut self.server).context("to the app")
    }

    /// Something comes from the app.
    pub fn answer(&mut self) -> Result<()> {
        say(&mut self.server, &mut self.client).context("from the app")
    }
}

fn say(from: &mut Socket, to: &mut Socket) -> Result<()> {
    let said = [7, 0, 255, 13, 10];
    from.write_all(&said).context("write")?;
    let mut heard = [0; 5];
    to.read_exact(&mut heard).context("read")?;
    ensure!(heard == said, "{heard:?} has arrived");
    Ok(())
}
