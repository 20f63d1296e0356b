//! The serving end: an echo, with the same system calls whatever the path to it is.
//!
//! One thread for each port, one connection at a time: there is one client.

use std::io::{ErrorKind, Read, Write, stdout};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::order::{BLOCK, BUFFER, BULK, pin};

/// How to serve.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// CPU to stay on
    #[arg(long)]
    cpu: usize,
    /// Ports to listen on
    #[arg(required = true)]
    ports: Vec<u16>,
}

/// Serves until it is killed. Says so on standard output when it listens.
pub(crate) fn serve(options: &Options) -> Result<()> {
    pin(options.cpu)?;
    let mut threads = Vec::new();
    for port in &options.ports {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port))
            .with_context(|| format!("listen on port {port}"))?;
        threads.push(thread::spawn(move || accept(&listener)));
    }
    stdout().write_all(b"listening\n").context("say that the server listens")?;
    for thread in threads {
        match thread.join() {
            Ok(ended) => ended?,
            Err(_panic) => bail!("a thread of the server panicked"),
        }
    }
    Ok(())
}

fn accept(listener: &TcpListener) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let (stream, _peer) = listener.accept().context("accept")?;
        converse(stream, &mut buffer).context("serve a connection")?;
    }
}

/// Gives back what comes, or counts it, if the first byte says so.
fn converse(mut stream: TcpStream, buffer: &mut [u8]) -> Result<()> {
    let mut is_first = true;
    loop {
        let length = match stream.read(buffer) {
            // A client that gave up; its own error says more.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            read => read?,
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(());
        }
        stream.write_all(bytes)?;
        if is_first && bytes == [BULK] {
            return swallow(stream, buffer);
        }
        is_first = false;
    }
}

/// Answers each block with one byte.
fn swallow(mut stream: TcpStream, buffer: &mut [u8]) -> Result<()> {
    let block = usize::try_from(BLOCK)?;
    let mut swallowed = 0;
    loop {
        let length = stream.read(buffer)?;
        if length == 0 {
            return Ok(());
        }
        swallowed += length;
        if swallowed >= block {
            swallowed -= block;
            stream.write_all(&[BULK])?;
        }
    }
}
