//! `veer-cni`, the CNI plugin: tells the node's agent of each pod before its first process runs.
//!
//! The container runtime runs it once for each verb on each pod, so it is synchronous, static and small.
//! Owns: the CNI side (environment, configuration on stdin, result on stdout) and one question to the
//! agent. Never does: change anything on the node; every decision about a pod is the agent's.
//!
//! | Room | Owns |
//! |---|---|
//! | `plugin` | the verbs: what is asked, what an answer or its absence means for each |
//! | `environment` | pure: the `CNI_*` variables into types |
//! | `netconf` | pure: the network configuration into types |
//! | `netns` | the pod's network namespace as a file that is known to be one |
//! | `client` | the agent's socket, with a deadline |
//! | `output` | results, errors and versions as the specification wants them printed |
//! | `log` | lines on stderr |
//!
//! A library for one reason: what it does with hostile input is fuzzed without starting a process each time.

#![forbid(unsafe_code)]

mod client;
mod environment;
mod log;
mod netconf;
mod netns;
mod output;
mod plugin;

pub use self::environment::Variables;
pub use self::plugin::run;
