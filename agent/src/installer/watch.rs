//! Keeps veer in the configuration while the agent runs: looks when something changes there, and puts right what others
//! have undone, later each time if they do it again.
//!
//! Never does: fight. Who undoes it is told in the log and in the state, which says that it is out for as long as it is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::state::{InstallState, Phase, Writer};
use super::{Done, InstallError, Look, Target, install, look, target};
use crate::admin::{Installs, Metrics};
use crate::config::{AgentConfig, CniConfig};
use crate::install::{Entry, PlanError, Step, Wish, removal};
use crate::platform::cnidir::CniDir;
use crate::platform::inotify::Changes;
use crate::readiness::{Condition, Readiness};
use crate::reconcile::backoff::Backoff;
use crate::wall_clock::seconds as now;

/// Between two looks at what nothing is heard of: a mount that hides changes, a directory that is not there.
const RECHECK: Duration = Duration::from_secs(30);
/// While it waits for somebody else.
const WAITING: Duration = Duration::from_secs(2);
/// From the first event to the look: a vendor's file comes in several.
const SETTLE: Duration = Duration::from_millis(20);
/// How long a first file may be broken before it is passed over, as CRI-O does at once.
const BROKEN: Duration = Duration::from_secs(10);
/// How long the primary network may be gone before our copy of it goes, too.
const GONE: Duration = Duration::from_secs(30);
/// What is quiet for so long begins anew.
const QUIET: Duration = Duration::from_mins(5);
/// Nothing waits longer than this before it is tried again.
const MOST: Duration = Duration::from_mins(2);
/// The one name in the backoff.
const IT: &str = "configuration";

/// The installation of a running agent.
#[derive(Debug)]
pub struct Installer {
    config: CniConfig,
    wish: Wish,
    state: watch::Sender<InstallState>,
    backoff: Backoff,
    /// When it was put right the last time.
    repaired: Option<Instant>,
    /// Since when a first file is broken, or the primary network gone.
    missing: Option<Instant>,
    /// Whether this agent has seen it installed.
    was_installed: bool,
    /// Who is told how it is, besides those who read the state.
    told: Option<Told>,
}

#[derive(Debug)]
struct Told {
    metrics: Installs,
    condition: Condition,
}

impl Installer {
    /// Of an agent with these settings; and where its state can be read. Its metrics and its part of the readiness are
    /// there only if it sees to the configuration at all.
    pub fn of(
        config: &AgentConfig,
        metrics: &Metrics,
        readiness: &Readiness,
    ) -> (Self, watch::Receiver<InstallState>) {
        let entry = target::entry(&config.place.run_dir, config.log.level, &config.exclude_namespaces);
        let (mut installer, state) = Self::new(config.cni.clone(), entry);
        installer.told = (!config.cni.is_off).then(|| Told {
            metrics: metrics.installs(),
            condition: readiness.condition("cni", "the plugin is not in the CNI configuration yet"),
        });
        (installer, state)
    }

    /// With what the plugin is to be told; and where the state can be read.
    fn new(config: CniConfig, entry: Entry) -> (Self, watch::Receiver<InstallState>) {
        let directory = Target::find(&config).conf_dir.display().to_string();
        let (state, reader) =
            watch::channel(InstallState::begin(config.asked(), directory, config.is_off, now()));
        let wish = target::wish(&config, entry);
        let installer = Self {
            config,
            wish,
            state,
            backoff: Backoff::new(MOST),
            repaired: None,
            missing: None,
            was_installed: false,
            told: None,
        };
        (installer, reader)
    }

