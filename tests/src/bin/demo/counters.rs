//! Whether three books agree: the requests that were sent, veer's counters, and Envoy's.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;
use veer_common::reason::{Action, Fault, Reason};

use crate::node::Node;
use crate::pod::{NAMESPACE, Pod};
use crate::proxy::Driver;
use crate::report::Tally;

/// A pod's counters, by the name of the reason or fault; those that are zero are not there.
pub(crate) type Counters = BTreeMap<String, u64>;

/// The counters of a pod in what `veer pods --json` says.
pub(crate) fn of_pod(pods: &Value, pod: &str) -> Result<Counters> {
    let list = pods.as_array().context("veer pods says no list")?;
    let field = |entry: &Value, name: &str| entry.get(name).and_then(Value::as_str).map(ToOwned::to_owned);
    let is_it = |entry: &&Value| {
        field(entry, "namespace").as_deref() == Some(NAMESPACE)
            && field(entry, "name").as_deref() == Some(pod)
    };
    let entry = list.iter().find(is_it).with_context(|| format!("veer pods does not show {pod}"))?;
    let counters = |name| {
        let counters = entry.get(name).with_context(|| format!("veer pods has no {name} of {pod}"))?;
        serde_json::from_value::<Counters>(counters.clone())
            .with_context(|| format!("decode {name} of veer pods"))
    };
    let mut all = counters("reasons")?;
    all.extend(counters("faults")?);
    Ok(all)
}

/// The connections that the demo knows of, for one pod.
#[derive(Clone, Copy)]
pub(crate) struct Sent {
    /// By its app.
    pub(crate) by_app: u64,
    /// To its app.
    pub(crate) to_app: u64,
}

/// Compares the books of a pod.
pub(crate) fn compare(node: &Node, pod: &Pod, counters: &Counters, sent: Sent) -> Result<Vec<Tally>> {
    let envoy = pod.connections(node)?;
    let proxy = node.driver().proxy();
    let outbound = by_action(counters, Action::ToOutbound);
    let inbound = by_action(counters, Action::ToInbound);
    let to_world = by_reason(counters, Reason::Proxy);
    let to_app = by_reason(counters, Reason::PassthroughSource);
    // One connection of the node's Envoy may carry several requests to the app, as one between pods does.
    let to_app_sent = (node.driver() == Driver::Sidecar).then_some(sent.to_app);
    let rows = [
        ("its app's, to :15001".to_owned(), Some(sent.by_app), outbound, envoy.from_app),
        (format!("{proxy}'s to the world, direct"), None, to_world, envoy.to_world),
        ("from the network, to :15006".to_owned(), None, inbound, envoy.from_network),
        (format!("{proxy}'s to its app, direct"), to_app_sent, to_app, envoy.to_app),
    ];
    let tally = |(what, sent, veer, envoy)| Tally { pod: pod.name.to_owned(), what, sent, veer, envoy };
    Ok(rows.map(tally).into())
}

/// What the datapath could not do, or refused.
pub(crate) fn troubles(pod: &str, counters: &Counters) -> Vec<String> {
    let refused = Reason::ALL.into_iter().filter(|reason| reason.action() == Action::Drop).map(Reason::name);
    let names = refused.chain(Fault::ALL.into_iter().map(Fault::name));
    let counted = names.filter_map(|name| Some((name, counters.get(name).copied()?)));
    counted.filter(|(_, count)| *count > 0).map(|(name, count)| format!("{pod}: {name} {count}")).collect()
}

fn by_action(counters: &Counters, action: Action) -> u64 {
    let reasons = Reason::ALL.into_iter().filter(|reason| reason.action() == action);
    reasons.map(|reason| by_reason(counters, reason)).sum()
}

fn by_reason(counters: &Counters, reason: Reason) -> u64 {
    counters.get(reason.name()).copied().unwrap_or_default()
}
