//! What is read when somebody asks: the pods and their counters, the maps, the source, the conditions.
//!
//! Nothing of it costs anything in between. Pods are read a few at a time, so that an ADD waits for those alone.

use std::fmt;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use veer_common::reason::{Fault, Reason};

use super::View;
use super::metrics::One;
use crate::enrol::figures::{Figures, ProxyState};
use crate::model::{BackendName, Driver};
use crate::platform::bpf::load::{build_id, build_text};
use crate::proxy::driver::Depth;
use crate::proxy::state::ProxyState as ProxyHealthState;
use crate::proxy::supervise::ProxyFigures;
use crate::proxy::watch::PodProxy;
use crate::readiness::Held;
use crate::source::{PodSource, SourceChanges, SourceHealth, SourceState};

/// Pods that are read at once.
const AT_ONCE: usize = 32;

type Two = [(&'static str, &'static str); 2];
type Three = [(&'static str, &'static str); 3];

/// All metrics, in the text form of OpenMetrics.
pub(super) async fn text<S: PodSource + Send + Sync + 'static>(view: &View<S>) -> Result<String, fmt::Error> {
    let figures = figures(view).await;
    let conditions = view.conditions().await;
    let standing = view.standing.look(None, Depth::Seen).await;
    let mut registry = Registry::default();
    let build = [("version", env!("CARGO_PKG_VERSION").to_owned()), ("build", build_text(build_id()))];
    registry.register("veer_build", "Release and eBPF programs of the agent", Info::new(build.to_vec()));
    pods(&mut registry, &figures);
    proxies(&mut registry, &standing);
    connections(&mut registry, &figures);
    maps(&mut registry, &figures);
    reconciliation(&mut registry, view);
    readiness(&mut registry, &conditions);
    source(&mut registry, view.source.health().as_ref());
    node_proxy(&mut registry, &view.proxy.figures());
    let mut text = String::new();
    view.metrics.encode(&mut text)?;
    encode_registry(&mut text, &registry)?;
    encode_eof(&mut text)?;
    Ok(text)
}

/// Without the node's thread all is empty, and the condition `node` says so.
async fn figures<S>(view: &View<S>) -> Figures {
    let cookies = view.node.run(|node| node.registry().iter().map(|pod| pod.cookie).collect::<Vec<_>>());
    let cookies = cookies.await.unwrap_or_default();
    let mut figures = Figures::default();
    for some in cookies.chunks(AT_ONCE) {
        let some = some.to_vec();
        if let Ok(read) = view.node.run(move |node| node.figures(&some)).await {
            figures.add(&read);
        }
    }
    if let Ok(totals) = view.node.run(|node| node.totals()).await {
        figures.totals = totals;
    }
    if let Ok(Some(registered)) = view.node.run(|node| node.registered()).await
        && let Ok(counted) = tokio::task::spawn_blocking(move || registered.count()).await
    {
        figures.listeners = counted
            .inspect_err(|error| tracing::warn!(%error, "count the registered listeners"))
            .unwrap_or_default();
    }
    figures
}

fn set<L: Clone + std::hash::Hash + Eq>(family: &Family<L, Gauge>, labels: &L, value: u64) {
    family.get_or_create(labels).set(i64::try_from(value).unwrap_or(i64::MAX));
}

fn pods(registry: &mut Registry, figures: &Figures) {
    let enrolled = Family::<Two, Gauge>::default();
    for backend in [BackendName::Ebpf, BackendName::Nftables] {
        for mode in ["redirect", "tproxy"] {
            let count = figures.pods.get(&(backend.name(), mode)).copied().unwrap_or_default();
            set(&enrolled, &[("backend", backend.name()), ("mode", mode)], count);
        }
    }
    registry.register("veer_pods_enrolled", "Pods that are redirected", enrolled);
    let proxies = Family::<One, Gauge>::default();
    for state in ProxyState::ALL {
        let count = figures.proxies.get(&state).copied().unwrap_or_default();
        set(&proxies, &[("state", state.name())], count);
    }
    registry.register("veer_pods_proxy", "Enrolled pods by whether their proxy listens", proxies);
}

fn proxies(registry: &mut Registry, standing: &[PodProxy]) {
    let family = Family::<Two, Gauge>::default();
    for driver in Driver::ALL {
        for state in ProxyHealthState::ALL {
            let is_one = |one: &&PodProxy| one.driver == driver && one.proxy.state == state;
            let count = u64::try_from(standing.iter().filter(is_one).count()).unwrap_or(u64::MAX);
            set(&family, &[("driver", driver.name()), ("state", state.name())], count);
        }
    }
    let help = "Enrolled pods by who drives their proxy, and how that stands";
    registry.register("veer_pods_proxy_state", help, family);
}

