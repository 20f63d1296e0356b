//! The agent as the supervisor of the node's Envoy.
//!
//! Owns: that one runs, and that its end is noticed, told and followed by another one, later each time; that another build of
//! it takes over without a connection refused (`takeover`); and that it outlives the agent, which finds it again by the
//! record of its shim. An Envoy is live when it says so.
//! Never does: tell Envoy anything of pods; that is `proxy::ads`. Touch a process itself; that is `platform::proxy`.
//! Called by: `app`.

mod log;
mod standing;
mod takeover;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sha2::{Digest, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::log::Said;
pub use self::standing::{Crash, Phase, ProxyFigures, ProxyProcess, Watched, watched};
use self::takeover::Successor;
use super::admin::ServerInfo;
use super::ads::Ads;
use super::command::{Place, ProxyCommand};
use super::instance::{Build, Charge, Ended, Instance};
use super::place::ProxyPlace;
use crate::model::DEFAULT_PROXY_ID;
use crate::platform::inotify::Changes;
use crate::platform::proxy::{self, Running};
use crate::readiness::Condition;
use crate::reconcile::backoff::Backoff;

/// Nothing waits longer to be started again.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// One that has run so long was well: what it ends of is no part of an earlier failure.
const WELL: Duration = Duration::from_mins(1);
/// How often one is looked at that is not yet what it is to be, and one that is.
const LOOK: Duration = Duration::from_millis(100);
const REST: Duration = Duration::from_secs(5);
/// The name under which failures are counted.
const NAME: &str = "envoy";

/// What a supervisor begins with.
#[derive(Debug)]
pub struct Supervisor {
    /// Where agent and Envoy meet.
    pub place: ProxyPlace,
    /// What Envoy is started with.
    pub command: ProxyCommand,
    /// Its cgroup; `None` where there is no cgroup v2.
    pub cgroup: Option<PathBuf>,
    /// Whether it is connected.
    pub ads: Ads,
    /// That it is live.
    pub condition: Condition,
    /// How it stands.
    pub told: watch::Sender<Option<ProxyProcess>>,
}

/// The supervisor at work.
struct Work {
    of: Supervisor,
    current: Option<Running>,
    successor: Option<Successor>,
    /// Whom the current one has taken over from.
    before: Option<Running>,
    /// Whether another build is to take over.
    wants_another: bool,
    /// Whether it cannot, as long as nobody knows what users add.
    waits_for_config: bool,
    standing: ProxyProcess,
    said: Said,
    backoff: Backoff,
    due: Instant,
    looked_at: Option<Instant>,
    /// Since when nobody ends the one before.
    orphaned_at: Option<Instant>,
    /// The largest number that an Envoy here has had.
    number: u64,
}

/// What woke it.
enum Woken {
    Stop,
    Hangup,
    Said,
    Otherwise,
}

impl Supervisor {
    /// Works until `stop`, and leaves Envoy as it is then.
    ///
    /// # Errors
    /// If nothing can be waited for.
    pub async fn run(self, stop: CancellationToken) -> io::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut changes = Changes::new()?;
        let mut work = Work::take_up(self)?;
        loop {
            changes.watch_written(&work.of.place.envoy());
            work.said.pass_on();
            // First, for an agent that has just started: where one has taken over before, the end of the one before is no crash.
            work.look_if_due().await;
            work.bury_dead();
            work.act().await;
            work.tell();
            let woken = tokio::select! {
                () = stop.cancelled() => Woken::Stop,
                _ = hangup.recv() => Woken::Hangup,
                () = changes.next() => Woken::Said,
                () = work.something_ends() => Woken::Otherwise,
                () = tokio::time::sleep(work.pause()) => Woken::Otherwise,
            };
            match woken {
                Woken::Stop => return Ok(()),
                Woken::Hangup => work.compare(),
                Woken::Said => work.said.pass_on(),
                Woken::Otherwise => {}
            }
        }
    }
}

