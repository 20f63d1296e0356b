//! The node's pods as the watches have told of them, each with what its namespace asks for, and who waits for one.
//!
//! Owns: what is known, and the news: waking who waits for a pod, and the names of pods that are worth a look. Of
//! namespaces it keeps the names, too: of a pod whose namespace it has not heard of nobody can tell what is to become.
//! Never does: ask anybody. Called by: the watches, which write, and the lookup, which reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use veer_common::cni::PodReference;

use super::wire::Seen;
use crate::model::{NamespaceLabels, Pod};
use crate::source::Namespaces;

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
    /// By full name. What a pod's namespace asks for is not in here.
    pods: BTreeMap<String, Arc<Seen>>,
    /// By name; `None` where they do not count.
    namespaces: Option<Labels>,
    /// Pods that have started, or whose manifest has changed, since somebody last asked.
    worth_a_look: BTreeSet<String>,
}

/// What all namespaces ask for, by name.
type Labels = BTreeMap<Box<str>, NamespaceLabels>;

/// What is known of a pod that a runtime names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// This one, with what its namespace asks for.
    Pod(Box<Pod>),
    /// This one, but not its namespace, on which it depends.
    WithoutNamespace(Box<Pod>),
    /// One of this name that has another uid, which is this.
    Another(String),
    /// None of this name.
    None,
}

