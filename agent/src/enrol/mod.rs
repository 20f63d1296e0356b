//! Enrolment: from a pod that was decided on to a netns that is redirected, and back.
//!
//! Owns: what redirects a pod (`backend`: `ebpf` with its [`steps`], and `nftables` with its [`record`]s), who is
//! enrolled ([`registry`]), whom other versions redirect ([`versions`]), what all of them have counted ([`figures`]), what went past the mesh ([`past_mesh`]), what is seen of their proxies ([`proxies`]), and the node's state, which one thread has ([`node`]).
//! Never does: decide on a pod (that is `model`), or listen for requests (that is `cni`).
//! Atomic: a step that fails is undone with all before it. A crash in between leaves entries that no
//! program looks at, because the policy, which everything hangs on, is written last and removed first.

mod backend;
mod ebpf;
pub mod error;
pub mod figures;
pub mod follow;
pub mod heal;
mod identity;
pub mod loopback;
mod nftables;
pub mod node;
mod node_addresses;
pub mod past_mesh;
pub mod proxies;
pub mod record;
pub mod registry;
pub mod steps;
pub mod versions;

pub use self::backend::Backends;
pub use self::ebpf::Ebpf;
pub use self::error::EnrolError;
pub use self::nftables::{Nftables, Withdrawn};
pub use self::node::{Node, NodeHandle};
pub use self::registry::{Enrolled, Registry};
