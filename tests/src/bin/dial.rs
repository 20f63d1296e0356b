//! `dial`: a client that says, as JSON, what it sees of its own connection and what it was answered.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use veer_tests::dial::Dialled;
use veer_tests::http::{self, Headers};

/// Ask an HTTP server once and say what was seen.
#[derive(Parser)]
struct Options {
    /// Address and port to dial
    to: SocketAddr,
    /// Path to ask for
    #[arg(long, default_value = "/")]
    path: String,
    /// Header to send, `name: value`; any number of them
    #[arg(long = "header", value_parser = header)]
    headers: Vec<(String, String)>,
}

fn header(text: &str) -> Result<(String, String)> {
    let (name, value) = text.split_once(':').context("a header is `name: value`")?;
    Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
}

fn main() -> Result<()> {
    let options = Options::parse();
    let limit = veer_tests::wait::scaled(Duration::from_secs(10));
    let mut stream = TcpStream::connect_timeout(&options.to, limit)
        .with_context(|| format!("connect to {}", options.to))?;
    stream.set_read_timeout(Some(limit))?;
    let (local, peername) = (stream.local_addr()?, stream.peer_addr()?);
    let headers: Headers = options.headers.into_iter().collect();
    let response = http::get(&mut stream, &options.to.to_string(), &options.path, &headers)?;
    let dialled = Dialled::new(options.to, local, peername, &response)?;
    serde_json::to_writer(std::io::stdout(), &dialled)?;
    std::io::stdout().write_all(b"\n").context("write the result")
}
