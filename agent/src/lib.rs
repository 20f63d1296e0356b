//! The node agent and the operator's commands.
//!
//! Pure rooms, which import nothing that does I/O: [`model`] (what a pod asks for), [`capture`] (what the
//! maps hold for it), [`explain`] (why a connection goes where it goes), [`check`] (what a trial in a pod
//! means), [`locate`] (which netns is a pod's), [`plan`] (what a pod has lost) and [`doctor`] (what facts about a node mean), with [`columns`] for
//! their texts. Rooms with I/O: [`platform`] (the kernel), [`source`] (pods), [`cluster`] (the API server), [`enrol`] (the node's state), [`reconcile`]
//! (what is lost or was missed comes back), [`socket`], [`cni`], [`control`] and [`lookup`] (who talks to the agent, and
//! what it is told), [`readiness`] (whether a pod created now would be redirected), [`admin`] (who monitors it), [`commands`] (terminal), [`uninstall`] (all of it away), [`lock`] (one agent for a node). [`app`]
//! puts the agent together.

mod accept;
pub mod admin;
pub mod app;
pub mod capture;
pub mod check;
pub mod cli;
pub mod cluster;
pub mod cni;
pub mod columns;
pub mod commands;
pub mod config;
pub mod conflist;
pub mod control;
pub mod doctor;
pub mod enrol;
pub mod explain;
pub mod install;
pub mod installer;
pub mod locate;
pub mod lock;
pub mod lookup;
pub mod model;
mod pause;
pub mod plan;
pub mod platform;
pub mod proxy;
pub mod readiness;
pub mod reconcile;
pub mod socket;
pub mod source;
pub mod telemetry;
pub mod uninstall;
mod wall_clock;
