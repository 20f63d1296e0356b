//! Everything of veer off this node, in an order that strands nobody.
//!
//! Owns: the order, the two waits in it, and the report. Never does: touch the runtime's CNI configuration or a
//! binary, end a process but the node's proxy that an agent has started and nobody uses, or stop at a failure.
//! Called by: `commands::uninstall`.
//!
//! First nothing new is redirected, then what is on its way to a proxy arrives, then the proxy gets the time to ask
//! where it was dialled; what answers that goes last. Open connections are the kernel's own and stay.

mod found;
mod kind;
mod proxy;

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

pub use self::kind::Kind;

use self::found::{Action, Found, Item};
use crate::config::Place;
use crate::enrol::{Enrolled, Nftables, Withdrawn, loopback, steps};
use crate::lock::{self, LockError};
use crate::pause::pause;
use crate::platform::bpf::generation::{self, Generation};
use crate::platform::bpf::pins::unpin;
use crate::platform::netlink;
use crate::platform::netns::NetnsThread;
use crate::platform::records::Records;

/// How long connections may take from connect() to their proxy's queue: microseconds, unless it does not accept.
const ARRIVAL: Duration = Duration::from_secs(5);
/// How often it is looked whether they have arrived.
const ROUND: Duration = Duration::from_millis(20);
/// How long a proxy has from its accept() to its `getsockopt(SO_ORIGINAL_DST)`. It asks at once.
const ANSWER: Duration = Duration::from_secs(1);

/// What was done, or with `dry_run` what would be.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether it was only looked.
    pub dry_run: bool,
    /// What is gone, or would be, in that order.
    pub removed: Vec<Removed>,
    /// What stays for a reason, and harms nobody.
    pub left: Vec<String>,
    /// What could not be removed, or not looked at.
    pub problems: Vec<String>,
}

/// Something that is gone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Removed {
    /// What it was.
    pub kind: Kind,
    /// Its path, or the pod that it belonged to.
    pub name: String,
}

/// Why nothing was done.
#[derive(Debug)]
pub enum Refusal {
    /// An agent runs.
    Running {
        /// The lock that it holds.
        lock: PathBuf,
        /// Its pid, if that is known.
        pid: Option<u32>,
    },
    /// The rest.
    Failed(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running { lock, pid: Some(pid) } => write!(
                f,
                "an agent runs, pid {pid} (it has {} locked): end it first, and see that nothing starts it again \
                 (delete its DaemonSet or stop its unit; by hand: kill -TERM {pid})",
                lock.display()
            ),
            Self::Running { lock, pid: None } => {
                write!(f, "an agent runs: it has {} locked; end it first", lock.display())
            }
            Self::Failed(text) => f.write_str(text),
        }
    }
}

/// Takes everything away, and what is in `proxy_dir`, if there is one. `ask_pid` asks a running agent who it is.
///
/// # Errors
/// If an agent runs, or nothing can be looked at; then nothing has changed.
pub fn uninstall(
    place: &Place,
    proxy_dir: Option<&Path>,
    dry_run: bool,
    ask_pid: impl FnOnce() -> Option<u32>,
) -> Result<Report, Refusal> {
    let _lock = match lock::take_if_there(place) {
        Ok(lock) => lock,
        Err(LockError::Held { path, pid }) => {
            return Err(Refusal::Running { lock: path, pid: ask_pid().or(pid) });
        }
        Err(other @ LockError::File { .. }) => return Err(Refusal::Failed(other.to_string())),
    };
    let netns = NetnsThread::start().map_err(|error| Refusal::Failed(error.to_string()))?;
    let nftables = Nftables::new(Records::new(&place.records()), netns.clone());
    let Found { items, generations, problems } = found::look(place, &netns, &nftables);
    let mut report = Report { dry_run, problems, ..Report::default() };
    if dry_run {
        report.removed = items.iter().map(Item::removed).collect();
        if let Some(directory) = proxy_dir {
            proxy::take(directory, &mut report);
        }
        return Ok(report);
    }
    let mut taker = Taker { netns, nftables, report };
    let mut rest = items.as_slice();
    let was_redirecting = taker.take_while(&mut rest, Kind::redirects);
    if was_redirecting {
        taker.wait_for_arrivals(&generations);
    }
    taker.take_while(&mut rest, Kind::brings_to_proxy);
    if was_redirecting {
        pause(ANSWER);
    }
    taker.take_while(&mut rest, |_rest| true);
    if let Some(directory) = proxy_dir {
        proxy::take(directory, &mut taker.report);
    }
    Ok(taker.report)
}

/// Takes one thing after the other.
struct Taker {
    netns: NetnsThread,
    nftables: Nftables,
    report: Report,
}