fn connections(registry: &mut Registry, figures: &Figures) {
    let counted = |index: usize| figures.totals.0.get(index).copied().unwrap_or_default();
    let connections = Family::<Three, Counter>::default();
    for reason in Reason::ALL {
        let direction = if reason.is_inbound() { "inbound" } else { "outbound" };
        let action = reason.action().name();
        let labels = [("direction", direction), ("action", action), ("reason", reason.name())];
        connections.get_or_create(&labels).inc_by(counted(reason as usize));
    }
    let help = "Connections and datagrams that were decided on since the agent's start";
    registry.register("veer_connections", help, connections);
    let faults = Family::<One, Counter>::default();
    for fault in Fault::ALL {
        faults.get_or_create(&[("fault", fault.name())]).inc_by(counted(fault as usize));
    }
    let help = "What went wrong in the datapath since the agent's start";
    registry.register("veer_datapath_faults", help, faults);
}

fn maps(registry: &mut Registry, figures: &Figures) {
    let (entries, capacity) = (Family::<One, Gauge>::default(), Family::<One, Gauge>::default());
    for (map, count, most) in figures.maps() {
        set(&entries, &[("map", map)], count);
        set(&capacity, &[("map", map)], most);
    }
    registry.register("veer_map_entries", "Entries of a map of the datapath", entries);
    registry.register("veer_map_capacity", "Entries that a map of the datapath can have", capacity);
}

fn reconciliation<S>(registry: &mut Registry, view: &View<S>) {
    let look = view.report.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let unrepaired = <Gauge>::default();
    unrepaired.set(i64::try_from(look.unrepaired.len()).unwrap_or(i64::MAX));
    registry.register("veer_pods_unrepaired", "Pods that are not as they ought to be", unrepaired);
    let ended = <Gauge>::default();
    ended.set(look.ended_at.and_then(|ended| i64::try_from(ended).ok()).unwrap_or_default());
    let help = "When the last look at everything ended, in seconds since the epoch; 0 before the first";
    registry.register("veer_reconcile_last_pass_timestamp_seconds", help, ended);
}

fn readiness(registry: &mut Registry, conditions: &[Held]) {
    let family = Family::<One, Gauge>::default();
    for held in conditions {
        set(&family, &[("condition", held.name)], held.holds().into());
    }
    registry.register("veer_ready_condition", "Whether a condition of readiness holds", family);
    let ready = <Gauge>::default();
    ready.set(conditions.iter().all(Held::holds).into());
    registry.register("veer_ready", "Whether a pod that is created now would be redirected", ready);
}

/// All is 0 where the agent starts none.
fn node_proxy(registry: &mut Registry, figures: &ProxyFigures) {
    let ProxyFigures { is_up, restarts, takeovers, usage } = *figures;
    let up = <Gauge>::default();
    up.set(is_up.into());
    registry.register("veer_proxy_live", "Whether the node's proxy that the agent starts is live", up);
    for (name, help, count) in [
        ("veer_proxy_restarts", "Starts of the node's proxy because the one before had ended", restarts),
        ("veer_proxy_takeovers", "Times that a node's proxy has taken over from another", takeovers),
    ] {
        let counter = <Counter>::default();
        counter.inc_by(count);
        registry.register(name, help, counter);
    }
    let memory = <Gauge>::default();
    memory.set(i64::try_from(usage.memory).unwrap_or(i64::MAX));
    registry.register("veer_proxy_memory_bytes", "Memory of the node's proxy", memory);
    let cpu = Counter::<f64, AtomicU64>::default();
    cpu.inc_by(usage.cpu_s);
    registry.register_with_unit("veer_proxy_cpu", "CPU time of the node's proxy", Unit::Seconds, cpu);
}

fn source(registry: &mut Registry, health: Option<&SourceHealth>) {
    // One that looks each time is current.
    let state = health.map_or(SourceState::Synced, |health| health.state);
    let states = [
        (SourceState::Starting, "starting"),
        (SourceState::Synced, "synced"),
        (SourceState::Degraded, "degraded"),
    ];
    let family = Family::<One, Gauge>::default();
    for (other, name) in states {
        set(&family, &[("state", name)], (other == state).into());
    }
    registry.register("veer_source_state", "How the source of pods stands: 1 for one state", family);
    let events = Family::<One, Counter>::default();
    let SourceChanges { added, modified, deleted } = health.map(|health| health.changes).unwrap_or_default();
    // Istio's words.
    for (kind, count) in [("add", added), ("update", modified), ("delete", deleted)] {
        events.get_or_create(&[("type", kind)]).inc_by(count);
    }
    let help = "Changes of pods that the agent has heard of from the API server";
    registry.register("nodeagent_reconcile_events", help, events);
    let requests = Family::<One, Counter>::default();
    let rows = health.map_or([0; 3], |health| [health.lists, health.failures, health.lookups]);
    let of_namespaces = health.and_then(|health| health.namespaces).unwrap_or_default();
    let rows = rows.into_iter().chain([of_namespaces.lists, of_namespaces.lookups]);
    let kinds = ["list", "failure", "lookup", "namespace-list", "namespace-lookup"];
    for (kind, count) in kinds.into_iter().zip(rows) {
        requests.get_or_create(&[("kind", kind)]).inc_by(count);
    }
    let help =
        "What the source of pods has asked the API server for since the agent's start, and what failed";
    registry.register("veer_source_requests", help, requests);
}
