//! Whether two backends agree on a cell, and where veer is allowed to be better.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::Value;

use crate::cell::{By, Cell, From, TUNNEL, is_local};
use crate::place::Outcome;
use crate::policy::Policy;
use crate::run::Backend;

const EBPF: &[Backend] = &[Backend::Ebpf];
const BOTH: &[Backend] = &[Backend::Ebpf, Backend::Nftables];

/// Where veer and istio-init may differ, and why. Whatever differs and is not named here is a bug.
pub(crate) const IMPROVEMENTS: [Improvement; 6] = [
    Improvement {
        name: "the proxy sees the dialled address as its own",
        by: EBPF,
        why: "inbound connections are handed over without NAT, so getsockname() needs no SO_ORIGINAL_DST",
        holds: |_, cell, istio, veer| {
            let (Some(theirs), Some(ours)) = (istio.local(), veer.local()) else { return false };
            istio.with_local(ours) == *veer && ours == effective(cell) && theirs.port() == 15006
        },
    },
    Improvement {
        name: "SO_ORIGINAL_DST has an answer",
        by: EBPF,
        why: "the proxy asks each connection for it, also those that it was dialled by itself",
        holds: |_, cell, istio, veer| {
            istio.original().is_none()
                && veer.original() == Some(effective(cell))
                && istio.with_original(veer.original()) == *veer
        },
    },
    Improvement {
        name: "with TPROXY, too, what is excluded within the pod stays direct",
        by: BOTH,
        why: "istio-init's mangle table knows neither excluded outbound ports nor 15008 nor DNS, and brings the \
              proxy's connection to its own pod back to the proxy",
        holds: |policy, cell, istio, veer| {
            let excluded = policy.exclude_outbound.as_deref().unwrap_or("15020");
            let port = cell.to.port();
            let is_dns = policy.dns && port == 53;
            let is_excluded =
                is_dns || port == TUNNEL || excluded.split(',').any(|one| one == port.to_string());
            let is_direct = veer.at().is_some_and(|at| arrives_as("direct", cell).contains(&at));
            policy.tproxy && is_excluded && is_brought_back(policy, istio) && is_direct
        },
    },
    Improvement {
        name: "the proxy reaches a resolver of its own pod by its gid, too",
        by: BOTH,
        why: "istio-init leaves the proxy's DNS alone by its uid; by its gid alone it brings TCP for a resolver at \
              the pod's own address back to the proxy",
        holds: |policy, cell, istio, veer| {
            let is_resolver = policy.dns && cell.to.port() == 53 && is_local(cell.to.ip().to_canonical());
            is_resolver && cell.by == By::Tcp && is_brought_back(policy, istio) && veer.at() == Some("app")
        },
    },
    Improvement {
        name: "with TPROXY the proxy's connection to its own pod arrives as with REDIRECT",
        by: BOTH,
        why: "known by its gid or its uid, it is handed over the same way, from the same address",
        holds: |policy, cell, istio, veer| {
            let dialled = istio.local() == Some(effective(cell));
            let Some(ours) = veer.local() else { return false };
            policy.tproxy && dialled && ours.port() == 15006 && istio.with_local(ours) == *veer
        },
    },
    Improvement {
        name: "with TPROXY, who comes while the proxy is away is refused at once",
        by: BOTH,
        why: "as with REDIRECT, under nftables as far as it is the proxy's own; istio-init's rules drop the packets, and \
              the client waits for its time-out",
        holds: |policy, _, istio, veer| {
            policy.tproxy
                && is_lost(policy, istio)
                && matches!(veer, Outcome::Failed(ErrorKind::ConnectionRefused))
        },
    },
];

/// Whether it came to the proxy's inbound listener, or would have, were that there.
fn is_brought_back(policy: &Policy, istio: &Outcome) -> bool {
    let is_refused = matches!(istio, Outcome::Failed(ErrorKind::ConnectionRefused));
    istio.at() == Some("inbound") || (policy.proxy_is_away && is_refused) || is_lost(policy, istio)
}

/// Whether it came to the proxy that is away, by rules that do not refuse.
fn is_lost(policy: &Policy, istio: &Outcome) -> bool {
    policy.proxy_is_away && matches!(istio, Outcome::Failed(ErrorKind::TimedOut))
}

/// A difference that is wanted.
pub(crate) struct Improvement {
    pub(crate) name: &'static str,
    /// Whose it is.
    by: &'static [Backend],
    pub(crate) why: &'static str,
    holds: fn(&Policy, &Cell, &Outcome, &Outcome) -> bool,
}

/// What two outcomes are to each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Judgement {
    Agree,
    /// Index in [`IMPROVEMENTS`].
    Better(usize),
    Differ,
}

/// Compares what came of a cell under istio-init with what came of it under veer.
pub(crate) fn judge(
    backend: Backend,
    policy: &Policy,
    cell: &Cell,
    istio: &Outcome,
    veer: &Outcome,
) -> Judgement {
    if istio == veer {
        return Judgement::Agree;
    }
    let better = IMPROVEMENTS.iter().position(|improvement| {
        improvement.by.contains(&backend) && (improvement.holds)(policy, cell, istio, veer)
    });
    better.map_or(Judgement::Differ, Judgement::Better)
}

/// Whether what came of a cell is what each of its decisions and their explanations say; else why not.
pub(crate) fn explained(cell: &Cell, veer: &Outcome, told: &[(Value, Value)]) -> Result<(), String> {
    // Nobody is asked about a datagram that is nobody's business.
    if told.is_empty() && arrives_as("direct", cell).contains(&veer.at().unwrap_or_default()) {
        return Ok(());
    }
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    for (decision, report) in told {
        let (said, reason) = (text(decision, "reason"), text(report, "reason"));
        if said != reason && said.as_deref() != Some("no-listener") {
            return Err(format!("the kernel's reason is {decision}, explained is {reason:?}"));
        }
        let action = text(decision, "action").unwrap_or_default();
        if veer.at().is_some_and(|at| !arrives_as(&action, cell).contains(&at)) {
            return Err(format!("explained is {action}, and it arrived elsewhere"));
        }
        let is_told = veer.original().map(canonical) == Some(effective(cell)) || cell.by != By::Tcp;
        if action.starts_with("to-") && veer.at().is_some() && !is_told {
            return Err(format!("the proxy was told {:?} for {}", veer.original(), cell.to));
        }
    }
    if told.is_empty() && veer.at().is_some() { Err("nothing was decided".to_owned()) } else { Ok(()) }
}

/// Whose listeners a decision may lead to.
fn arrives_as(action: &str, cell: &Cell) -> &'static [&'static str] {
    match (action, cell.from) {
        ("to-outbound", _) => &["outbound"],
        ("to-inbound", _) => &["inbound"],
        ("to-dns", _) => &["dns"],
        // The app may dial the proxy's own ports.
        ("direct", _) if cell.to.port() == 15001 => &["outbound", "inbound"],
        ("direct", _) if cell.to.port() == 15006 => &["inbound"],
        ("direct", From::Pod { .. }) if !is_local(cell.to.ip().to_canonical()) => &["outside"],
        ("direct", _) => &["app"],
        _ => &[],
    }
}

/// What the kernel takes a dialled address for: v4-mapped is IPv4; `0.0.0.0` is what the socket is bound to,
/// and `::` is loopback whatever that is.
fn effective(cell: &Cell) -> SocketAddr {
    let source = if let From::Pod { source, .. } = cell.from { source } else { None };
    let ip = match cell.to.ip().to_canonical() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => source.unwrap_or(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, cell.to.port())
}

pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
