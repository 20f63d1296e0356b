//! What a pod says of itself, and what follows from it.
//!
//! Owns: the parts of a Kubernetes Pod that decide interception ([`manifest`]), the parser of every
//! annotation value ([`annotation`]), the decision whether and how the pod is captured ([`decision`]), what of it
//! surprises ([`surprise`](fn@surprise)), and where each setting of that comes from ([`Origins`]). Never does: I/O of any kind, or anything that knows of maps and programs.
//! Called by: the pod sources and the CNI server.

mod ambient;
pub mod annotation;
mod asked;
mod backend;
mod capture;
pub mod decision;
pub mod ids;
pub mod manifest;
mod origin;
pub mod quoted;
mod surprise;
mod values;

pub use self::asked::NamespaceLabels;
pub use self::backend::BackendName;
pub use self::capture::{
    BeforeProxy, Capture, Driver, EnvironmentWarning, IdSpace, InboundPorts, InterceptionMode,
    OutboundRanges, OwnerGroups, Presence, ProxyIdentity,
};
pub use self::decision::{DEFAULT_PROXY_ID, Decision, NodeSettings, PassReason, PodErrors, decide};
pub use self::manifest::{Manifest, ManifestError, Pod, could_name_a_pod};
pub use self::origin::{Origin, Origins, Setting};
pub use self::surprise::surprise;
pub use self::values::{InterfaceName, Port};
