//! Whether three books agree: the requests that were sent, veer's counters, and Envoy's.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;
use veer_common::reason::{Action, Fault, Reason};
use veer_tests::envoy;

use crate::pod::{APP_PORT, NAMESPACE, Pod};
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
pub(crate) fn compare(pod: &Pod, counters: &Counters, sent: Sent) -> Result<Vec<Tally>> {
    let stats = envoy::stats(&pod.netns)?;
    let envoy = |names: &[String]| names.iter().filter_map(|name| stats.get(name)).sum();
    // A connection counts at the listener that serves it: 15001 hands those to an HTTP port on.
    let from_app = [listener(15001), listener(APP_PORT)];
    let to_world = [cluster("PassthroughCluster")];
    let from_network = [listener(15006)];
    let to_app = [cluster("InboundPassthroughCluster"), cluster(&format!("inbound|{APP_PORT}||"))];
    let out = by_action(counters, Action::ToOutbound);
    let back = by_action(counters, Action::ToInbound);
    let proxy = by_reason(counters, Reason::Proxy);
    let passthrough = by_reason(counters, Reason::PassthroughSource);
    let rows = [
        ("its app's, to :15001", Some(sent.by_app), out, envoy(&from_app)),
        ("its sidecar's to the world, direct", None, proxy, envoy(&to_world)),
        ("from the network, to :15006", None, back, envoy(&from_network)),
        ("its sidecar's to its app, direct", Some(sent.to_app), passthrough, envoy(&to_app)),
    ];
    let tally = |(what, sent, veer, envoy): (&str, Option<u64>, u64, u64)| Tally {
        pod: pod.name.to_owned(),
        what: what.to_owned(),
        sent,
        veer,
        envoy,
    };
    Ok(rows.map(tally).into())
}

fn listener(port: u16) -> String {
    format!("listener.0.0.0.0_{port}.downstream_cx_total")
}

fn cluster(name: &str) -> String {
    format!("cluster.{name}.upstream_cx_total")
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
