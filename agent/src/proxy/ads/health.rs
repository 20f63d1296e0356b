//! Since when the node's Envoy serves a pod, or does not.
//!
//! Owns: what each pod's state was before, which [`Delta`] does not keep, and telling that one has changed. Called by: the
//! task.

use std::collections::HashMap;

use super::super::delta::{Delta, Owner, State};
use super::super::state::{ProxyHealth, ProxyState};
use super::super::watch::ProxyNews;
use crate::wall_clock;

/// How each pod stands.
#[derive(Debug)]
pub(super) struct Healths {
    of_pods: HashMap<Owner, ProxyHealth>,
    news: ProxyNews,
}

impl Healths {
    /// Of no pod yet; who waits for `news` is told of changes.
    pub(super) fn new(news: ProxyNews) -> Self {
        Self { of_pods: HashMap::new(), news }
    }

    /// One that nobody has asked for is waited for.
    pub(super) fn of(&self, owner: &Owner) -> ProxyHealth {
        let health = self.of_pods.get(owner).cloned();
        health.unwrap_or_else(|| ProxyHealth::new(ProxyState::Waiting, wall_clock::seconds()))
    }

    /// Looks at a pod again.
    pub(super) fn note(&mut self, delta: &Delta, owner: &Owner) {
        let before = self.of_pods.get(owner);
        let was_ready = before.is_some_and(|before| before.state.has_been_ready());
        let (state, words) = match delta.state(owner) {
            State::Served => (ProxyState::Ready, None),
            State::Refused(words) => (ProxyState::Refused, Some(words)),
            State::NoProxy if was_ready => (ProxyState::Dead, None),
            State::NoProxy => (ProxyState::Missing, None),
            // It is told something new of a pod that it serves, or comes back and has not got to this one yet.
            State::Pending => (before.filter(|_| was_ready).map_or(ProxyState::Waiting, |it| it.state), None),
        };
        let words = words.or_else(|| (state == ProxyState::Missing).then(|| "not connected".to_owned()));
        let kept = before.filter(|before| before.state == state).map(|before| before.since);
        let since = kept.unwrap_or_else(wall_clock::seconds);
        if kept.is_none()
            && let Some(cookie) = owner.rsplit_once('|').and_then(|(_, cookie)| cookie.parse().ok())
        {
            self.news.of_pod(cookie);
        }
        self.of_pods.insert(owner.clone(), ProxyHealth { state, since, words });
    }

    /// Looks at all pods again.
    pub(super) fn note_all(&mut self, delta: &Delta) {
        for owner in delta.owners() {
            self.note(delta, owner);
        }
    }

    /// A pod is not to be served any more.
    pub(super) fn forget(&mut self, owner: &Owner) {
        self.of_pods.remove(owner);
    }
}
