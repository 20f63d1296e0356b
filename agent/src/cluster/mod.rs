//! The cluster's API server, as far as an agent needs it.
//!
//! Owns: [`client`] (who we are to it, and requests that are bounded in time), [`notice`] (what pods are told, and how
//! often), [`events`] (where that is written), [`redirection`] (what a pod's annotation says of ztunnel) and [`node`] (the node's condition and taint). Never does: decide about a pod, or make
//! the runtime wait: what is asked while a pod starts is asked by [`source::kube`](crate::source). Called by: the pod
//! source `kube`, whoever enrols, and `app`.
//!
//! # What it may do
//!
//! | Verbs | Resource | For |
//! |---|---|---|
//! | get, list, watch | pods | the node's pods; get asks once for a pod that the watch has not told of |
//! | create | events (`events.k8s.io`) | what has become of a pod, for whoever describes it; nothing is written on the pod |
//! | patch | nodes/status | the condition `VeerReady` |
//! | patch | pods/status | with `--ztunnel-socket` alone: the annotation by which Istio knows that ztunnel serves a pod |
//! | get, patch | nodes | with `--node-taint` alone: taints are one list, which is read and written as a whole |
//!
//! RBAC cannot limit a service account to the pods of one node; the agent asks for its own node's alone, by a field
//! selector. Namespaces are not read: whether a pod is in the mesh stands on the pod, where the injector has written
//! what followed from its namespace's labels, and namespaces that are left alone are a setting of the node.

pub mod client;
pub mod events;
pub mod node;
pub mod notice;
pub mod redirection;
