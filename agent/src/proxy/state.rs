//! How a pod's proxy stands, and since when. Pure.
//!
//! Owns: the states, and which of them a sidecar is in, by what was seen of it. Never does: look, or read a clock.
//! Called by: the drivers, and the commands, which can tell without an agent what the maps hold.

use serde::{Deserialize, Serialize};

/// How long a sidecar may take to listen, in seconds, before it is missing: an image to pull, or other containers that
/// start first.
pub const PATIENCE: u64 = 30;

/// Whether a pod's proxy takes connections.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyState {
    /// It has not taken any yet, and it is early.
    Waiting,
    /// It does.
    Ready,
    /// It never has.
    Missing,
    /// It takes no new ones, or says that it will not for long, and lives.
    Draining,
    /// It did, and does not any more.
    Dead,
    /// It lives, and refuses to serve the pod.
    Refused,
}

/// That, since when, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProxyHealth {
    /// How it stands.
    pub state: ProxyState,
    /// Since when, in seconds since the epoch.
    pub since: u64,
    /// What is to be said besides, as the proxy's own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words: Option<String>,
}

/// What was seen of a sidecar. Moments are seconds since the epoch.
#[derive(Clone, Copy, Debug)]
pub struct Sighting<'a> {
    /// When its pod was enrolled.
    pub enrolled_at: u64,
    /// Whether it listens on both of its ports.
    pub listens: bool,
    /// When one of its sockets began to, last; `None` if that was before the enrolment, or never.
    pub began: Option<u64>,
    /// When one of them ceased to, last.
    pub ceased: Option<u64>,
    /// Whether something else of it listens still, if somebody looked.
    pub lives: Option<bool>,
    /// What its readiness says.
    pub readiness: Readiness,
    /// How it stood before, if that is known.
    pub before: Option<&'a ProxyHealth>,
    /// Now.
    pub now: u64,
}

/// What a sidecar says of its readiness.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Readiness {
    /// Nobody has asked: what it said last holds.
    NotAsked,
    /// Nothing: it has no port for that, or does not answer.
    Silent,
    /// This, as a status of HTTP.
    Status(u16),
}

impl ProxyState {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Waiting, Self::Ready, Self::Missing, Self::Draining, Self::Dead, Self::Refused];

    /// The name that commands and metrics show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Ready => "ready",
            Self::Missing => "missing",
            Self::Draining => "draining",
            Self::Dead => "dead",
            Self::Refused => "refused",
        }
    }

    /// Whether the pod's connections are refused, and nothing suggests that this ends by itself.
    pub const fn is_wrong(self) -> bool {
        matches!(self, Self::Missing | Self::Dead | Self::Refused)
    }

    /// Whether it has taken connections once.
    pub const fn has_been_ready(self) -> bool {
        matches!(self, Self::Ready | Self::Draining | Self::Dead)
    }
}

impl ProxyHealth {
    /// In a state since a moment.
    pub const fn new(state: ProxyState, since: u64) -> Self {
        Self { state, since, words: None }
    }

