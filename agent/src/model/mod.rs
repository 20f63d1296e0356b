//! What a pod says of itself, and what follows from it.
//!
//! Owns: the parts of a Kubernetes Pod that decide interception ([`manifest`]), the parser of every
//! annotation value ([`annotation`]) and the decision whether and how the pod is captured
//! ([`decision`]). Never does: I/O of any kind, or anything that knows of maps and programs.
//! Called by: the pod sources and the CNI server.

pub mod annotation;
mod capture;
pub mod decision;
pub mod manifest;
mod values;

pub use self::capture::{
    Capture, EnvironmentWarning, IdSpace, InboundPorts, InterceptionMode, OutboundRanges, OwnerGroups,
};
pub use self::decision::{Decision, NodeSettings, PassReason, PodErrors, decide};
pub use self::manifest::{ManifestError, Pod};
pub use self::values::{InterfaceName, Port};
