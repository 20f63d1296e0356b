//! What a client sees of a connection: the output of the program `dial`, and how to run it.

use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::credentials::Credentials;
use crate::http::{Echo, Response};
use crate::launch::{Launch, kit_binary};

/// A request that was answered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Dialled {
    /// Who the client is.
    pub client: Credentials,
    /// What it dialled.
    pub to: SocketAddr,
    /// Its own end (`getsockname`).
    pub local: SocketAddr,
    /// The other end, as it is told (`getpeername`).
    pub peername: SocketAddr,
    /// Status of the answer.
    pub status: u16,
    /// The answer, if it came from an app of the kit.
    pub echo: Option<Echo>,
}

impl Dialled {
    /// Puts together what the client saw.
    pub fn new(to: SocketAddr, local: SocketAddr, peername: SocketAddr, response: &Response) -> Result<Self> {
        let echo = serde_json::from_slice(&response.body).ok();
        let client = Credentials::of(std::process::id())?;
        Ok(Self { client, to, local, peername, status: response.status, echo })
    }
}

/// Runs `dial` where and as whom `launch` says, with a header to recognise the request by.
pub fn run(launch: &Launch, to: SocketAddr, header: (&str, &str)) -> Result<Dialled> {
    let output = launch
        .command(kit_binary("dial")?)?
        .arg(to.to_string())
        .arg(format!("--header={}:{}", header.0, header.1))
        .stdin(Stdio::null())
        .output()
        .context("start dial")?;
    if !output.status.success() {
        bail!("dial {to} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("decode what dial saw")
}