    /// How a proxy stands by its listeners: a sidecar, or any that says nothing of itself.
    pub fn of_listeners(seen: &Sighting<'_>) -> Self {
        let Sighting { enrolled_at, began, ceased, now, .. } = *seen;
        let kept = |state| seen.before.filter(|before| before.state == state).map(|before| before.since);
        if seen.listens {
            let unready = |before: &&Self| before.state == ProxyState::Draining && before.words.is_some();
            match (seen.readiness, seen.before.filter(unready)) {
                (Readiness::Status(status @ 400..), _) => {
                    let words = Some(format!("its readiness says {status}"));
                    let since = kept(ProxyState::Draining).unwrap_or(now);
                    return Self { state: ProxyState::Draining, since, words };
                }
                (Readiness::NotAsked, Some(before)) => return before.clone(),
                (Readiness::NotAsked | Readiness::Silent | Readiness::Status(_), _) => {}
            }
            let since = kept(ProxyState::Ready).or(began).unwrap_or(enrolled_at);
            return Self::new(ProxyState::Ready, since);
        }
        let was_ready = seen.before.is_some_and(|before| before.state.has_been_ready());
        if ceased.is_none() && !was_ready {
            let is_early = now.saturating_sub(enrolled_at) < PATIENCE;
            let state = if is_early { ProxyState::Waiting } else { ProxyState::Missing };
            return Self::new(state, enrolled_at);
        }
        let state = if seen.lives == Some(true) { ProxyState::Draining } else { ProxyState::Dead };
        // What began after it has not been ready yet: it is one that starts anew.
        let since = kept(state).or(ceased).unwrap_or(now);
        Self::new(state, since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENROLLED: u64 = 1000;

    fn seen(now: u64) -> Sighting<'static> {
        Sighting {
            enrolled_at: ENROLLED,
            listens: false,
            began: None,
            ceased: None,
            lives: None,
            readiness: Readiness::NotAsked,
            before: None,
            now,
        }
    }

    fn told(seen: &Sighting<'_>) -> (ProxyState, u64) {
        let health = ProxyHealth::of_listeners(seen);
        (health.state, health.since)
    }

    #[test]
    fn one_that_never_listens_is_waited_for_and_then_missing() {
        assert_eq!(told(&seen(ENROLLED + PATIENCE - 1)), (ProxyState::Waiting, ENROLLED));
        assert_eq!(told(&seen(ENROLLED + PATIENCE)), (ProxyState::Missing, ENROLLED));
        // One port of two is not enough, whenever that was.
        let half = Sighting { began: Some(1001), ..seen(2000) };
        assert_eq!(told(&half), (ProxyState::Missing, ENROLLED));
    }

    #[test]
    fn one_that_listened_is_dead_since_it_ceased_and_ready_again_since_it_began() {
        let ready = Sighting { listens: true, began: Some(1010), ..seen(1020) };
        assert_eq!(told(&ready), (ProxyState::Ready, 1010));
        let dead = Sighting { began: Some(1010), ceased: Some(1500), lives: Some(false), ..seen(1600) };
        assert_eq!(told(&dead), (ProxyState::Dead, 1500));
        let before = ProxyHealth::of_listeners(&dead);
        // The next one has the first of its ports.
        let starts = Sighting { began: Some(1650), before: Some(&before), ..dead };
        assert_eq!(told(&starts), (ProxyState::Dead, 1500));
        let again = Sighting { listens: true, began: Some(1650), before: Some(&before), ..dead };
        assert_eq!(told(&again), (ProxyState::Ready, 1650));
    }

    #[test]
    fn a_further_listener_does_not_make_it_ready_anew() {
        let before = ProxyHealth::new(ProxyState::Ready, 1010);
        let now = Sighting { listens: true, began: Some(1400), before: Some(&before), ..seen(1500) };
        assert_eq!(told(&now), (ProxyState::Ready, 1010));
    }

    #[test]
    fn one_that_lives_without_listeners_or_says_that_it_is_not_ready_drains() {
        let drained = Sighting { began: Some(1010), ceased: Some(1500), lives: Some(true), ..seen(1600) };
        assert_eq!(told(&drained), (ProxyState::Draining, 1500));
        let unready =
            Sighting { listens: true, began: Some(1010), readiness: Readiness::Status(503), ..seen(1600) };
        let health = ProxyHealth::of_listeners(&unready);
        assert_eq!((health.state, health.since), (ProxyState::Draining, 1600));
        assert_eq!(health.words.as_deref(), Some("its readiness says 503"));
        let later = Sighting { before: Some(&health), now: 1700, readiness: Readiness::NotAsked, ..unready };
        assert_eq!(told(&later), (ProxyState::Draining, 1600));
        let ok = Sighting { readiness: Readiness::Status(200), before: Some(&health), now: 1700, ..unready };
        assert_eq!(told(&ok), (ProxyState::Ready, 1010));
    }

    #[test]
    fn one_whose_listeners_no_program_saw_go_is_dead_since_somebody_looked() {
        let before = ProxyHealth::new(ProxyState::Ready, ENROLLED);
        let gone = Sighting { before: Some(&before), lives: Some(false), ..seen(1700) };
        assert_eq!(told(&gone), (ProxyState::Dead, 1700));
        let before = ProxyHealth::of_listeners(&gone);
        assert_eq!(told(&Sighting { before: Some(&before), now: 1800, ..gone }), (ProxyState::Dead, 1700));
    }
}