impl Work {
    /// Takes up those that an earlier agent has started.
    fn take_up(of: Supervisor) -> io::Result<Self> {
        let directory = of.place.envoy();
        let (mut running, mut ended) = Running::find(&directory)?;
        for record in &ended {
            drop(std::fs::remove_file(directory.join(record.instance.file_name())));
        }
        let (last, newest) = (ended.pop(), running.pop());
        let numbers = newest.iter().map(|one| &one.record).chain(&last).map(|record| record.instance.number);
        let number = numbers.max().unwrap_or_default();
        let before = running.pop();
        // One that could not be looked after was left: more than two follow each other never.
        for one in &running {
            end(one, Signal::TERM);
        }
        if let Some(cgroup) = &of.cgroup {
            let known: Vec<&Running> = running.iter().chain(&before).chain(&newest).collect();
            proxy::kill_strays(cgroup, &known);
        }
        for one in before.iter().chain(&newest) {
            tracing::info!(
                pid = one.pid(),
                "the node's proxy of an earlier agent runs, and is looked after again"
            );
        }
        // A first one of its kind has taken over from nobody.
        let is_successor = newest.as_ref().is_some_and(|newest| newest.record.instance.epoch > 0);
        let (current, successor, before) = match (before, newest) {
            (Some(before), Some(newest)) if is_successor => (Some(before), Some(Successor::of(newest)), None),
            (before, newest) => (newest, None, before),
        };
        let mut standing = ProxyProcess::down(of.command.to_string());
        if let (None, Some(record)) = (&current, last)
            && let Some(ended) = record.ended
        {
            standing.crash = Some(Crash { pid: record.envoy.pid, ended, last_words: Vec::new() });
        }
        standing.phase = if current.is_some() { Phase::Starting } else { Phase::Down };
        // That of a first one has lost its successor.
        let orphaned_at = before.is_some().then(Instant::now).filter(|_| !is_successor);
        let mut work = Self {
            said: Said::from_now(&directory, DEFAULT_PROXY_ID),
            of,
            current,
            successor,
            before,
            wants_another: false,
            waits_for_config: false,
            standing,
            backoff: Backoff::new(LONGEST_WAIT),
            due: Instant::now(),
            looked_at: None,
            orphaned_at,
            number,
        };
        work.compare();
        Ok(work)
    }

    /// Whether what runs is what would be started now.
    fn compare(&mut self) {
        let Some(current) = &self.current else { return };
        match self.build() {
            Ok(build) => {
                let newest = self.successor.as_ref().map_or(current, |successor| &successor.running);
                self.wants_another = newest.record.instance.build != build;
                if self.wants_another {
                    tracing::info!(pid = current.pid(), "another build of the node's proxy is to take over");
                }
            }
            Err(problem) => self.no_takeover(&problem),
        }
    }

    /// What Envoy is started from now.
    fn build(&self) -> Result<Build, String> {
        let command = self.of.command.clone();
        let failed = |path: PathBuf| move |error: io::Error| format!("open {}: {error}", path.display());
        let program = proxy::program(&command.program).map_err(failed(command.program.clone()))?;
        let path = self.of.place.bootstrap();
        let bootstrap = std::fs::read(&path).map_err(failed(path))?;
        let digest = Sha256::digest(bootstrap);
        let part = digest.first_chunk().copied().map(u64::from_be_bytes).unwrap_or_default();
        Ok(Build { command, program, bootstrap: format!("{part:016x}") })
    }

    /// Starts one.
    async fn start(&mut self, epoch: u32) -> Result<Running, String> {
        let build = self.build()?;
        self.number += 1;
        let (directory, bootstrap) = (self.of.place.envoy(), self.of.place.bootstrap());
        let place = Place { bootstrap: &bootstrap, directory: &directory, epoch };
        let arguments = build.command.arguments(place);
        let instance = Instance { number: self.number, epoch, build };
        let cgroup = self.of.cgroup.clone();
        let charge = Charge { directory, cgroup, id: DEFAULT_PROXY_ID, instance, arguments };
        let running = Running::start(charge).await.map_err(|error| error.to_string())?;
        tracing::info!(
            pid = running.pid(),
            shim = running.record.shim.pid,
            epoch,
            "started the node's proxy"
        );
        Ok(running)
    }

    /// Starts the one that is missing, or the one that is to take over.
    async fn act(&mut self) {
        if self.current.is_none() && self.due <= Instant::now() {
            match self.start(0).await {
                Ok(running) => {
                    self.standing.restarts += u64::from(self.standing.crash.is_some());
                    self.current = Some(running);
                    self.standing.phase = Phase::Starting;
                    self.of.condition.unknown("the node's proxy is starting");
                }
                Err(problem) => self.wait(format!("start {}: {problem}", self.of.command.program.display())),
            }
        }
        self.take_over().await;
    }

    /// It is tried again, later each time.
    fn wait(&mut self, problem: String) {
        let wait = self.backoff.failed(NAME, Instant::now(), fastrand::f64());
        self.due = Instant::now() + wait;
        tracing::error!(%problem, again_in = ?wait, "the node has no proxy");
        self.of.condition.fails(&problem);
        self.standing.phase = Phase::Down;
        self.standing.problem = Some(problem);
    }

