//! The node's pods as the watch has told of them, and who waits for one.
//!
//! Owns: what is known, and the news: waking who waits for a pod, and the names of pods that are worth a look.
//! Never does: ask anybody. Called by: the watch, which writes, and the lookup, which reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use veer_common::cni::PodReference;

use super::wire::Seen;
use crate::model::Pod;

/// The node's pods.
#[derive(Debug)]
pub(super) struct Store {
    known: Mutex<Known>,
    /// Counts changes, so that who waits looks again.
    changes: watch::Sender<u64>,
    /// There is something in `worth_a_look`.
    news: Notify,
}

#[derive(Debug, Default)]
struct Known {
    /// By full name.
    pods: BTreeMap<String, Arc<Seen>>,
    /// Pods that have started, or whose manifest has changed, since somebody last asked.
    worth_a_look: BTreeSet<String>,
}

/// What is known of a pod that a runtime names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// This one.
    Pod(Box<Pod>),
    /// One of this name that has another uid, which is this.
    Another(String),
    /// None of this name.
    None,
}

impl Store {
    /// Nothing is known.
    pub(super) fn new() -> Self {
        Self { known: Mutex::default(), changes: watch::Sender::new(0), news: Notify::new() }
    }

    /// All that there is: what is not in here is forgotten.
    pub(super) fn replace(&self, all: impl Iterator<Item = Seen>) {
        self.change(|known| {
            let mut before = std::mem::take(&mut known.pods);
            for seen in all {
                let name = seen.pod.full_name();
                known.insert(before.remove(&name), name, seen);
            }
        });
    }

    /// A pod is there, or has changed.
    pub(super) fn insert(&self, seen: Seen) {
        self.change(|known| {
            let name = seen.pod.full_name();
            let before = known.pods.remove(&name);
            known.insert(before, name, seen);
        });
    }

    /// A pod is gone. One of the same name that has come in its place stays.
    pub(super) fn remove(&self, gone: &Seen) {
        self.change(|known| {
            let name = gone.pod.full_name();
            let is_gone = |known: &Arc<Seen>| known.pod.metadata.uid == gone.pod.metadata.uid;
            if known.pods.get(&name).is_some_and(is_gone) {
                known.pods.remove(&name);
                known.worth_a_look.remove(&name);
            }
        });
    }

    /// Wakes who waits, because there is less to wait for.
    pub(super) fn wake(&self) {
        self.change(|_known| ());
    }

    /// Tells of each change from now on.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The pod that a runtime names, by uid where the runtime has told it.
    pub(super) fn find(&self, reference: &PodReference) -> Found {
        let name = format!("{}/{}", reference.namespace, reference.name);
        let found = self.lock().pods.get(&name).map(Arc::clone);
        found.map_or(Found::None, |seen| same_uid(&seen.pod, reference))
    }

    /// All pods.
    pub(super) fn pods(&self) -> Vec<Pod> {
        self.lock().pods.values().map(|seen| seen.pod.clone()).collect()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.lock().pods.len()
    }

    /// Full names of pods that have started, or whose manifest has changed; waits until there are some.
    pub(super) async fn worth_a_look(&self) -> BTreeSet<String> {
        loop {
            let names = std::mem::take(&mut self.lock().worth_a_look);
            if !names.is_empty() {
                return names;
            }
            self.news.notified().await;
        }
    }

