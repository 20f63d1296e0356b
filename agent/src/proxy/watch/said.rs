//! What is said of proxies, when, and how loudly. Pure.
//!
//! Owns: what was said last of each. A change is said at once, unless the last one was said just before: a proxy that comes and
//! goes has one line in [`SOON`], about what it is then. That it is dead is no warning before [`TOLD_AFTER`]: each pod that
//! is deleted ends so, and kubelet has started a proxy again by then, mostly.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use veer_common::maps::NetnsCookie;

use crate::proxy::state::ProxyState;

/// How long a proxy may be dead, in seconds, before its pod is told.
pub(super) const TOLD_AFTER: u64 = 30;
/// How long a line about a proxy is the last one, in seconds.
const SOON: u64 = 5;

/// What is to be said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Word {
    /// How it stands, of one that nothing was said of yet: for who looks closely.
    First,
    /// How it stands now, after so many changes; wrong, or not known to be.
    Changed { is_wrong: bool, changes: u32 },
    /// It has been dead for long: to the pod, too.
    Dead,
    /// It is back, after that.
    Back,
}

/// What was said of a pod's proxy.
#[derive(Clone, Copy, Debug)]
struct Last {
    state: ProxyState,
    since: u64,
    /// The state that was said.
    said: ProxyState,
    /// When, if that was a change.
    said_at: Option<u64>,
    /// Changes that nothing was said of.
    changes: u32,
    /// Whether the pod knows that it is dead.
    is_told: bool,
}

/// What was said of all.
#[derive(Debug, Default)]
pub(super) struct Said(BTreeMap<NetnsCookie, Last>);

impl Said {
    /// Forgets those that have gone.
    pub(super) fn keep_only(&mut self, pods: &BTreeSet<NetnsCookie>) {
        self.0.retain(|cookie, _| pods.contains(cookie));
    }

    /// A pod's proxy stands so; what is to be said of that. Moments are seconds since the epoch.
    pub(super) fn hear(&mut self, pod: NetnsCookie, state: ProxyState, since: u64, now: u64) -> Vec<Word> {
        let mut words = Vec::new();
        let fresh = Last { state, since, said: state, said_at: None, changes: 0, is_told: false };
        let is_first = !self.0.contains_key(&pod);
        let last = self.0.entry(pod).or_insert(fresh);
        if is_first {
            words.push(Word::First);
        }
        last.changes = last.changes.saturating_add(u32::from(last.state != state));
        (last.state, last.since) = (state, since);
        if last.changes > 0 && last.may_be_said(now) {
            if last.said != state {
                let is_wrong = state.is_wrong() && state != ProxyState::Dead;
                words.push(Word::Changed { is_wrong, changes: last.changes });
                (last.said, last.said_at) = (state, Some(now));
            }
            last.changes = 0;
        }
        if state == ProxyState::Dead && !last.is_told && now.saturating_sub(since) >= TOLD_AFTER {
            last.is_told = true;
            words.push(Word::Dead);
        } else if state == ProxyState::Ready && last.is_told {
            last.is_told = false;
            words.push(Word::Back);
        }
        words
    }

    /// The first proxies that something will be to be said of though nothing changes, those of one second together, and in how
    /// long.
    pub(super) fn next(&self, now: u64) -> (BTreeSet<NetnsCookie>, Option<Duration>) {
        let due = self.0.iter().filter_map(|(pod, last)| Some((last.due()?, *pod)));
        let due: BTreeSet<(u64, NetnsCookie)> = due.collect();
        let first = due.first().map(|(at, _)| *at);
        let pods = due.iter().filter(|(at, _)| Some(*at) == first).map(|(_, pod)| *pod).collect();
        (pods, first.map(|at| Duration::from_secs(at.saturating_sub(now).max(1))))
    }
}

impl Last {
    fn may_be_said(&self, now: u64) -> bool {
        // A clock that was set back keeps nobody waiting.
        self.said_at.is_none_or(|at| now < at || now - at >= SOON)
    }