    /// Not each time that something is said.
    async fn look_if_due(&mut self) {
        if self.looked_at.is_none_or(|at| at.elapsed() >= self.pause()) {
            self.look().await;
            self.looked_at = Some(Instant::now());
        }
    }

    /// Asks whether what runs is live.
    async fn look(&mut self) {
        let info = ServerInfo::ask(&self.of.place.admin()).await;
        if let (Ok(info), Some(successor)) = (&info, &self.successor)
            && successor.is(info)
        {
            self.has_taken_over(info);
        }
        self.end_orphan();
        let Some(current) = &self.current else { return };
        let epoch = current.record.instance.epoch;
        let problem = match info {
            Ok(info) if info.command_line_options.restart_epoch == epoch => {
                self.standing.version = Some(info.release());
                (info.state != "LIVE").then(|| format!("the node's proxy says that it is {}", info.state))
            }
            // The answer is its successor's, who has not taken over yet.
            Ok(_other) => return,
            // Who has begun to take over, and has failed, has had its admin interface closed.
            Err(error) if self.of.ads.standing().await.connected == 0 => Some(error.to_string()),
            Err(_error) => None,
        };
        match problem {
            None if self.standing.phase != Phase::Live => {
                tracing::info!(pid = self.current.as_ref().map(Running::pid), "the node's proxy is live");
                self.standing.phase = Phase::Live;
                self.standing.problem = None;
                self.of.condition.holds();
            }
            None => {}
            Some(problem) if self.standing.phase == Phase::Live => {
                self.standing.phase = Phase::Starting;
                self.of.condition.fails(&problem);
                self.standing.problem = Some(problem);
            }
            Some(_starting) => {}
        }
    }

    /// Tells of those that have ended.
    fn bury_dead(&mut self) {
        if let Some(before) = self.before.take_if(|one| one.has_ended()) {
            tracing::info!(pid = before.pid(), "the proxy before has ended");
            before.bury();
        }
        if let Some(successor) = self.successor.take_if(|one| one.running.has_ended()) {
            let pid = successor.running.pid();
            let ended = successor.running.bury();
            let words = self.said.last_words().pop().unwrap_or_default();
            self.no_takeover(&format!("pid {pid} {} after {} s: {words}", ended.by, ended.after_s));
        }
        if let Some(current) = self.current.take_if(|one| one.has_ended()) {
            let pid = current.pid();
            let ended = current.bury();
            self.crashed(pid, ended);
        }
    }

    fn crashed(&mut self, pid: u32, ended: Ended) {
        let crash = Crash { pid, ended, last_words: self.said.last_words() };
        let problem = format!("the node's proxy, {}", crash.text());
        tracing::error!(last_words = ?crash.last_words, "{problem}");
        self.standing.crash = Some(crash);
        self.standing.version = None;
        self.orphaned_at = Some(Instant::now());
        // It can have no listeners of one that is gone, and may wait for them for ever.
        if let Some(successor) = &self.successor {
            end(&successor.running, Signal::KILL);
        }
        if ended.after_s >= WELL.as_secs() {
            self.backoff.keep_only(|_name| false);
        }
        self.wait(problem);
    }

    fn tell(&mut self) {
        let current = self.current.as_ref();
        self.standing.pid = current.map(Running::pid);
        self.standing.started_at = current.map(|current| current.record.started_at);
        self.standing.draining = self.before.as_ref().map(Running::pid);
        let standing = &self.standing;
        self.of.told.send_if_modified(|told| {
            let is_news = told.as_ref() != Some(standing);
            *told = Some(standing.clone());
            is_news
        });
    }

    /// Waits until one of them ends.
    async fn something_ends(&self) {
        let ended = async |one: Option<&Running>| match one {
            Some(one) => one.ended().await,
            None => std::future::pending().await,
        };
        tokio::select! {
            () = ended(self.current.as_ref()) => {}
            () = ended(self.successor.as_ref().map(|successor| &successor.running)) => {}
            () = ended(self.before.as_ref()) => {}
        }
    }

    fn pause(&self) -> Duration {
        let begins = self.wants_another && self.before.is_none() && !self.waits_for_config;
        let is_under_way = self.standing.phase != Phase::Live || self.successor.is_some() || begins;
        match &self.current {
            None => self.due.saturating_duration_since(Instant::now()),
            Some(_) if is_under_way => LOOK,
            Some(_) if self.before.is_some() => LOOK * 10,
            Some(_) => REST,
        }
    }
}

/// One that has ended by itself is what is wanted.
fn end(one: &Running, signal: Signal) {
    if let Err(error) = one.signal(signal) {
        tracing::error!(pid = one.pid(), %error, "end a proxy");
    }
}
