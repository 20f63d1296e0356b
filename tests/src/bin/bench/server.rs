//! The serving end: an echo, with the same system calls whatever the path to it is.
//!
//! One thread for each port, one connection at a time: there is one client. A proxy opens several and keeps them, so
//! behind one each connection has a thread.

use std::io::{ErrorKind, Read, Write, stdout};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::order::{ANSWER, BLOCK, BUFFER, BULK, END, GET, pin};

/// How to serve.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// CPU to stay on
    #[arg(long)]
    cpu: usize,
    /// Serve many connections at a time
    #[arg(long)]
    many: bool,
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
        let many = options.many;
        threads.push(thread::spawn(move || if many { accept_many(&listener) } else { accept(&listener) }));
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

fn accept_many(listener: &TcpListener) -> Result<()> {
    loop {
        let (stream, _peer) = listener.accept().context("accept")?;
        thread::spawn(move || {
            if let Err(error) = converse(stream, &mut vec![0; BUFFER]) {
                eprintln!("bench: serve a connection: {error:#}");
            }
        });
    }
}

/// Gives back what comes, or answers requests, or counts it, if the first byte says so.
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
        if is_first && bytes.first() == Some(&GET) {
            let length = bytes.len();
            return answer(stream, buffer, length);
        }
        stream.write_all(bytes)?;
        if is_first && bytes == [BULK] {
            return swallow(stream, buffer);
        }
        is_first = false;
    }
}

/// Answers each request, of which the first `length` bytes are there.
fn answer(mut stream: TcpStream, buffer: &mut [u8], mut length: usize) -> Result<()> {
    loop {
        if buffer.get(..length).is_some_and(|request| request.ends_with(END)) {
            stream.write_all(ANSWER)?;
            length = 0;
        }
        let read = stream.read(buffer.get_mut(length..).unwrap_or_default())?;
        if read == 0 {
            return Ok(());
        }
        length += read;
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
