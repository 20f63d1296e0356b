//! What is watched: the pods of this node, and the namespaces of the cluster.
//!
//! Owns: what the API server is asked for of each, and where in the [`Store`] its answers go. Of namespaces it is asked for
//! their metadata alone. Called by: the watch.

use kube::core::Request;
use kube::core::params::{ListParams, WatchParams};

use super::follow::{Asked, Resource};
use super::store::Store;
use super::watched::Watched;
use super::wire::{Wire, WireNamespace};

/// Where namespaces are.
pub(super) const NAMESPACES: &str = "/api/v1/namespaces";

/// The pods of a node.
pub(super) struct Pods<'a> {
    pub(super) node: &'a str,
    pub(super) store: &'a Store,
    pub(super) watched: &'a Watched,
}

/// All namespaces.
pub(super) struct Namespaces<'a> {
    pub(super) store: &'a Store,
    pub(super) watched: &'a Watched,
}

impl Pods<'_> {
    /// The field selector: pods that have ended are nobody's any more.
    fn selection(&self) -> String {
        format!("spec.nodeName={},status.phase!=Succeeded,status.phase!=Failed", self.node)
    }

    fn request() -> Request {
        Request::new("/api/v1/pods")
    }
}

impl Resource for Pods<'_> {
    type Wire = Wire;

    fn watched(&self) -> &Watched {
        self.watched
    }

    fn list(&self, params: ListParams) -> Asked {
        Self::request().list(&params.fields(&self.selection()))
    }

    fn watch(&self, params: WatchParams, from: &str) -> Asked {
        Self::request().watch(&params.fields(&self.selection()), from)
    }

    fn replace(&self, all: Vec<Wire>) {
        self.store.replace(all.into_iter().map(Wire::reduce));
    }

    fn insert(&self, one: Wire) {
        self.store.insert(one.reduce());
    }

    fn remove(&self, one: Wire) {
        self.store.remove(&one.reduce());
    }

    fn wake(&self) {
        self.store.wake();
    }
}

impl Resource for Namespaces<'_> {
    type Wire = WireNamespace;

    fn watched(&self) -> &Watched {
        self.watched
    }

    fn list(&self, params: ListParams) -> Asked {
        Request::new(NAMESPACES).list_metadata(&params)
    }

    fn watch(&self, params: WatchParams, from: &str) -> Asked {
        Request::new(NAMESPACES).watch_metadata(&params, from)
    }

    fn replace(&self, all: Vec<WireNamespace>) {
        self.store.replace_namespaces(all.into_iter().map(WireNamespace::reduce));
    }

    fn insert(&self, one: WireNamespace) {
        let (name, labels) = one.reduce();
        self.store.insert_namespace(&name, labels);
    }

    fn remove(&self, one: WireNamespace) {
        self.store.remove_namespace(&one.reduce().0);
    }

    fn wake(&self) {
        self.store.wake();
    }
}
