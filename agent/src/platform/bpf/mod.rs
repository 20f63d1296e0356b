//! The eBPF side of the node: objects, pins, links and maps.
//!
//! Owns: [`sys`] (bpf(2)), [`cookie`] (how a netns is known), [`pins`] (where things are pinned), [`load`] (objects into
//! the kernel and onto their hooks, in place of others), `instance` (the pods' own programs), `held` (what would be gone
//! with its pin), [`maps`] (typed access to what is pinned), [`listening`] (how many listeners are registered), [`events`]
//! (the ring buffer), [`query`] (whose programs are at a hook), [`order`] (who runs before ours), [`trial`] (whether the
//! kernel takes it all), [`generation`] (what one ABI version has pinned, whichever it is).
//! Never does: know what a pod is beyond its netns cookie.
//! Everything outlives the agent: a restart finds it by its pins and takes it over in place.

pub mod cookie;
pub mod events;
pub mod generation;
mod held;
mod instance;
pub mod listening;
pub mod load;
pub mod maps;
pub mod order;
pub mod pins;
pub mod query;
mod replace;
mod restore;
pub mod sys;
pub mod trial;

use std::io;
use std::path::PathBuf;

/// Why the datapath could not be brought to where it should be.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// A file or directory on the bpffs.
    #[error("{attempt} {path}: {source}", path = path.display())]
    Pin {
        /// What was tried.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The pin directory is not on a bpffs.
    #[error(
        "{path} is not on a bpffs: mount one (mount -t bpf bpf /sys/fs/bpf) or name another with --bpffs",
        path = path.display()
    )]
    NotBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// The object does not parse, or one of its maps cannot be made.
    #[error("load the eBPF object for the {object}: {}", chain(source))]
    Object {
        /// Which of the two.
        object: &'static str,
        /// What aya says.
        source: aya::EbpfError,
    },
    /// The verifier refuses a program, or a map cannot be used.
    #[error("load eBPF program {program}: {}", chain(source))]
    Program {
        /// Its name.
        program: String,
        /// What aya says, the verifier's log included.
        source: aya::programs::ProgramError,
    },
    /// The verifier refuses the program that reads the interface of what arrives.
    #[error(
        "the pod excludes interfaces (excludeInterfaces), and this kernel does not tell an sk_lookup program the interface of what arrives (Linux 5.17 does): {}",
        chain(source)
    )]
    NoIngressInterface {
        /// What aya says, the verifier's log included.
        source: aya::programs::ProgramError,
    },
    /// The embedded object lacks what it should have: it was built with `AYA_BUILD_SKIP=1`.
    #[error("the embedded eBPF object has no {what}: was veer built with AYA_BUILD_SKIP=1?")]
    Incomplete {
        /// What is missing.
        what: &'static str,
    },
    /// A program cannot be attached.
    #[error("attach eBPF program {program} to {target}: {source}")]
    Attach {
        /// Its name.
        program: &'static str,
        /// What it should hang on.
        target: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A map operation failed.
    #[error("{attempt} map {map}: {}", chain(source))]
    Map {
        /// What was tried.
        attempt: &'static str,
        /// Which map.
        map: &'static str,
        /// What aya says.
        source: aya::maps::MapError,
    },
    /// A map operation that aya has no way to failed.
    #[error("{attempt} map {map}: {source}")]
    RawMap {
        /// What was tried.
        attempt: &'static str,
        /// Which map.
        map: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Somebody removes the pins again and again while a pod's program is loaded.
    #[error("pins in {path} go while a pod's program is loaded: who removes them?", path = path.display())]
    OtherMaps {
        /// Where they are.
        path: PathBuf,
    },
    /// The programs of an earlier build are still attached, because the kernel refuses this build's.
    #[error("{source}\nnothing has changed for the pods: {}; this agent ends", still(problems))]
    NotReplaced {
        /// What the kernel refuses.
        source: Box<BpfError>,
        /// What could not be put back.
        problems: Vec<String>,
    },
    /// A map is full.
    #[error("map {map} is full ({capacity} entries): this node holds no more")]
    Full {
        /// Which map.
        map: &'static str,
        /// How much it holds.
        capacity: u32,
    },
    /// The maps are of another agent.
    #[error("the maps in {path} have ABI version {found}, this agent has {ours}: remove the directory, or run the agent that made it", path = path.display())]
    Abi {
        /// The pin directory.
        path: PathBuf,
        /// Their version.
        found: u32,
        /// Ours.
        ours: u32,
    },
}

fn still(problems: &[String]) -> String {
    let run =
        "run the release that attached them, or put right what the kernel refuses and start this one again";
    if problems.is_empty() {
        return format!("the programs of the build before are attached, all of them; {run}");
    }
    let problems = problems.join("; ");
    format!("programs of both builds are attached, which work together ({problems}); {run}")
}

/// An error with all of its causes: aya's own text leaves the verifier's log to them.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
