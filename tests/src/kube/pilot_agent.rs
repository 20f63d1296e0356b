//! What Istio's agent answers on port 15020, beside the Envoy that it starts: the state of the proxy, its metrics,
//! and kubelet's probes of the apps.
//!
//! Owns: those three answers, in Istio's words. Never does: anything that takes an istiod. Called by: `proxy-start`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::envoy::{ADMIN, AGENT, TELEMETRY};
use crate::http::{self, Headers, Request, Response};

/// The probes that the injector has moved to the agent, as JSON: what they ask there, and what the app is asked.
pub const PROBERS: &str = "ISTIO_KUBE_APP_PROBERS";
/// The pod's address.
pub const INSTANCE_IP: &str = "INSTANCE_IP";

/// From where an app is asked by those of its own pod that hand on, by which the redirection knows them.
pub const PASSTHROUGH: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
const PATIENCE: Duration = Duration::from_secs(3);

/// What the app is asked in a probe.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Prober {
    /// The probe as it was.
    #[serde(rename = "httpGet")]
    pub http_get: HttpGet,
}

/// A question of a probe.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HttpGet {
    /// Path.
    pub path: String,
    /// Port.
    pub port: u16,
}

/// Answers for ever.
pub fn serve() -> Result<()> {
    let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, AGENT));
    let listener = TcpListener::bind(at).with_context(|| format!("listen on {at}"))?;
    let probers = match std::env::var(PROBERS) {
        Ok(text) => serde_json::from_str(&text).with_context(|| format!("decode {PROBERS}"))?,
        Err(_not_set) => BTreeMap::new(),
    };
    let own: Option<IpAddr> = std::env::var(INSTANCE_IP).ok().and_then(|address| address.parse().ok());
    http::serve_with(&listener, move |request| {
        let answer = answer(request, &probers, own);
        answer.map_or_else(
            |error| (503, format!("{error:#}").into_bytes()),
            |response| (response.status, response.body),
        )
    })
}

fn answer(request: &Request, probers: &BTreeMap<String, Prober>, own: Option<IpAddr>) -> Result<Response> {
    let proxy = |address, path| http::get_from(address, path, &Headers::new());
    match (request.path.as_str(), probers.get(&request.path)) {
        ("/healthz/ready", _) => proxy(ADMIN, "/ready"),
        ("/stats/prometheus", _) => proxy((Ipv4Addr::LOCALHOST, TELEMETRY).into(), "/stats/prometheus"),
        (_, Some(prober)) => {
            let own = own.with_context(|| format!("{INSTANCE_IP} is not the pod's address"))?;
            ask_app(SocketAddr::new(own, prober.http_get.port), &prober.http_get.path)
        }
        _ => Ok(Response { status: 404, headers: Headers::new(), body: Vec::new() }),
    }
}

/// The pod's own address, so that an app that listens there alone is reached.
fn ask_app(address: SocketAddr, path: &str) -> Result<Response> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).context("make a socket")?;
    socket
        .bind(&SocketAddr::from((PASSTHROUGH, 0)).into())
        .with_context(|| format!("bind to {PASSTHROUGH}"))?;
    socket.connect_timeout(&address.into(), PATIENCE).with_context(|| format!("connect to {address}"))?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).context("limit the wait for the app")?;
    http::get(&mut stream, &address.to_string(), path, &Headers::new())
}
