//! How one Envoy takes over from another: by Envoy's own hot restart.
//!
//! The later one is started beside the one before and gets its listening sockets from it, not others like them
//! (`SCM_RIGHTS`, over `hot-restart_*` in their directory). So no listener is ever closed: what waits in the queues is
//! accepted by the one or the other, and the datapath's entries go on, for they are the sockets'. When it has heard of all
//! listeners (`proxy::delta` sends all at once) it is live, and has the one before stop accepting; and after its
//! `--parent-shutdown-time-s` it ends that one. Nobody else may: it asks it for its statistics, and aborts if nobody
//! answers. If it fails before, the one before goes on as if nothing had been, but for its admin interface, which it has
//! closed by then. Envoy 1.38 is the first that hands on listeners in other network namespaces; both must be of one
//! `--hot-restart-version`, or the later one ends at once.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::super::admin::ServerInfo;
use super::{Phase, Running, Work, end};

/// How long it may take to take over.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long one keeps its connections whose successor has crashed.
const ORPHANED: Duration = Duration::from_mins(10);

/// One that is taking over.
pub(super) struct Successor {
    pub(super) running: Running,
    /// When it is given up.
    until: Instant,
}

impl Successor {
    pub(super) fn of(running: Running) -> Self {
        Self { running, until: Instant::now() + PATIENCE }
    }

    /// Whether it is who has answered, and live: then it has had the one before stop accepting.
    pub(super) fn is(&self, info: &ServerInfo) -> bool {
        info.command_line_options.restart_epoch == self.running.record.instance.epoch && info.state == "LIVE"
    }
}

impl Work {
    /// Begins it, once the one before is live and nobody drains any more: Envoy ends who came two before. Gives it up when it takes too long.
    pub(super) async fn take_over(&mut self) {
        if let Some(successor) = &self.successor {
            if successor.until <= Instant::now() {
                // Its end is told of as any other.
                tracing::error!(pid = successor.running.pid(), "it has not taken over in time");
                end(&successor.running, Signal::KILL);
            }
            return;
        }
        let Some(current) = self.current.as_ref().filter(|_| self.may_begin()) else {
            return;
        };
        let epoch = current.record.instance.epoch + 1;
        // It would hear of no pod, and have the listeners of all of them closed.
        self.waits_for_config = !self.of.ads.knows_config().await;
        if self.waits_for_config {
            let problem = "another build of the node's proxy waits until --proxy-config can be read";
            self.standing.problem = Some(problem.to_owned());
            return;
        }
        self.wants_another = false;
        match self.start(epoch).await {
            Ok(running) => self.successor = Some(Successor::of(running)),
            Err(problem) => self.no_takeover(&problem),
        }
    }

    fn may_begin(&self) -> bool {
        self.wants_another && self.before.is_none() && self.standing.phase == Phase::Live
    }

    pub(super) fn has_taken_over(&mut self, info: &ServerInfo) {
        let Some(successor) = self.successor.take() else { return };
        let before = self.current.replace(successor.running);
        let pid = self.current.as_ref().map(Running::pid);
        let release = info.release();
        tracing::info!(
            pid,
            release,
            before = before.as_ref().map(Running::pid),
            "the node's proxy has taken over"
        );
        self.before = before;
        self.orphaned_at = None;
        self.standing.takeovers += 1;
        self.standing.problem = None;
    }

    /// Ends the one before if the one that was to do that has crashed, once it has had as long.
    pub(super) fn end_orphan(&self) {
        let is_late = self.orphaned_at.is_some_and(|at| at.elapsed() >= ORPHANED);
        if let Some(before) = self.before.as_ref().filter(|_| is_late) {
            end(before, Signal::TERM);
        }
    }

    /// It is not tried again before somebody asks for it.
    pub(super) fn no_takeover(&mut self, problem: &str) {
        self.wants_another = false;
        let problem = format!("another build of the node's proxy has not taken over: {problem}");
        tracing::error!(%problem, "the one before goes on");
        self.standing.problem = Some(problem);
    }
}