    fn change(&self, by: impl FnOnce(&mut Known)) {
        let mut known = self.lock();
        by(&mut known);
        let has_news = !known.worth_a_look.is_empty();
        drop(known);
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
        if has_news {
            self.news.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn insert(&mut self, before: Option<Arc<Seen>>, name: String, seen: Seen) {
        match before {
            // A status that says nothing new: most of what a watch brings.
            Some(before) if *before == seen => {
                self.pods.insert(name, before);
            }
            before => {
                // Who has not started is told of by the runtime.
                if seen.has_started || before.is_some_and(|before| before.pod != seen.pod) {
                    self.worth_a_look.insert(name.clone());
                }
                self.pods.insert(name, Arc::new(seen));
            }
        }
    }
}

/// Whether a pod is the one that a runtime names.
pub(super) fn same_uid(pod: &Pod, reference: &PodReference) -> Found {
    match (&pod.metadata.uid, &reference.uid) {
        (Some(found), Some(wanted)) if found != wanted => Found::Another(found.clone()),
        _ => Found::Pod(Box::new(pod.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::manifest::{Metadata, Spec};

    fn seen(name: &str, uid: &str, has_started: bool) -> Seen {
        let metadata = Metadata {
            name: name.to_owned(),
            namespace: "shop".to_owned(),
            uid: Some(uid.to_owned()),
            ..Metadata::default()
        };
        Seen { pod: Pod::observed(metadata, Spec::default()), has_started }
    }

    fn with_annotation(mut seen: Seen, value: &str) -> Seen {
        let name = "traffic.sidecar.istio.io/includeInboundPorts".to_owned();
        seen.pod.metadata.annotations.insert(name, value.to_owned());
        seen
    }

    fn reference(name: &str, uid: Option<&str>) -> PodReference {
        PodReference { namespace: "shop".to_owned(), name: name.to_owned(), uid: uid.map(str::to_owned) }
    }

    fn news(store: &Store) -> Vec<String> {
        std::mem::take(&mut store.lock().worth_a_look).into_iter().collect()
    }

    #[test]
    fn a_pod_of_the_same_name_is_told_by_its_uid() {
        let store = Store::new();
        store.insert(seen("cart", "u1", false));
        assert!(matches!(store.find(&reference("cart", Some("u1"))), Found::Pod(_)));
        assert!(matches!(store.find(&reference("cart", None)), Found::Pod(_)));
        assert_eq!(store.find(&reference("cart", Some("u2"))), Found::Another("u1".to_owned()));
        assert_eq!(store.find(&reference("other", None)), Found::None);
    }

    #[test]
    fn the_end_of_a_pod_is_not_that_of_its_successor() {
        let store = Store::new();
        store.insert(seen("db-0", "new", false));
        store.remove(&seen("db-0", "old", true));
        assert_eq!(store.len(), 1);
        store.remove(&seen("db-0", "new", true));
        assert_eq!(store.len(), 0);
    }

    #[test]
    fn a_list_replaces_all_that_was_known() {
        let store = Store::new();
        store.insert(seen("gone", "1", false));
        store.insert(seen("stays", "2", false));
        store.replace([seen("stays", "2", false), seen("new", "3", false)].into_iter());
        let names: Vec<String> = store.pods().iter().map(Pod::full_name).collect();
        assert_eq!(names, ["shop/new", "shop/stays"]);
    }

    #[test]
    fn worth_a_look_is_who_starts_or_changes_and_nobody_else() {
        let store = Store::new();
        store.insert(seen("cart", "1", false));
        assert_eq!(news(&store), [""; 0], "its ADD is to come");
        store.insert(seen("cart", "1", true));
        assert_eq!(news(&store), ["shop/cart"]);
        store.insert(seen("cart", "1", true));
        assert_eq!(news(&store), [""; 0], "a status that says nothing new");
        store.insert(with_annotation(seen("cart", "1", true), "80"));
        assert_eq!(news(&store), ["shop/cart"]);
        store.replace([with_annotation(seen("cart", "1", true), "80"), seen("late", "2", true)].into_iter());
        assert_eq!(news(&store), ["shop/late"]);
        store.insert(seen("bad", "3", false));
        store.insert(with_annotation(seen("bad", "3", false), "80"));
        assert_eq!(news(&store), ["shop/bad"], "it may have been refused for what it said before");
    }

    #[test]
    fn who_waits_is_woken_by_a_change() {
        let store = Store::new();
        let changes = store.subscribe();
        assert!(!changes.has_changed().unwrap());
        store.insert(seen("cart", "1", false));
        assert!(changes.has_changed().unwrap());
    }
}
