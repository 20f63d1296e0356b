//! The pods' proxies, and who drives them ([`driver`]): the pod itself ([`sidecar`]), or the agent, with one Envoy for all
//! pods of the node that ask for it.
//!
//! Owns: what Envoy is told ([`resources`]), also by users ([`config`]), in which order and what it says to that ([`delta`]), and the server that it
//! is told by ([`ads`]), where they meet ([`place`]), and how what it counts is named (`statistics`); and, where the agent starts
//! it itself, that it runs ([`supervise`]). Never does: redirect anything, which is `enrol`'s. Called by: `app`, `cni`.

pub mod admin;
pub mod ads;
mod bootstrap;
pub mod command;
pub mod config;
pub mod delta;
pub mod driver;
pub mod instance;
pub mod place;
mod readiness;
pub mod resources;
pub mod sidecar;
pub mod state;
mod statistics;
pub mod supervise;
pub mod watch;
pub mod zds;
