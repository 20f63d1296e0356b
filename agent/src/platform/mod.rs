//! Everything that touches the kernel: narrow rooms, no decisions.
//!
//! Owns: [`bpf`] (objects, pins, links, maps), [`netns`] (entering, identity), [`netlink`] (addresses),
//! [`listeners`] (sockets older than the agent), [`cgroup`] (where pods live), [`redirection`] (a trial of it, in a pod),
//! [`probe`] (what a node can, and who else is there), [`runtime`] (which pods run), [`sysctl`] (of a netns), [`cnidir`] (the runtime's configuration, changed file by file), [`inotify`] (that it has
//! changed), [`attachments`] (who was attached with our plugin), [`proxy`] (the node's Envoys as processes).
//! Never does: decide what a pod gets. Called by: `enrol`, `app` and the commands.

pub mod attachments;
pub mod bpf;
pub mod cgroup;
pub mod cnidir;
pub mod inotify;
pub mod listeners;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod probe;
pub mod proxy;
pub mod records;
pub mod redirection;
pub mod runtime;
pub mod sysctl;
pub mod userns;
