//! The steady load: new connections and open streams, through real Envoys, as long as the suite runs.
//!
//! Owns: the threads that ask, the count of what they asked, and the list of what got lost. A request is lost
//! if it fails, and as much if it arrives without having passed the sidecars that it should have. Never does:
//! stop at a loss, or know of faults.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockWriteGuard};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use anyhow::Result;
use veer_tests::wait;

use super::request::Requests;
use super::stream::Streams;

/// A worker begins no two turns within this time: all of them together leave a CPU for what is tested.
const PACE: Duration = Duration::from_millis(10);

/// What all workers share.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Held for reading during a turn.
    gate: RwLock<()>,
    stop: AtomicBool,
    requests: AtomicU64,
    lost: Mutex<Vec<String>>,
}

/// How far the load has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    requests: u64,
    lost: usize,
}

/// What happened since a mark.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Since {
    /// Requests that were asked, on new connections and on open streams.
    pub(crate) requests: u64,
    /// What became of those that were lost.
    pub(crate) lost: Vec<String>,
}

/// Something that asks over and over.
pub(crate) trait Worker: Send {
    /// Asks once or a few times; how often, and what was lost.
    fn turn(&mut self) -> (u64, Vec<String>);
}

/// Ends the workers, after a panic too: the scope would wait for ever.
#[derive(Debug)]
pub(crate) struct Stop<'a>(&'a Load);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

impl Load {
    /// Starts the workers; they end with the guard.
    pub(crate) fn start<'scope, 'env>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        requests: Vec<Requests<'env>>,
        streams: Streams<'env>,
    ) -> Stop<'env> {
        for worker in requests {
            scope.spawn(move || self.work(worker));
        }
        scope.spawn(move || self.work(streams));
        Stop(self)
    }

    /// Now.
    pub(crate) fn mark(&self) -> Mark {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner).len();
        Mark { requests: self.requests.load(Ordering::SeqCst), lost }
    }

    /// From then until now.
    pub(crate) fn since(&self, mark: Mark) -> Since {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = lost.get(mark.lost..).unwrap_or_default().to_vec();
        Since { requests: self.requests.load(Ordering::SeqCst) - mark.requests, lost }
    }

    /// Waits until so many more requests were asked.
    pub(crate) fn wait_for(&self, more: u64) -> Result<()> {
        let goal = self.mark().requests + more;
        wait::until("the load to go on", wait::LIMIT, || self.mark().requests >= goal)
    }

    /// Lets the turns that are under way end, and begins no other until the guard goes.
    pub(crate) fn pause(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, mut worker: impl Worker) {
        let mut next = Instant::now();
        while !self.stop.load(Ordering::SeqCst) {
            {
                let _open = self.gate.read().unwrap_or_else(PoisonError::into_inner);
                let (requests, lost) = worker.turn();
                self.requests.fetch_add(requests, Ordering::SeqCst);
                self.lost.lock().unwrap_or_else(PoisonError::into_inner).extend(lost);
            }
            next = (next + PACE).max(Instant::now());
            if wait::until("the next turn", wait::LIMIT, || Instant::now() >= next).is_err() {
                thread::yield_now();
            }
        }
    }
}