    /// Serves until it is stopped, which changes nothing in the directory.
    pub async fn serve(mut self, stop: CancellationToken) {
        if self.config.is_off {
            return stop.cancelled().await;
        }
        let mut changes = Changes::new()
            .inspect_err(
                |error| tracing::warn!(%error, "the CNI directory is looked at every 30 s, and not watched"),
            )
            .ok();
        loop {
            let found = Target::find(&self.config);
            // Before the look, so that no change is missed after it.
            if let Some(changes) = &changes {
                changes.watch(&self.watched(&found));
            }
            // Files of some kilobytes; the plugin is compared as a whole.
            let outcome = tokio::task::spawn_blocking(move || {
                let wait = self.pass(&found);
                self.tell();
                (self, wait)
            });
            let Ok((installer, wait)) = outcome.await else {
                return tracing::error!("the look at the CNI directory panicked; it is not watched any more");
            };
            self = installer;
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = heard(changes.as_mut()) => tokio::time::sleep(SETTLE).await,
            }
        }
    }

    /// What must not change unseen: the configuration, the plugins, and libcni's directory.
    fn watched(&self, target: &Target) -> Vec<std::path::PathBuf> {
        let placed = self.state.borrow().placed.clone();
        let below = placed.and_then(|placed| Some(placed.file.split_once('/')?.0.to_owned()));
        let below = below.map(|name| target.file(&name));
        [target.conf_dir.clone(), target.bin_dir.clone()].into_iter().chain(below).collect()
    }

    /// Metrics and readiness.
    fn tell(&self) {
        let Some(Told { metrics, condition }) = &self.told else { return };
        let state = self.state.borrow();
        metrics.ready(state.is_ready());
        if state.is_ready() {
            return condition.holds();
        }
        let notes = || {
            state.placed.iter().flat_map(|placed| &placed.notes).map(ToString::to_string).collect::<Vec<_>>()
        };
        condition.fails(&state.problem.clone().unwrap_or_else(|| notes().join("; ")));
    }

    fn ended(&self, result: &'static str) {
        if let Some(told) = &self.told {
            told.metrics.ended(result);
        }
    }

    /// Looks, and puts right what is wrong if it is time to. Returns how long nothing has to be looked at.
    fn pass(&mut self, target: &Target) -> Duration {
        let directory = target.conf_dir.display().to_string();
        self.state.send_if_modified(|state| {
            std::mem::replace(&mut state.directory, directory.clone()) != directory
        });
        let started = Instant::now();
        self.wish.passes_broken = self.missing.is_some_and(|since| since.elapsed() >= BROKEN);
        let look = match look(target, &self.wish) {
            Ok(look) => look,
            Err(error) => return self.without(&error, started),
        };
        let steps = match &look.plan {
            Ok(plan) => &plan.steps,
            Err(error) => return self.without_primary(target, &look, error, started),
        };
        self.missing = None;
        let lacks_plugin = is_other(target);
        if steps.is_empty() && !lacks_plugin {
            return self.found_installed(&look, started);
        }
        if self.was_installed {
            self.note_writer(target, steps, &look);
            if !self.backoff.is_due(IT, started) {
                let wait = self.backoff.next(started).map_or(WAITING, |due| due - started);
                let problem = format!(
                    "somebody takes it out again and again; it is put in again in {} s",
                    wait.as_secs() + 1
                );
                self.enter(Phase::Drifted, Some(problem));
                return wait;
            }
        }
        match install(target, &self.wish) {
            Ok(done) => self.installed(done, started),
            Err(error) => self.without(&error, started),
        }
    }

    fn found_installed(&mut self, look: &Look, at: Instant) -> Duration {
        if self.repaired.is_some_and(|repaired| at.duration_since(repaired) > QUIET) {
            self.backoff.keep_only(|_| false);
            self.repaired = None;
        }
        let Ok(plan) = &look.plan else { return WAITING };
        let is_first = !std::mem::replace(&mut self.was_installed, true);
        let placed = plan.placed.clone();
        let was = self.state.borrow().clone();
        if is_first || was.placed.as_ref() != Some(&placed) {
            tracing::info!(mode = %placed.mode, file = placed.file, network = placed.network, "in the CNI configuration");
            for note in &placed.notes {
                tracing::warn!("{note}");
            }
        }
        if is_first || was.phase != Phase::Installed || was.placed.as_ref() != Some(&placed) {
            if is_first {
                self.ended("SUCCESS");
            }
            self.state.send_modify(|state| {
                state.installs.success += u64::from(is_first);
                state.placed = Some(placed);
                state.enter(Phase::Installed, None, now());
            });
        }
        RECHECK
    }

    fn installed(&mut self, done: Done, at: Instant) -> Duration {
        let Done { placed, changed } = done;
        if self.was_installed {
            let wait = self.backoff.failed(IT, at, fastrand::f64());
            tracing::info!(changed = changed.join(", "), not_again_before = ?wait, "put back into the CNI configuration");
        } else {
            tracing::info!(mode = %placed.mode, file = placed.file, network = placed.network, changed = changed.join(", "), "put into the CNI configuration");
            for note in &placed.notes {
                tracing::warn!("{note}");
            }
        }
        self.repaired = Some(at);
        self.was_installed = true;
        self.ended("SUCCESS");
        self.state.send_modify(|state| {
            state.installs.success += 1;
            state.placed = Some(placed);
            state.enter(Phase::Installed, None, now());
        });
        RECHECK
    }

    /// It cannot be done, or not now.
    fn without(&mut self, error: &InstallError, at: Instant) -> Duration {
        if error.is_waited_for() {
            self.enter(Phase::Waiting, Some(error.to_string()));
            return WAITING;
        }
        let is_program = matches!(error, InstallError::Program(_));
        self.ended(if is_program { "COPY_BINARIES_FAILURE" } else { "CREATE_CNI_CONFIG_FAILURE" });
        self.state.send_modify(|state| match error {
            InstallError::Program(_) => state.installs.copy_failed += 1,
            InstallError::Plan(_) | InstallError::Directory(_) => state.installs.config_failed += 1,
        });
        let wait = self.backoff.failed(IT, at, fastrand::f64());
        self.enter(Phase::Failed, Some(error.to_string()));
        wait
    }

    /// There is no network, or its file is broken.
    fn without_primary(&mut self, target: &Target, look: &Look, error: &PlanError, at: Instant) -> Duration {
        if !error.is_waited_for() {
            return self.without(&InstallError::Plan(error.clone()), at);
        }
        let since = *self.missing.get_or_insert(at);
        let is_gone = matches!(error, PlanError::NoPrimary { .. } | PlanError::Missing { .. });
        let steps = removal(&look.before);
        // Its vendor has taken the network away: a copy of it would keep up one that is not there.
        if is_gone && since.elapsed() >= GONE && !steps.is_empty() {
            let removed = CniDir::lock(&target.conf_dir).and_then(|dir| dir.take(&steps, &look.before));
            match removed {
                Ok(()) => tracing::warn!("the primary network is gone, and so is what was made of it"),
                Err(error) => tracing::warn!(%error, "take back what was made of a network that is gone"),
            }
        }
        self.enter(Phase::Waiting, Some(error.to_string()));
        WAITING
    }

    /// Says it once for each time that it becomes so.
    fn enter(&self, phase: Phase, problem: Option<String>) {
        let was = self.state.borrow().clone();
        if was.phase == phase && was.problem == problem {
            return;
        }
        // What is waited for, by which it is known, may differ in a number.
        if was.phase != phase || phase != Phase::Drifted {
            tracing::warn!(
                phase = phase.name(),
                problem,
                "not in the CNI configuration: pods that start now are not redirected"
            );
        }
        self.state.send_modify(|state| state.enter(phase, problem, now()));
    }

    /// Who undid it, as far as his file tells.
    fn note_writer(&self, target: &Target, steps: &[Step], look: &Look) {
        let before = self.state.borrow().clone();
        // It is the same change that is waited for.
        if before.phase == Phase::Drifted {
            return;
        }
        let (file, vendor) = match steps.first() {
            Some(step) => (
                target.file(step.path()),
                look.plan.as_ref().ok().and_then(|plan| plan.placed.vendor.clone()),
            ),
            None => (target.program(), None),
        };
        let times = before.other_writer.map_or(1, |writer| writer.times + 1);
        let uid = fs::metadata(&file).ok().map(|metadata| metadata.uid());
        let file = file.display().to_string();
        let who = vendor.as_deref().unwrap_or("unknown");
        tracing::warn!(file, who, uid, times, "somebody has taken veer out of the CNI configuration");
        let writer = Writer { file, vendor, uid, at: now(), times };
        self.state.send_modify(|state| state.other_writer = Some(writer));
    }
}

/// Whether the plugin is not the one that belongs there.
fn is_other(target: &Target) -> bool {
    let (ours, there) = (fs::read(&target.plugin), fs::read(target.program()));
    !matches!((ours, there), (Ok(ours), Ok(there)) if ours == there)
}

async fn heard(changes: Option<&mut Changes>) {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}
