//! A real Kubernetes: its own programs, on this machine, for as long as a test lasts.
//!
//! Owns: where the programs are ([`programs`]), who is who ([`certificates`]), etcd and the API server
//! ([`control_plane`]), talking to it ([`client`]), a node with containerd and kubelet ([`node`]), its cgroups
//! ([`hierarchies`]) and its container runtime ([`runtime`]), the agent on it ([`agent`]) and a plugin that is recorded
//! ([`recorder`]), its images ([`images`]), what is installed from manifests ([`manifests`]), its pods ([`pods`], [`crowd`]),
//! and what Istio makes of those ([`injector`], [`pilot_agent`]).
//! Never does: stand in for a part of Kubernetes, listen where another machine reaches it, or write outside of a
//! directory of its own. Used by: the tests that need an API server, and the suite of `cargo xtask test kube`.
//!
//! `cargo xtask setup --kube` installs the programs; without them everything here fails and says so.

pub mod agent;
pub mod certificates;
pub mod client;
pub mod control_plane;
pub mod crowd;
pub mod hierarchies;
pub mod images;
pub mod injector;
pub mod manifests;
pub mod node;
pub mod pilot_agent;
pub mod pods;
pub mod programs;
pub mod recorder;
pub mod runtime;
