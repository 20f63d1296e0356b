//! What `veer check` tries in a pod, and what an observation means.
//!
//! Owns: which families are tried, what is dialled, and the words for each outcome. Never does: open a socket;
//! [`platform::redirection`](crate::platform::redirection) does. Called by: `commands::check`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The proxy's port for outbound connections.
pub const OUTBOUND_PORT: u16 = 15001;
/// The proxy's port for inbound connections.
pub const INBOUND_PORT: u16 = 15006;
/// What istio-validation dials; nobody listens there.
pub const PROBE_PORT: u16 = 15002;
/// The proxy's uid, unless the pod says otherwise.
pub const PROXY_UID: u32 = 1337;

/// A family of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What is dialled to find out, and where it must arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trial {
    /// The family.
    pub family: Family,
    /// Where the dialler is bound; `None` leaves it to the kernel.
    pub source: Option<IpAddr>,
    /// What is dialled.
    pub destination: SocketAddr,
    /// The listener that must get it.
    pub port: u16,
}

/// What became of a trial.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Observation {
    /// A listener of ours got it.
    Arrived {
        /// The listener's port.
        port: u16,
        /// Its `SO_ORIGINAL_DST`, or why there is none.
        original: Result<SocketAddr, String>,
    },
    /// It was connected, and not with us: it went where it was dialled.
    WentElsewhere,
    /// connect() failed.
    Failed(String),
    /// Nothing came within the time.
    Silence,
    /// A port of the proxy's could not be listened on.
    PortTaken {
        /// The port.
        port: u16,
        /// Why.
        problem: String,
    },
}

/// What a trial has shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is redirected.
    Redirected,
    /// Something is missing: what, and what to do.
    Missing(String),
    /// It cannot be told here.
    Unknown(String),
}

impl Family {
    /// 127.0.0.1 or ::1.
    pub const fn localhost(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Self::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        }
    }

    /// 127.0.0.6 or ::6, which istio-validation dials.
    const fn passthrough(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)),
        }
    }

    /// An address of documentation (RFC 5737, RFC 3849): nobody has it, should the SYN leave the pod.
    const fn nowhere(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The families that istio-init would have captured in a pod with these addresses (of all its interfaces):
/// IPv6 in a pod with IPv4 only if its proxy serves both.
pub fn families(addresses: &[IpAddr], dual_stack: bool) -> Vec<Family> {
    let routable_v4 = |address: &IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(_) => false,
    };
    let routable_v6 = |address: &IpAddr| match address {
        IpAddr::V6(v6) => {
            !v6.is_loopback() && !v6.is_unicast_link_local() && *address != Family::V6.passthrough()
        }
        IpAddr::V4(_) => false,
    };
    let v4 = addresses.iter().any(routable_v4);
    let v6 = addresses.iter().any(routable_v6) && (!v4 || dual_stack);
    [(Family::V4, v4), (Family::V6, v6)]
        .into_iter()
        .filter_map(|(family, has)| has.then_some(family))
        .collect()
}

impl Trial {
    /// What this user can find out: the proxy's what istio-validation tries, any other what an app does.
    pub const fn of(family: Family, is_proxy: bool) -> Self {
        if is_proxy {
            let destination = SocketAddr::new(family.passthrough(), PROBE_PORT);
            Self { family, source: Some(family.localhost()), destination, port: INBOUND_PORT }
        } else {
            let destination = SocketAddr::new(family.nowhere(), PROBE_PORT);
            Self { family, source: None, destination, port: OUTBOUND_PORT }
        }
    }

    /// What an observation of this trial means.
    pub fn judge(&self, observation: &Observation) -> Outcome {
        let (to, port) = (self.destination, self.port);
        match observation {
            Observation::Arrived { port: at, original: Ok(original) } if *at == port && *original == to => {
                Outcome::Redirected
            }
            Observation::Arrived { port: at, original: Ok(original) } if *at == port => {
                Outcome::Missing(format!(
                    "{to} arrives at port {port} with {original} as its original destination: the proxy would \
                     send it to the wrong place; this is a bug of veer, or another mesh redirects here, too"
                ))
            }
            Observation::Arrived { port: at, original: Err(problem) } if *at == port => {
                Outcome::Missing(format!(
                    "{to} arrives at port {port} without its original destination ({problem}): half of veer is \
                     attached; on the node, `veer status` names the program that is not"
                ))
            }
            Observation::Arrived { port: at, .. } => Outcome::Missing(format!(
                "{to} arrives at port {at} instead of {port}: the pod's proxy has another uid than this process \
                 takes for the proxy's; say it with --proxy-uid"
            )),
            Observation::WentElsewhere => Outcome::Missing(format!(
                "{to} was connected directly: nothing redirects this pod's connections, or its annotations \
                 leave this one alone; on the node, `veer pods` shows whether the pod is enrolled"
            )),
            Observation::Failed(problem) => Outcome::Missing(format!(
                "{to} is not redirected ({problem}): the pod is not enrolled; on the node, `veer pods` lists who \
                 is, and the agent's log says why this pod is not"
            )),
            Observation::Silence => Outcome::Missing(format!(
                "{to} is not redirected: no answer in time, so the SYN went to the network; on the node, \
                 `veer pods` shows whether the pod is enrolled"
            )),
            Observation::PortTaken { port, problem } => Outcome::Unknown(format!(
                "port {port} of {} cannot be listened on ({problem}): run the check before the proxy starts, as \
                 an init container; beside a running proxy, `veer pods` on the node shows what it gets",
                self.family
            )),
        }
    }
}

#[cfg(test)]
mod tests;