    fn due(&self) -> Option<u64> {
        let is_untold = self.state == ProxyState::Dead && !self.is_told;
        let told = is_untold.then(|| self.since.saturating_add(TOLD_AFTER));
        let is_unsaid = self.changes > 0;
        let said = self.said_at.filter(|_| is_unsaid).map(|at| at.saturating_add(SOON));
        told.into_iter().chain(said).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: NetnsCookie = 7;
    const DIED: Word = Word::Changed { is_wrong: false, changes: 1 };

    fn pods(pods: &[NetnsCookie]) -> BTreeSet<NetnsCookie> {
        pods.iter().copied().collect()
    }

    #[test]
    fn one_that_dies_is_warned_of_after_its_time_and_not_before() {
        let mut said = Said::default();
        assert_eq!(said.hear(POD, ProxyState::Ready, 100, 100), [Word::First]);
        assert_eq!(said.next(100), (pods(&[]), None));
        assert_eq!(said.hear(POD, ProxyState::Dead, 200, 201), [DIED]);
        assert_eq!(said.next(201), (pods(&[POD]), Some(Duration::from_secs(29))));
        assert_eq!(said.hear(POD, ProxyState::Dead, 200, 229), []);
        assert_eq!(said.hear(POD, ProxyState::Dead, 200, 230), [Word::Dead]);
        // Once.
        assert_eq!(said.hear(POD, ProxyState::Dead, 200, 290), []);
        assert_eq!(said.next(290), (pods(&[]), None));
        let back = Word::Changed { is_wrong: false, changes: 1 };
        assert_eq!(said.hear(POD, ProxyState::Ready, 300, 300), [back, Word::Back]);
    }

    #[test]
    fn a_pod_that_is_deleted_is_never_warned_of() {
        let mut said = Said::default();
        said.hear(POD, ProxyState::Ready, 100, 100);
        assert_eq!(said.hear(POD, ProxyState::Dead, 200, 200), [DIED]);
        said.keep_only(&pods(&[8]));
        assert_eq!(said.next(200), (pods(&[]), None));
        // Nor is one that starts in its netns' place by what was before.
        assert_eq!(said.hear(POD, ProxyState::Waiting, 229, 231), [Word::First]);
    }

    #[test]
    fn one_that_is_missing_or_refused_is_wrong_at_once() {
        for state in [ProxyState::Missing, ProxyState::Refused] {
            let mut said = Said::default();
            said.hear(POD, ProxyState::Waiting, 100, 100);
            let wrong = Word::Changed { is_wrong: true, changes: 1 };
            assert_eq!(said.hear(POD, state, 130, 130), [wrong]);
        }
    }

    #[test]
    fn one_that_comes_and_goes_has_a_line_in_five_seconds_and_the_last_state_is_said() {
        let mut said = Said::default();
        said.hear(POD, ProxyState::Ready, 100, 100);
        let mut lines = 0;
        for quarter in 0..400_u64 {
            let now = 100 + quarter / 4;
            let state = if quarter % 2 == 0 { ProxyState::Dead } else { ProxyState::Ready };
            lines += said.hear(POD, state, now, now).len();
        }
        assert!((2..=21).contains(&lines), "{lines}");
    }

    #[test]
    fn what_was_held_back_is_said_as_it_is_by_then() {
        let mut said = Said::default();
        said.hear(POD, ProxyState::Ready, 100, 100);
        assert_eq!(said.hear(POD, ProxyState::Dead, 200, 200), [DIED]);
        for (state, now) in [(ProxyState::Ready, 201), (ProxyState::Dead, 202), (ProxyState::Ready, 203)] {
            assert_eq!(said.hear(POD, state, now, now), []);
        }
        assert_eq!(said.next(203), (pods(&[POD]), Some(Duration::from_secs(2))));
        let back = Word::Changed { is_wrong: false, changes: 3 };
        assert_eq!(said.hear(POD, ProxyState::Ready, 203, 205), [back]);
        assert_eq!(said.next(205), (pods(&[]), None));
    }

    #[test]
    fn what_comes_first_is_looked_at_first_and_those_of_a_second_together() {
        let mut said = Said::default();
        for (pod, since) in [(1, 210), (2, 200), (3, 200)] {
            said.hear(pod, ProxyState::Dead, since, since);
        }
        assert_eq!(said.next(215), (pods(&[2, 3]), Some(Duration::from_secs(15))));
        // A time that has passed is not waited for without end, nor at once without end.
        assert_eq!(said.next(900).1, Some(Duration::from_secs(1)));
    }
}
