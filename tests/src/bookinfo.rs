//! Istio's example application, as far as a mesh sees it: who calls whom, on which port, and which headers go along.
//!
//! Owns: the answers of its four services, which tell who was asked by whom. Never does: look a name up: as in
//! Istio's own programs, a variable may say where a service is. Called by: the program `bookinfo-app`, and by those who
//! read what it answers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::envoy::MARK;
use crate::http::{self, Headers, Request};

/// Where each of them listens.
pub const PORT: u16 = 9080;
/// What kubelet asks.
pub const HEALTH: &str = "/health";
/// Has a service be unhealthy until it is asked again.
pub const TURN: &str = "/health/turn";

/// Headers that go along with what is asked for a request's sake, as Bookinfo's programs have it for traces.
const ONWARD: [&str; 4] = [MARK, "x-request-id", "traceparent", "end-user"];

/// One of the services.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// The page: asks details and reviews.
    Productpage,
    /// Asks nobody.
    Details,
    /// Version `v1` asks nobody, others ask ratings.
    Reviews,
    /// Asks nobody.
    Ratings,
}

impl Service {
    /// As Kubernetes names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Productpage => "productpage",
            Self::Details => "details",
            Self::Reviews => "reviews",
            Self::Ratings => "ratings",
        }
    }

    /// What it is asked for.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Productpage => "/productpage",
            Self::Details => "/details/0",
            Self::Reviews => "/reviews/0",
            Self::Ratings => "/ratings/0",
        }
    }

    /// Whom it asks.
    pub fn asks(self, version: &str) -> &'static [Self] {
        match (self, version) {
            (Self::Productpage, _) => &[Self::Details, Self::Reviews],
            (Self::Reviews, "v2" | "v3") => &[Self::Ratings],
            _ => &[],
        }
    }

    /// The variable that says where it is.
    pub fn variable(self) -> String {
        format!("{}_HOSTNAME", self.name().to_uppercase())
    }
}

/// What a service answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Which it is.
    pub service: Service,
    /// Its version.
    pub version: String,
    /// Who is at the other end of its connection.
    pub peer: SocketAddr,
    /// The request's headers.
    pub headers: Headers,
    /// What those answered whom it asked.
    pub parts: Vec<Self>,
}

impl Answer {
    /// The answer of this service, in this or in a part.
    pub fn of(&self, service: Service) -> Option<&Self> {
        if self.service == service { Some(self) } else { self.parts.iter().find_map(|part| part.of(service)) }
    }
}

/// Asks a service, with headers that go along to all others.
///
/// # Errors
/// Where any of them did not answer.
pub fn ask(service: Service, at: SocketAddr, headers: &Headers) -> Result<Answer> {
    let response = http::get_from(at, service.path(), headers)?;
    let text = String::from_utf8_lossy(&response.body);
    ensure!(response.status == 200, "{} at {at} answered {}: {text}", service.name(), response.status);
    serde_json::from_slice(&response.body)
        .with_context(|| format!("{} at {at} answered {text}", service.name()))
}

/// A service that runs.
#[derive(Clone, Debug)]
pub struct App {
    service: Service,
    version: String,
    asks: Vec<(Service, SocketAddr)>,
    is_healthy: Arc<AtomicBool>,
}

impl App {
    /// One that finds those whom it asks in its environment.
    pub fn new(service: Service, version: &str) -> Result<Self> {
        let place = |service: &Service| -> Result<(Service, SocketAddr)> {
            let name = service.variable();
            let address = std::env::var(&name).with_context(|| format!("read {name}"))?;
            let address: IpAddr =
                address.parse().with_context(|| format!("{name} is no address: {address}"))?;
            Ok((*service, SocketAddr::new(address, PORT)))
        };
        let asks = service.asks(version).iter().map(place).collect::<Result<_>>()?;
        Ok(Self { service, version: version.to_owned(), asks, is_healthy: Arc::new(AtomicBool::new(true)) })
    }

    /// Status and body for a request.
    pub fn reply(&self, request: &Request) -> (u16, Vec<u8>) {
        self.answer(request).unwrap_or_else(|error| (503, format!("{error:#}").into_bytes()))
    }

    fn answer(&self, request: &Request) -> Result<(u16, Vec<u8>)> {
        match request.path.as_str() {
            HEALTH if self.is_healthy.load(Ordering::SeqCst) => Ok((200, b"well".to_vec())),
            HEALTH => bail!("unwell"),
            TURN => {
                let was = self.is_healthy.fetch_not(Ordering::SeqCst);
                Ok((200, if was { b"unwell".to_vec() } else { b"well".to_vec() }))
            }
            path if path == self.service.path() => {
                let headers = request.headers.iter().filter(|(name, _)| ONWARD.contains(&name.as_str()));
                let headers: Headers = headers.map(|(name, value)| (name.clone(), value.clone())).collect();
                let ask = |(service, at): &(Service, SocketAddr)| ask(*service, *at, &headers);
                let answer = Answer {
                    service: self.service,
                    version: self.version.clone(),
                    peer: request.peer,
                    headers: request.headers.clone(),
                    parts: self.asks.iter().map(ask).collect::<Result<_>>()?,
                };
                Ok((200, serde_json::to_vec(&answer)?))
            }
            other => Ok((404, format!("{} has no {other}", self.service.name()).into_bytes())),
        }
    }
}
