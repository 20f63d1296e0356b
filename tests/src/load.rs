//! Work that goes on in threads while something happens to the node.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Result, bail};

use crate::wait;

/// How far the work has come, for whoever does something to the node meanwhile.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    stop: AtomicBool,
    failures: Mutex<Vec<String>>,
}

impl Progress {
    /// Waits until so much more was done than at the time of the call.
    pub fn wait_for(&self, more: u64) -> Result<()> {
        let goal = self.done() + more;
        wait::until("the load to go on", wait::LIMIT, || self.done() >= goal || self.failed())?;
        if self.failed() {
            bail!("the load failed");
        }
        Ok(())
    }

    /// How much was done so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    fn failed(&self) -> bool {
        self.failures.lock().is_ok_and(|failures| !failures.is_empty())
    }

    fn fail(&self, error: &anyhow::Error) {
        if let Ok(mut failures) = self.failures.lock() {
            failures.push(format!("{error:#}"));
        }
    }
}

/// Ends the work, after a panic too: the threads would wait for ever, and the test with them.
struct Stop<'a>(&'a Progress);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

/// Does `work` over and over in a thread for each of `workers` while `meanwhile` runs; a thread ends at its
/// first failure. `work` is told its worker and how often that one has worked before. Gives back how much
/// was done in all.
///
/// # Errors
/// All failures of the work.
pub fn during<W: Sync>(
    workers: &[W],
    work: impl Fn(&W, u64) -> Result<()> + Sync,
    meanwhile: impl FnOnce(&Progress),
) -> Result<u64> {
    let progress = Progress::default();
    thread::scope(|scope| {
        for worker in workers {
            let (progress, work) = (&progress, &work);
            scope.spawn(move || {
                for turn in 0.. {
                    if progress.stop.load(Ordering::SeqCst) {
                        return;
                    }
                    if let Err(error) = work(worker, turn) {
                        return progress.fail(&error);
                    }
                    progress.done.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let _stop = Stop(&progress);
        meanwhile(&progress);
    });
    match progress.failures.lock() {
        Ok(failures) if failures.is_empty() => Ok(progress.done()),
        Ok(failures) => bail!("{} of the load's threads failed: {}", failures.len(), failures.join("; ")),
        Err(_panicked) => bail!("a thread of the load panicked"),
    }
}
