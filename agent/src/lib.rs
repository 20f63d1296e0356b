//! The node agent and the operator's commands.

pub mod capture;
pub mod model;
pub mod source;
