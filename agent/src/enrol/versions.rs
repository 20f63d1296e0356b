//! Pods that another ABI version's programs redirect: they are left to them, for as long as they live.
//!
//! An upgrade to another ABI version cannot take a pod over: its connections have their records in maps of another
//! shape. Its programs go on without an agent, so nothing is lost but what an agent does for a pod.
//!
//! Owns: telling which pods those are, and removing what is pinned for none any more. Never does: read maps of
//! another version. Called by: the node's thread, at the start, at each full pass and at each ADD; `veer status`.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use veer_common::ABI_VERSION;

use crate::platform::bpf::BpfError;
use crate::platform::bpf::generation::Generation;

/// Where other versions would be.
#[derive(Clone, Debug)]
pub struct OtherVersions {
    bpffs: PathBuf,
}

/// One of them, with pods that are alive.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OtherVersion {
    /// The ABI version.
    pub abi: u32,
    /// How many pods its programs redirect.
    pub pods: usize,
    /// Where it is pinned.
    pub pins: PathBuf,
}

impl fmt::Display for OtherVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { abi, pods, pins } = self;
        let (are, stay) = if *pods == 1 { ("pod is", "stays") } else { ("pods are", "stay") };
        write!(
            f,
            "{pods} {are} redirected by programs of ABI v{abi} ({}) and {stay} so until deleted. This release, with ABI \
             v{ABI_VERSION}, neither counts nor explains their connections, nor follows their addresses; it enrols what \
             comes after them, so delete such pods when it suits",
            pins.display()
        )
    }
}

impl OtherVersions {
    /// Those below `bpffs`.
    pub fn below(bpffs: &Path) -> Self {
        Self { bpffs: bpffs.to_owned() }
    }

    /// Those that redirect pods that are alive.
    ///
    /// # Errors
    /// If that cannot be told.
    pub fn alive(&self) -> Result<Vec<OtherVersion>, BpfError> {
        let alive = self.all()?.into_iter().map(|generation| Ok((generation.living()?.len(), generation)));
        let alive: Vec<(usize, Generation)> = alive.collect::<Result<_, BpfError>>()?;
        let told = |(pods, Generation { abi, root })| OtherVersion { abi, pods, pins: root };
        Ok(alive.into_iter().filter(|(pods, _)| *pods > 0).map(told).collect())
    }

    /// The version whose programs redirect the netns with this inode number. Asked anew each time: the numbers
    /// of namespaces that are gone come again.
    ///
    /// # Errors
    /// If that cannot be told.
    pub fn of_netns(&self, inode: u64) -> Result<Option<u32>, BpfError> {
        for generation in self.all()? {
            if generation.living()?.contains(&inode) {
                return Ok(Some(generation.abi));
            }
        }
        Ok(None)
    }

    /// Removes what is pinned for no pod any more. Goes on after a failure; both go to the log.
    pub fn remove_dead(&self) {
        let generations = self.all().unwrap_or_else(|error| {
            tracing::error!(%error, "look for other ABI versions");
            Vec::new()
        });
        for generation in generations {
            let (abi, pins) = (generation.abi, generation.root.display());
            match generation.living() {
                Ok(living) if living.is_empty() => match generation.remove() {
                    Ok(()) => {
                        tracing::info!(abi, %pins, "removed another ABI version: none of its pods is alive");
                    }
                    Err(error) => tracing::error!(abi, %pins, %error, "remove another ABI version"),
                },
                Ok(living) => {
                    tracing::debug!(abi, %pins, pods = living.len(), "another ABI version has pods");
                }
                Err(error) => tracing::error!(abi, %pins, %error, "look for pods of another ABI version"),
            }
        }
    }

    fn all(&self) -> Result<Vec<Generation>, BpfError> {
        let mut all = Generation::all(&self.bpffs)?;
        all.retain(|generation| generation.abi != ABI_VERSION);
        Ok(all)
    }
}