impl Store {
    /// Nothing is known.
    pub(super) fn new(namespaces: Namespaces) -> Self {
        let namespaces = (namespaces == Namespaces::Read).then(Labels::new);
        let known = Mutex::new(Known { namespaces, ..Known::default() });
        Self { known, changes: watch::Sender::new(0), news: Notify::new() }
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

    /// All namespaces that there are.
    pub(super) fn replace_namespaces(&self, all: impl Iterator<Item = (String, NamespaceLabels)>) {
        self.change(|known| {
            let all: Labels = all.map(|(name, labels)| (name.into_boxed_str(), labels)).collect();
            let before = known.namespaces.take().unwrap_or_default();
            known.look_again(|name| (before.get(name).copied(), all.get(name).copied()));
            known.namespaces = Some(all);
        });
    }

    /// A namespace is there, or has changed.
    pub(super) fn insert_namespace(&self, name: &str, labels: NamespaceLabels) {
        self.change(|known| {
            let before = known.namespaces.get_or_insert_default().insert(name.into(), labels);
            let of = |other: &str| if other == name { (before, Some(labels)) } else { (None, None) };
            known.look_again(of);
        });
    }

    /// A namespace is gone; its pods go before it.
    pub(super) fn remove_namespace(&self, name: &str) {
        self.change(|known| {
            known.namespaces.get_or_insert_default().remove(name);
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
        let known = self.lock();
        let found = known.pods.get(&name).map_or(Found::None, |seen| same_uid(seen.pod.clone(), reference));
        known.in_namespace(found)
    }

    /// A pod that was found elsewhere, with what its namespace asks for.
    pub(super) fn in_namespace(&self, found: Found) -> Found {
        self.lock().in_namespace(found)
    }

    /// All pods but those of which it cannot be told what their namespaces ask for.
    pub(super) fn pods(&self) -> Vec<Pod> {
        let known = self.lock();
        let found = known.pods.values().map(|seen| Found::Pod(Box::new(seen.pod.clone())));
        let complete = found.filter_map(|found| match known.in_namespace(found) {
            Found::Pod(pod) => Some(*pod),
            Found::WithoutNamespace(_) | Found::Another(_) | Found::None => None,
        });
        complete.collect()
    }

    /// How many namespaces there are, where they count.
    pub(super) fn namespaces(&self) -> Option<usize> {
        self.lock().namespaces.as_ref().map(Labels::len)
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
    /// A pod with what its namespace asks for.
    fn in_namespace(&self, found: Found) -> Found {
        let Some(namespaces) = &self.namespaces else { return found };
        let Found::Pod(mut pod) = found else { return found };
        match namespaces.get(pod.metadata.namespace.as_str()) {
            Some(labels) => pod.namespace_labels = *labels,
            None if pod.depends_on_its_namespace() => return Found::WithoutNamespace(pod),
            None => {}
        }
        Found::Pod(pod)
    }

    /// Has those pods looked at whose namespace says something else than before, or anything at last. `of` says what it
    /// said, and what it says.
    fn look_again(&mut self, of: impl Fn(&str) -> (Option<NamespaceLabels>, Option<NamespaceLabels>)) {
        let is_worth_it = |seen: &Seen| match of(&seen.pod.metadata.namespace) {
            (before, now) if before == now => false,
            // Of one whose ADD waits for this the runtime tells.
            (None, _) => seen.has_started && seen.pod.depends_on_its_namespace(),
            (Some(_), _) => seen.pod.depends_on_its_namespace(),
        };
        let names = self.pods.iter().filter(|(_, seen)| is_worth_it(seen)).map(|(name, _)| name.clone());
        self.worth_a_look.extend(names);
    }

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
pub(super) fn same_uid(pod: Pod, reference: &PodReference) -> Found {
    match (&pod.metadata.uid, &reference.uid) {
        (Some(found), Some(wanted)) if found != wanted => Found::Another(found.clone()),
        _ => Found::Pod(Box::new(pod)),
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
        let store = Store::new(Namespaces::Unread);
        store.insert(seen("cart", "u1", false));
        assert!(matches!(store.find(&reference("cart", Some("u1"))), Found::Pod(_)));
        assert!(matches!(store.find(&reference("cart", None)), Found::Pod(_)));
        assert_eq!(store.find(&reference("cart", Some("u2"))), Found::Another("u1".to_owned()));
        assert_eq!(store.find(&reference("other", None)), Found::None);
    }

    #[test]
    fn the_end_of_a_pod_is_not_that_of_its_successor() {
        let store = Store::new(Namespaces::Unread);
        store.insert(seen("db-0", "new", false));
        store.remove(&seen("db-0", "old", true));
        assert_eq!(store.len(), 1);
        store.remove(&seen("db-0", "new", true));
        assert_eq!(store.len(), 0);
    }

    #[test]
    fn a_list_replaces_all_that_was_known() {
        let store = Store::new(Namespaces::Unread);
        store.insert(seen("gone", "1", false));
        store.insert(seen("stays", "2", false));
        store.replace([seen("stays", "2", false), seen("new", "3", false)].into_iter());
        let names: Vec<String> = store.pods().iter().map(Pod::full_name).collect();
        assert_eq!(names, ["shop/new", "shop/stays"]);
    }

    #[test]
    fn worth_a_look_is_who_starts_or_changes_and_nobody_else() {
        let store = Store::new(Namespaces::Unread);
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
        let store = Store::new(Namespaces::Unread);
        let changes = store.subscribe();
        assert!(!changes.has_changed().unwrap());
        store.insert(seen("cart", "1", false));
        assert!(changes.has_changed().unwrap());
    }

    fn reading() -> Store {
        Store::new(Namespaces::Read)
    }

    const PLAIN: NamespaceLabels = NamespaceLabels { node_proxy: false, ambient: false };
    const AMBIENT: NamespaceLabels = NamespaceLabels { ambient: true, ..PLAIN };

    fn namespaces(all: &[(&str, NamespaceLabels)]) -> impl Iterator<Item = (String, NamespaceLabels)> {
        let owned: Vec<_> = all.iter().map(|(name, labels)| ((*name).to_owned(), *labels)).collect();
        owned.into_iter()
    }

    fn labels(store: &Store, name: &str) -> Option<NamespaceLabels> {
        match store.find(&reference(name, None)) {
            Found::Pod(pod) => Some(pod.namespace_labels),
            Found::WithoutNamespace(_) => None,
            other @ (Found::Another(_) | Found::None) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pod_is_not_told_of_before_its_namespace_is_heard_of() {
        let store = reading();
        store.insert(seen("cart", "1", true));
        assert_eq!((labels(&store, "cart"), store.pods().len()), (None, 0));
        store.replace_namespaces(namespaces(&[("other", AMBIENT)]));
        assert_eq!((labels(&store, "cart"), store.pods().len()), (None, 0));
        store.insert_namespace("shop", AMBIENT);
        assert_eq!(labels(&store, "cart"), Some(AMBIENT));
        assert_eq!(store.pods().first().map(|pod| pod.namespace_labels), Some(AMBIENT));
        store.insert_namespace("shop", PLAIN);
        assert_eq!((labels(&store, "cart"), store.pods().len()), (Some(PLAIN), 1));
        assert_eq!(store.namespaces(), Some(2));
        store.remove_namespace("shop");
        assert_eq!(labels(&store, "cart"), None, "the next one of this name may be another");
    }

    #[test]
    fn where_namespaces_do_not_count_nobody_waits_for_them() {
        let store = Store::new(Namespaces::Unread);
        store.insert(seen("cart", "1", true));
        assert_eq!((labels(&store, "cart"), store.pods().len()), (Some(PLAIN), 1));
        assert_eq!(store.namespaces(), None);
    }

    #[test]
    fn a_pod_that_does_not_depend_on_its_namespace_does_not_wait_for_it() {
        let store = reading();
        let mut own = seen("own", "1", true);
        own.pod.metadata.labels.insert("veer.dev/proxy".to_owned(), "node".to_owned());
        store.insert(own);
        assert_eq!((labels(&store, "own"), store.pods().len()), (Some(PLAIN), 1));
        news(&store);
        store.insert_namespace("shop", AMBIENT);
        assert_eq!(news(&store), [""; 0]);
        assert_eq!(labels(&store, "own"), Some(AMBIENT));
    }

    #[test]
    fn a_namespace_that_says_something_else_has_its_pods_looked_at_and_no_others() {
        let store = reading();
        let mut elsewhere = seen("elsewhere", "3", true);
        "shop-2".clone_into(&mut elsewhere.pod.metadata.namespace);
        for seen in [seen("runs", "1", true), seen("begins", "2", false), elsewhere] {
            store.insert(seen);
        }
        news(&store);
        store.replace_namespaces(namespaces(&[("shop", PLAIN)]));
        assert_eq!(news(&store), ["shop/runs"], "it was not told of before; the other's ADD is to come");
        store.replace_namespaces(namespaces(&[("shop", PLAIN)]));
        store.insert_namespace("shop", PLAIN);
        assert_eq!(news(&store), [""; 0], "it says what it said");
        store.insert_namespace("shop", AMBIENT);
        assert_eq!(news(&store), ["shop/begins", "shop/runs"], "an ADD may have been answered before");
        store.replace_namespaces(namespaces(&[("shop", PLAIN), ("shop-2", PLAIN)]));
        assert_eq!(news(&store), ["shop-2/elsewhere", "shop/begins", "shop/runs"], "a list says it as well");
        assert_eq!(labels(&store, "runs"), Some(PLAIN));
    }
}
