//! The agent's side of the CNI plugin: a socket for root alone.
//!
//! Owns: [`server`] (connections), [`answer`] (requests to replies), and pods that come and go while they run ([`running`]). Never does: trust a length, a path
//! or a name that a request brings.

pub mod answer;
pub mod running;
pub mod server;
