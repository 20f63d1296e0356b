//! When what has failed is tried again: later each time, and not all at once. Pure.
//!
//! Never does: wait, or look at a clock. Called by: the reconciler, `proxy::supervise`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// After a first failure.
const FIRST: Duration = Duration::from_secs(1);

/// What has failed, by name.
#[derive(Debug)]
pub struct Backoff {
    most: Duration,
    failed: HashMap<String, Failed>,
}

#[derive(Clone, Copy, Debug)]
struct Failed {
    times: u32,
    due: Instant,
}

impl Backoff {
    /// Nothing waits longer than `most`.
    pub fn new(most: Duration) -> Self {
        Self { most, failed: HashMap::new() }
    }

    /// Whether this is to be tried now.
    pub fn is_due(&self, name: &str, now: Instant) -> bool {
        self.failed.get(name).is_none_or(|failed| failed.due <= now)
    }

    /// It has failed. `jitter` is a random number in 0.0..1.0. Returns how long it waits.
    pub fn failed(&mut self, name: &str, now: Instant, jitter: f64) -> Duration {
        let times = self.failed.get(name).map_or(0, |failed| failed.times);
        let doubled = FIRST.saturating_mul(2_u32.saturating_pow(times.min(16))).min(self.most);
        // Between half and all of it, so that pods that failed together come back apart.
        let wait = doubled.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
        self.failed.insert(name.to_owned(), Failed { times: times.saturating_add(1), due: now + wait });
        wait
    }

    /// It has not failed, or is not wanted any more: what is not in `still` is forgotten.
    pub fn keep_only(&mut self, still: impl Fn(&str) -> bool) {
        self.failed.retain(|name, _| still(name));
    }

    /// When the next one is due, after `now`.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        self.failed.values().map(|failed| failed.due).filter(|due| *due > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_mins(5);

    #[test]
    fn each_failure_waits_longer_up_to_the_most() {
        let (mut backoff, now) = (Backoff::new(MOST), Instant::now());
        let waits: Vec<u64> = (0..12).map(|_| backoff.failed("a", now, 1.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert!(!backoff.is_due("a", now) && backoff.is_due("b", now));
        assert!(backoff.is_due("a", now + MOST));
    }

    #[test]
    fn what_failed_together_comes_back_apart() {
        let (mut backoff, now) = (Backoff::new(MOST), Instant::now());
        assert_eq!(backoff.failed("a", now, 0.0), FIRST / 2);
        assert_eq!(backoff.failed("b", now, 1.0), FIRST);
        assert_eq!(backoff.next(now), Some(now + FIRST / 2));
        assert_eq!(backoff.next(now + FIRST / 2), Some(now + FIRST));
    }

    #[test]
    fn what_is_well_again_begins_anew() {
        let (mut backoff, now) = (Backoff::new(MOST), Instant::now());
        backoff.failed("a", now, 1.0);
        backoff.failed("a", now, 1.0);
        backoff.keep_only(|name| name != "a");
        assert!(backoff.is_due("a", now));
        assert_eq!(backoff.failed("a", now, 1.0), FIRST);
    }
}
