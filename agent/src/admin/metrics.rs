//! What is counted while it happens. What can be read when somebody asks is in `scrape`.
//!
//! Names and labels are a contract, listed in `docs/metrics.md`; a test holds the two together. A label has few
//! values that are known beforehand, and so each is there from the start, with 0.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::model::Driver;

/// One label, and its value.
pub(super) type One = [(&'static str, &'static str); 1];
type Two = [(&'static str, &'static str); 2];
type Histograms = Family<One, Histogram, fn() -> Histogram>;

/// Seconds of an ADD: 1 ms to 8 s, each twice the one before.
const ADD_SECONDS: [f64; 14] =
    [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192];
/// How an ADD ends.
const ADD_RESULTS: [&str; 3] = ["enrolled", "passed", "failed"];
/// Istio's ways for an installation to end, in its words; without a kubeconfig nothing can fail to be one.
const INSTALLS: [&str; 3] = ["SUCCESS", "COPY_BINARIES_FAILURE", "CREATE_CNI_CONFIG_FAILURE"];

/// What is counted; clones count into the same.
#[derive(Clone)]
pub struct Metrics(Arc<Counted>);

struct Counted {
    registry: Mutex<Registry>,
    add: Histograms,
    repaired: Family<Two, Counter>,
    errors: Counter,
    scrapes: Family<Two, Counter>,
    lines_dropped: Family<One, Counter>,
}

/// How the repair of a pod that runs without redirection ended, in Istio's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repair {
    /// It is redirected now.
    Success,
    /// It is not to be, after all.
    Skip,
    /// It could not be.
    Fail,
}

/// How it ended that a proxy was asked for its metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scrape {
    /// It told all of them.
    Done,
    /// Nobody is there.
    Unreachable,
    /// It answered otherwise, or broke off.
    Refused,
    /// It took too long, and what came until then was passed on.
    Late,
    /// It told too much, and the beginning was passed on.
    TooLong,
}

/// What the installer of the plugin counts.
#[derive(Clone, Debug)]
pub struct Installs {
    ready: Gauge,
    total: Family<One, Counter>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Repair {
    const ALL: [Self; 3] = [Self::Success, Self::Skip, Self::Fail];

    const fn labels(self) -> Two {
        let result = match self {
            Self::Success => "success",
            Self::Skip => "skip",
            Self::Fail => "fail",
        };
        [("type", "repair"), ("result", result)]
    }
}

impl Scrape {
    const ALL: [Self; 5] = [Self::Done, Self::Unreachable, Self::Refused, Self::Late, Self::TooLong];

    const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Late => "late",
            Self::TooLong => "too-long",
        }
    }
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::default();
        let add = Histograms::new_with_constructor(|| Histogram::new(ADD_SECONDS));
        for result in ADD_RESULTS {
            drop(add.get_or_create(&[("result", result)]));
        }
        let help = "Time that the agent took to answer an ADD of the plugin";
        registry.register_with_unit("veer_cni_add_duration", help, Unit::Seconds, add.clone());
        let repaired = Family::<Two, Counter>::default();
        for repair in Repair::ALL {
            drop(repaired.get_or_create(&repair.labels()));
        }
        let help = "Pods that ran without redirection and were repaired, or not";
        registry.register("istio_cni_repair_pods_repaired", help, Family::clone(&repaired));
        let errors = <Counter>::default();
        let help = "Attempts to bring back what was lost, or to redirect a pod that runs, that failed";
        registry.register("veer_reconcile_errors", help, Counter::clone(&errors));
        let (scrapes, lines_dropped) = proxies(&mut registry);
        let registry = Mutex::new(registry);
        Self(Arc::new(Counted { registry, add, repaired, errors, scrapes, lines_dropped }))
    }

    /// A proxy was asked for its metrics, and so many of its lines were not passed on.
    pub(super) fn scraped(&self, driver: Driver, scrape: Scrape, dropped: u64) {
        self.0.scrapes.get_or_create(&[("driver", driver.name()), ("result", scrape.name())]).inc();
        self.0.lines_dropped.get_or_create(&[("driver", driver.name())]).inc_by(dropped);
    }

    /// An ADD was answered: `enrolled`, `passed` or `failed`.
    pub fn added(&self, result: &'static str, took: Duration) {
        self.0.add.get_or_create(&[("result", result)]).observe(took.as_secs_f64());
    }

    /// A pod that ran without redirection was repaired, or not.
    pub fn repaired(&self, repair: Repair) {
        self.0.repaired.get_or_create(&repair.labels()).inc();
    }

    /// Something could not be brought back.
    pub fn reconcile_failed(&self) {
        self.0.errors.inc();
    }

    /// What an installer counts: there from now on. To be called once.
    pub fn installs(&self) -> Installs {
        let mut registry = self.0.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let (ready, total) = (<Gauge>::default(), Family::<One, Counter>::default());
        for result in INSTALLS {
            drop(total.get_or_create(&[("result", result)]));
        }
        let help = "Whether the plugin is in the node's CNI configuration";
        registry.register("istio_cni_install_ready", help, Gauge::clone(&ready));
        let help = "Installations of the plugin, by how they ended";
        registry.register("istio_cni_installs", help, Family::clone(&total));
        Installs { ready, total }
    }

    pub(super) fn encode(&self, text: &mut String) -> fmt::Result {
        encode_registry(text, &self.0.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is counted when proxies are asked for their metrics.
fn proxies(registry: &mut Registry) -> (Family<Two, Counter>, Family<One, Counter>) {
    let (scrapes, dropped) = (Family::<Two, Counter>::default(), Family::<One, Counter>::default());
    for driver in [Driver::Node, Driver::Sidecar, Driver::Ztunnel] {
        for scrape in Scrape::ALL {
            drop(scrapes.get_or_create(&[("driver", driver.name()), ("result", scrape.name())]));
        }
        drop(dropped.get_or_create(&[("driver", driver.name())]));
    }
    let help = "Questions to a proxy for its metrics, by how they ended";
    registry.register("veer_proxy_scrapes", help, Family::clone(&scrapes));
    let help = "Lines of proxies' metrics that were not passed on, because they are none";
    registry.register("veer_proxy_scrape_lines_dropped", help, Family::clone(&dropped));
    (scrapes, dropped)
}

impl Installs {
    /// Whether the plugin is where it belongs.
    pub fn ready(&self, is_ready: bool) {
        self.ready.set(is_ready.into());
    }

    /// An installation ended: `SUCCESS`, `COPY_BINARIES_FAILURE` or `CREATE_CNI_CONFIG_FAILURE`.
    pub fn ended(&self, result: &'static str) {
        self.total.get_or_create(&[("result", result)]).inc();
    }
}
