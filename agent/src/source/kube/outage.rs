//! How the watch stands: what it is told of successes and failures, and what follows. Pure.
//!
//! Owns: since when the source is current or is not, why not, and how long is waited before the next attempt. Never
//! does: wait, or look at a clock. Called by: the watch.

use std::time::{Duration, SystemTime};

/// Wait after a first failure.
const FIRST: Duration = Duration::from_millis(250);
/// Longest wait: an API server that is back is noticed within it.
const MOST: Duration = Duration::from_secs(15);

/// How the watch stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Standing {
    state: State,
    since: SystemTime,
    /// Failures in a row.
    failures: u32,
}

/// Whether what is known is current.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Nothing has been heard yet; why not, after a first failure.
    Starting(Option<String>),
    /// What changes is heard of.
    Synced,
    /// It was heard of, and is not any more: why not.
    Degraded(String),
}

/// What the log is told, once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// It is current; how long it was not.
    Synced(Duration),
    /// It is not current any more, or what keeps it from being so is something else.
    Failing(String),
}

impl Standing {
    /// Before the first attempt.
    pub(super) const fn new(now: SystemTime) -> Self {
        Self { state: State::Starting(None), since: now, failures: 0 }
    }

    /// Whether what is known is current.
    pub(super) const fn state(&self) -> &State {
        &self.state
    }

    /// Of two watches the one that is further from being current; of two that stand alike, the later.
    pub(super) fn worse(self, other: Self) -> Self {
        let rank = |standing: &Self| match standing.state {
            State::Starting(_) => 0,
            State::Degraded(_) => 1,
            State::Synced => 2,
        };
        let key = |standing: &Self| (rank(standing), std::cmp::Reverse(standing.since));
        if key(&other) < key(&self) { other } else { self }
    }

    /// Since when.
    pub(super) const fn since(&self) -> SystemTime {
        self.since
    }

    /// Whether an answer may come from the watch soon: it stands, or is being made for the first time.
    pub(super) const fn is_promising(&self) -> bool {
        matches!(self.state, State::Synced | State::Starting(None))
    }

    /// The server watches for us.
    pub(super) fn succeeded(&mut self, now: SystemTime) -> Option<Change> {
        self.failures = 0;
        if self.state == State::Synced {
            return None;
        }
        let before = std::mem::replace(&mut self.since, now);
        self.state = State::Synced;
        Some(Change::Synced(now.duration_since(before).unwrap_or_default()))
    }

    /// An attempt has failed, or the watch has broken.
    pub(super) fn failed(&mut self, now: SystemTime, problem: String) -> Option<Change> {
        self.failures = self.failures.saturating_add(1);
        let (next, is_news) = match &self.state {
            State::Synced => {
                self.since = now;
                (State::Degraded(problem.clone()), true)
            }
            State::Starting(before) => {
                (State::Starting(Some(problem.clone())), before.as_ref() != Some(&problem))
            }
            State::Degraded(before) => (State::Degraded(problem.clone()), *before != problem),
        };
        self.state = next;
        is_news.then_some(Change::Failing(problem))
    }

    /// How long to wait now. `jitter` is a random number in 0.0..1.0: the agents of all nodes lose the API server at the
    /// same moment, and should not come back at the same moment.
    pub(super) fn delay(&self, jitter: f64) -> Duration {
        let Some(doublings) = self.failures.checked_sub(1) else { return Duration::ZERO };
        let longest = FIRST.saturating_mul(2_u32.saturating_pow(doublings.min(16))).min(MOST);
        longest.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn an_outage_has_a_beginning_a_reason_and_an_end() {
        let mut standing = Standing::new(at(0));
        assert!(standing.is_promising());
        assert_eq!(standing.succeeded(at(1)), Some(Change::Synced(Duration::from_secs(1))));
        assert_eq!(standing.succeeded(at(2)), None);
        assert_eq!((standing.state(), standing.since()), (&State::Synced, at(1)));

        let refused = || "connection refused".to_owned();
        assert_eq!(standing.failed(at(10), refused()), Some(Change::Failing(refused())));
        assert_eq!(standing.failed(at(11), refused()), None, "said once");
        let other = "unauthorized".to_owned();
        assert_eq!(standing.failed(at(12), other.clone()), Some(Change::Failing(other.clone())));
        assert_eq!((standing.state(), standing.since()), (&State::Degraded(other), at(10)));
        assert!(!standing.is_promising());

        assert_eq!(standing.succeeded(at(70)), Some(Change::Synced(Duration::from_mins(1))));
        assert_eq!(standing.since(), at(70));
    }

    #[test]
    fn what_has_never_been_current_is_not_called_degraded() {
        let mut standing = Standing::new(at(0));
        assert!(standing.failed(at(3), "no route".to_owned()).is_some());
        assert_eq!(standing.state(), &State::Starting(Some("no route".to_owned())));
        assert_eq!(standing.since(), at(0));
        assert!(!standing.is_promising());
    }

    #[test]
    fn waits_grow_to_the_most_and_begin_anew_after_a_success() {
        let mut standing = Standing::new(at(0));
        assert_eq!(standing.delay(1.0), Duration::ZERO);
        let mut waits = Vec::new();
        for _ in 0..8 {
            standing.failed(at(0), "x".to_owned());
            waits.push(standing.delay(1.0).as_millis());
        }
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000]);
        assert_eq!(standing.delay(0.0), MOST / 2);
        standing.succeeded(at(1));
        standing.failed(at(2), "x".to_owned());
        assert_eq!(standing.delay(1.0), FIRST);
    }

    #[test]
    fn two_watches_stand_as_the_worse_of_them() {
        let starting = Standing::new(at(9));
        let mut synced = Standing::new(at(0));
        synced.succeeded(at(1));
        let mut later = Standing::new(at(0));
        later.succeeded(at(5));
        let mut degraded = synced.clone();
        degraded.failed(at(2), "refused".to_owned());
        for (one, other, worse) in [
            (&synced, &starting, &starting),
            (&degraded, &starting, &starting),
            (&synced, &degraded, &degraded),
            (&synced, &later, &later),
        ] {
            assert_eq!(&one.clone().worse(other.clone()), worse);
            assert_eq!(&other.clone().worse(one.clone()), worse);
        }
    }

    #[test]
    fn a_clock_that_is_set_back_ends_nothing() {
        let mut standing = Standing::new(at(100));
        assert_eq!(standing.succeeded(at(50)), Some(Change::Synced(Duration::ZERO)));
    }
}
