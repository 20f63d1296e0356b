//! The node's container runtime: which containerd, with which of the CNI project's plugins.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::programs;

/// A containerd, and the network that it is given.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// The directory of containerd, its shim and `ctr`.
    directory: PathBuf,
    /// The directory of runc.
    runc: PathBuf,
    /// The directory of the CNI project's plugins.
    pub(super) plugins: PathBuf,
    /// `cniVersion` of the node's network.
    pub(super) cni_version: &'static str,
}

impl Runtime {
    /// That of the machine's own Debian.
    pub fn own() -> Result<Self> {
        let plugins =
            std::env::var_os("CNI_PATH").context("CNI_PATH is not set: cargo xtask test sets it")?;
        let directory = parent(&programs::containerd("containerd")?)?;
        let runc = parent(&programs::containerd("runc")?)?;
        Ok(Self { directory, runc, plugins: plugins.into(), cni_version: "1.0.0" })
    }

    /// That of another Debian, with a network of this version of CNI; 1.1.0 takes plugins that speak it, which are in
    /// that Debian, too.
    pub fn of_suite(suite: &str, cni_version: &'static str) -> Result<Self> {
        let own = Self::own()?;
        let directory = parent(&programs::of_suite(suite, "usr/bin/containerd")?)?;
        let plugins = if cni_version == own.cni_version {
            own.plugins
        } else {
            parent(&programs::of_suite(suite, "usr/lib/cni/ptp")?)?
        };
        Ok(Self { directory, plugins, cni_version, ..own })
    }

    /// A program of it.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where it finds its shim and runc, before all else.
    pub(super) fn search_path(&self) -> OsString {
        let mut path = self.directory.clone().into_os_string();
        path.push(":");
        path.push(&self.runc);
        path
    }
}

fn parent(program: &Path) -> Result<PathBuf> {
    program.parent().map(Path::to_owned).context("a program is in a directory")
}
