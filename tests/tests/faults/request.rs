//! Requests on new connections, each checked for the way that it took.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, SockRef, Socket};
use veer_tests::http::{self, Echo, Headers};
use veer_tests::mesh::{self, PATIENCE};
use veer_tests::pod::World;
use veer_tests::socket_maker::Maker;

use super::load::Worker;

/// The header that an Envoy gives a request which has none.
const BY_ENVOY: &str = "x-request-id";
/// The header that the Envoy of the client's own pod gives it.
const BY_OWN_ENVOY: &str = "x-envoy-attempt-count";
/// Where an Envoy dials its own app from.
const PASSTHROUGH: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6)), IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6))];

/// Who asks.
#[derive(Debug)]
pub(crate) enum Client<'a> {
    /// An app of a pod.
    App(Maker),
    /// Somebody in the world.
    World(&'a World),
}

impl Client<'_> {
    /// A socket of the client's, connected.
    pub(crate) fn dial(&self, to: SocketAddr) -> Result<Socket> {
        let socket = match self {
            Self::App(maker) => mesh::tcp(maker, to)?,
            Self::World(world) if Domain::for_address(to) == Domain::IPV6 => world.tcp6()?,
            Self::World(world) => world.tcp4()?,
        };
        mesh::connect(&socket, to).with_context(|| format!("connect to {to}"))?;
        SockRef::from(&socket).set_read_timeout(Some(PATIENCE))?;
        SockRef::from(&socket).set_write_timeout(Some(PATIENCE))?;
        SockRef::from(&socket).set_tcp_nodelay(true)?;
        Ok(socket)
    }
}

/// Whether the app's own sidecar is on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Served {
    /// The app is in a pod of the mesh: it hears from its own Envoy.
    BySidecar,
    /// The app is in the world.
    Plainly,
}

/// One client that asks one app.
#[derive(Debug)]
pub(crate) struct Requests<'a> {
    /// Who asks.
    pub(crate) client: Client<'a>,
    /// What is dialled.
    pub(crate) to: SocketAddr,
    /// Who answers.
    pub(crate) served: Served,
}

impl Requests<'_> {
    fn ask(&self) -> Result<()> {
        let mut socket = self.client.dial(self.to)?;
        let response = http::get(&mut socket, &self.to.to_string(), "/", &Headers::new())?;
        ensure!(response.status == 200, "status {}", response.status);
        let echo: Echo = serde_json::from_slice(&response.body).context("decode the app's answer")?;
        ensure!(echo.headers.contains_key(BY_ENVOY), "no Envoy was on the way: {:?}", echo.headers);
        let by_own = echo.headers.contains_key(BY_OWN_ENVOY);
        let has_own = matches!(self.client, Client::App(_));
        ensure!(by_own == has_own, "whether the client's own Envoy was on the way: {:?}", echo.headers);
        let by_sidecar = PASSTHROUGH.contains(&echo.peer.ip());
        ensure!(by_sidecar == (self.served == Served::BySidecar), "the app was reached from {}", echo.peer);
        Ok(())
    }
}

impl Worker for Requests<'_> {
    fn turn(&mut self) -> (u64, Vec<String>) {
        let lost = self.ask().map_err(|error| format!("request to {}: {error:#}", self.to)).err();
        (1, lost.into_iter().collect())
    }
}
