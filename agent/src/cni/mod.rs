//! The agent's side of the CNI plugin: a socket for root alone.
//!
//! Owns: [`server`] (connections) and [`answer`] (requests to replies). Never does: trust a length, a path
//! or a name that a request brings.

pub mod answer;
pub mod server;
