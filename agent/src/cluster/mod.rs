//! The cluster's API server, as far as an agent needs it.
//!
//! Owns: [`client`] (who we are to it, and requests that are bounded in time). Never does: decide about a pod, or make
//! the runtime wait: what is asked while a pod starts is asked by [`source::kube`](crate::source). Called by: the pod
//! source `kube`.
//!
//! # What it may do
//!
//! | Verbs | Resource | For |
//! |---|---|---|
//! | get, list, watch | pods | the node's pods; get asks once for a pod that the watch has not told of |
//!
//! RBAC cannot limit a service account to the pods of one node; the agent asks for its own node's alone, by a field
//! selector. Namespaces are not read: whether a pod is in the mesh stands on the pod, where the injector has written
//! what followed from its namespace's labels, and namespaces that are left alone are a setting of the node.

pub mod client;
