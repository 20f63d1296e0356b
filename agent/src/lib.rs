//! The node agent and the operator's commands.
//!
//! Pure rooms, which import nothing that does I/O: [`model`] (what a pod asks for) and [`capture`] (what the
//! maps hold for it) and [`check`] (what a trial in a pod means). Rooms with I/O: [`platform`] (the kernel), [`source`] (pods), [`enrol`] (the node's
//! state), [`socket`], [`cni`] and [`control`] (who talks to the agent), [`commands`] (terminal). [`app`] puts them together.

pub mod app;
pub mod capture;
pub mod check;
pub mod cli;
pub mod cni;
pub mod commands;
pub mod config;
pub mod control;
pub mod enrol;
pub mod model;
pub mod platform;
pub mod socket;
pub mod source;
pub mod telemetry;
