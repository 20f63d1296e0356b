//! Visitors who ask for page after page while something happens to the node.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use veer_tests::bookinfo::{self, Answer, Service};
use veer_tests::kube::pilot_agent::PASSTHROUGH;
use veer_tests::wait;

use super::{Bookinfo, PASSED_OUT, marked};
use crate::stage::Stage;

const VISITORS: usize = 2;
/// From one page of a visitor to the next: access logs are read, too.
const PACE: Duration = Duration::from_millis(50);

/// A stream that goes on until it is stopped.
pub(super) struct Stream {
    seen: Arc<Seen>,
    visitors: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    pages: AtomicU64,
    stop: AtomicBool,
    lost: Mutex<Vec<String>>,
}

impl Stream {
    pub(super) fn start(stage: &Stage, bookinfo: &Bookinfo) -> Result<Self> {
        let seen = Arc::new(Seen::default());
        let entrance = bookinfo.entrance;
        let visit = |_| {
            let seen = Arc::clone(&seen);
            stage.node.outside().spawn(move || {
                while !seen.stop.load(Ordering::SeqCst) {
                    let started = Instant::now();
                    let page = bookinfo::ask(Service::Productpage, entrance, &marked("stream"));
                    match page.and_then(|page| is_of_the_mesh(&page)) {
                        Ok(()) => drop(seen.pages.fetch_add(1, Ordering::SeqCst)),
                        Err(error) => drop(seen.lost.lock().map(|mut lost| lost.push(format!("{error:#}")))),
                    }
                    wait::until("the next page", wait::LIMIT, || started.elapsed() > PACE).ok();
                }
            })
        };
        let visitors = (0..VISITORS).map(visit).collect::<Result<_>>()?;
        Ok(Self { seen, visitors })
    }

    /// Waits until so many more pages have come.
    ///
    /// # Errors
    /// Where a page was lost meanwhile, or came past a proxy.
    pub(super) fn wait_for(&self, more: u64) -> Result<()> {
        let goal = self.seen.pages.load(Ordering::SeqCst) + more;
        let limit = Duration::from_mins(1);
        let pages = || self.seen.pages.load(Ordering::SeqCst);
        wait::until("further pages", limit, || pages() >= goal || self.lost().is_err())?;
        self.lost()
    }

    fn lost(&self) -> Result<()> {
        let lost = self.seen.lost.lock().map_err(|_panicked| anyhow!("a visitor panicked"))?;
        ensure!(lost.is_empty(), "{} pages were lost: {:?}", lost.len(), lost.first());
        Ok(())
    }

    /// Ends it.
    ///
    /// # Errors
    /// Where a page was lost, or came past a proxy.
    pub(super) fn stop(mut self) -> Result<u64> {
        self.seen.stop.store(true, Ordering::SeqCst);
        for visitor in self.visitors.drain(..) {
            visitor.join().map_err(|_panicked| anyhow!("a visitor panicked"))?;
        }
        self.lost()?;
        Ok(self.seen.pages.load(Ordering::SeqCst))
    }
}

/// A page that came past the proxies is lost, too: each service was asked by somebody's, through its own.
fn is_of_the_mesh(answer: &Answer) -> Result<()> {
    let is_own = answer.peer.ip() == IpAddr::V4(PASSTHROUGH);
    ensure!(is_own && answer.headers.contains_key(PASSED_OUT), "not through two proxies: {answer:?}");
    answer.parts.iter().try_for_each(is_of_the_mesh)
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::SeqCst);
    }
}