impl Taker {
    /// Takes the items from the front that are `wanted`; whether there were any.
    fn take_while(&mut self, rest: &mut &[Item], wanted: impl Fn(Kind) -> bool) -> bool {
        let count = rest.iter().take_while(|item| wanted(item.kind)).count();
        let (now, later) = rest.split_at(count);
        *rest = later;
        for item in now {
            match self.take(item) {
                Ok(Some(why)) => self.report.left.push(why),
                Ok(None) => self.report.removed.push(item.removed()),
                Err(problem) => self.report.problems.push(problem),
            }
        }
        count > 0
    }

    /// Takes one away; or says why it stays.
    fn take(&mut self, item: &Item) -> Result<Option<String>, String> {
        match &item.action {
            Action::Empty(map) => {
                generation::empty(map).map(drop).map_err(|error| error.to_string())?;
            }
            Action::Detach(pin) => generation::detach(pin).map_err(|error| error.to_string())?,
            Action::Unpin(pin) => unpin(pin).map_err(|error| error.to_string())?,
            Action::TakeRules(pod) => return self.take_rules(pod),
            Action::TakePassthrough(pod) => return self.take_passthrough(item, pod),
            Action::TakeWay(pod) => return self.take_way(item, pod),
            Action::RemoveFile(path) => gone_is_fine(fs::remove_file(path))
                .map_err(|error| format!("remove {}: {error}", path.display()))?,
            Action::RemoveDirectory(path) => match gone_is_fine(fs::remove_dir(path)) {
                Err(error) if matches!(error.kind(), io::ErrorKind::ResourceBusy) => {
                    return Ok(Some(format!("{}: something is mounted there", path.display())));
                }
                other => other.map_err(|error| format!("remove {}: {error}", path.display()))?,
            },
        }
        Ok(None)
    }

    /// The rules of a pod, but for what its open connections live by.
    fn take_rules(&mut self, pod: &Enrolled) -> Result<Option<String>, String> {
        let withdrawn = self.nftables.withdraw(pod).map_err(|problems| {
            let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
            format!("rules of pod {}: {}", pod.full_name(), problems.join("; "))
        })?;
        Ok((withdrawn == Withdrawn::Drained).then(|| {
            format!(
                "chains of nftables without a redirection in pod {}: connections that its proxy has are translated \
                 there; they go with the pod",
                pod.full_name()
            )
        }))
    }

    /// The address that the proxy dials its app from. A connection would not outlive it.
    fn take_passthrough(&self, item: &Item, pod: &Enrolled) -> Result<Option<String>, String> {
        // The pod has gone meanwhile, and the address with it.
        let Some(netns) = steps::open_netns(pod) else { return Ok(None) };
        let take = || -> io::Result<usize> {
            // Where that cannot be asked, the address does no harm.
            let connections = netlink::connections_from_passthrough_address().unwrap_or(usize::MAX);
            if connections == 0 {
                netlink::remove_passthrough_address()?;
            }
            Ok(connections)
        };
        let outcome = self.netns.run(netns.as_fd(), take).map_err(|error| error.to_string());
        match outcome?.map_err(|error| format!("take ::6 off lo of pod {}: {error}", item.name))? {
            0 => Ok(None),
            _ => Ok(Some(format!(
                "::6 on lo of pod {}: the proxy's connections to its app come from there; it goes with the pod",
                item.name
            ))),
        }
    }

    /// The way by which an app's answers find back to its proxy.
    fn take_way(&self, item: &Item, pod: &Enrolled) -> Result<Option<String>, String> {
        let Some(netns) = steps::open_netns(pod) else { return Ok(None) };
        let take = || loopback::ways().and_then(|families| loopback::take_unused(&families));
        let outcome = self.netns.run(netns.as_fd(), take).map_err(|error| error.to_string())?;
        let is_taken = outcome
            .map_err(|error| format!("take the route of marked packets of pod {}: {error}", item.name))?;
        Ok((!is_taken).then(|| {
            format!(
                "the route of marked packets of pod {}: what its app answers the proxy finds back by it; it goes with the pod",
                item.name
            )
        }))
    }

    /// Waits until what was redirected is with its proxy.
    fn wait_for_arrivals(&mut self, generations: &[Generation]) {
        let end = Instant::now() + ARRIVAL;
        loop {
            let on_their_way: usize = generations.iter().map(Generation::hand_offs).sum();
            if on_their_way == 0 {
                return;
            }
            if Instant::now() >= end {
                let connections = if on_their_way == 1 { "connection" } else { "connections" };
                self.report.left.push(format!(
                    "{on_their_way} {connections} on the way to a proxy that does not accept: it will not learn \
                     where they were dialled"
                ));
                return;
            }
            pause(ROUND);
        }
    }
}

fn gone_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
