//! Open streams: connections that are made once, through Envoys, and carry a block there and back over and over.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::thread;

use anyhow::{Context, Result, ensure};
use socket2::{SockRef, Socket};
use std::sync::Arc;

use super::load::Worker;
use super::request::Client;

/// Bytes of a block.
const BLOCK: usize = 256;

/// All open streams.
#[derive(Debug)]
pub(crate) struct Streams<'a> {
    streams: Vec<Stream<'a>>,
}

#[derive(Debug)]
struct Stream<'a> {
    client: Arc<Client<'a>>,
    to: SocketAddr,
    socket: Option<Socket>,
    blocks: u64,
}

impl<'a> Streams<'a> {
    /// Opens `each` streams from every client to its peer.
    pub(crate) fn open(peers: Vec<(Client<'a>, SocketAddr)>, each: usize) -> Result<Self> {
        let mut streams = Vec::new();
        for (client, to) in peers {
            let client = Arc::new(client);
            for _ in 0..each {
                let socket = Some(client.dial(to)?);
                streams.push(Stream { client: Arc::clone(&client), to, socket, blocks: 0 });
            }
        }
        Ok(Self { streams })
    }
}

impl Stream<'_> {
    fn exchange(&mut self) -> Result<()> {
        // One that broke is counted once, and opened again for what comes next.
        let mut socket = match self.socket.take() {
            Some(socket) => socket,
            None => self.client.dial(self.to)?,
        };
        self.blocks += 1;
        let mut block = [0; BLOCK];
        for (to, from) in block.iter_mut().zip(self.blocks.to_ne_bytes().iter().cycle()) {
            *to = *from;
        }
        socket.write_all(&block).context("write")?;
        let mut back = [0; BLOCK];
        socket.read_exact(&mut back).context("read")?;
        ensure!(block == back, "other bytes came back than went there");
        self.socket = Some(socket);
        Ok(())
    }
}

impl Worker for Streams<'_> {
    fn turn(&mut self) -> (u64, Vec<String>) {
        let mut lost = Vec::new();
        for stream in &mut self.streams {
            if let Err(error) = stream.exchange() {
                lost.push(format!("stream to {}, block {}: {error:#}", stream.to, stream.blocks));
            }
        }
        (u64::try_from(self.streams.len()).unwrap_or_default(), lost)
    }
}

/// The other end: sends back what it gets. The listener ends with the guard, a stream with its client.
#[derive(Debug)]
pub(crate) struct EchoServer(Arc<Socket>);

impl EchoServer {
    /// On a socket of the app's own.
    pub(crate) fn start(listener: Socket, at: SocketAddr) -> Result<Self> {
        listener.set_reuse_address(true)?;
        listener.bind(&at.into()).with_context(|| format!("bind to {at}"))?;
        listener.listen(128)?;
        let listener = Arc::new(listener);
        let accepting = Arc::clone(&listener);
        thread::spawn(move || {
            while let Ok((stream, _peer)) = accepting.accept() {
                thread::spawn(move || echo(stream));
            }
        });
        Ok(Self(listener))
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        // Wakes the thread, whose accept() fails from here on.
        if let Err(error) = self.0.shutdown(Shutdown::Both) {
            eprintln!("end the echo server: {error}");
        }
    }
}

/// Until the client goes; whatever else ends it, the client sees.
fn echo(mut stream: Socket) {
    let mut buffer = [0; BLOCK];
    drop(SockRef::from(&stream).set_tcp_nodelay(true));
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(buffer.get(..count).unwrap_or_default()).is_err() {
            return;
        }
    }
}
