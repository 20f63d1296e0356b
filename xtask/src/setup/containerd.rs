//! containerd for `cargo xtask test kube`: that of the machine's own suite, and those of others, which call plugins for more.
//!
//! Debian's packages, unpacked and not installed, so that the machine gets no service that it did not have. apt checks
//! the signatures, and nothing is executed.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::apt::Apt;
use super::debian;
use super::kube::version;
use super::needs::{Need, State, Step};

/// Of the machine's own suite: the program, which is its package's name, and what it is for.
const OWN: [(&str, &str); 2] =
    [("containerd", "the container runtime of test kube's node"), ("runc", "starts its containers")];

/// A release of another suite.
struct Other {
    /// As a need.
    name: &'static str,
    suite: &'static str,
    packages: &'static [&'static str],
    reason: &'static str,
}

/// Debian 13 and what comes after it. A network of CNI 1.1.0 needs plugins that speak it.
const OTHERS: [Other; 2] = [
    Other {
        name: "containerd of trixie",
        suite: "trixie",
        packages: &["containerd"],
        reason: "a runtime that gives plugins the pod's cgroup",
    },
    Other {
        name: "containerd of forky",
        suite: "forky",
        packages: &["containerd", "containernetworking-plugins"],
        reason: "a runtime of CNI 1.1: STATUS",
    },
];

fn unpacked_in(tools: &Path) -> PathBuf {
    tools.join("containerd")
}

/// The directory of containerd, its shim, `ctr` and runc.
pub(super) fn own_in(tools: &Path) -> PathBuf {
    unpacked_in(tools).join("usr/bin")
}

/// The directory that has one for each other suite, with what its packages have.
pub(super) fn others_in(tools: &Path) -> PathBuf {
    tools.join("containerds")
}

/// All needs' names.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    OWN.into_iter().map(|(name, _)| name).chain(OTHERS.into_iter().map(|other| other.name))
}

/// All of them, met or not.
pub(super) fn needs(tools: &Path) -> Vec<Need> {
    let need = |name, reason, path: PathBuf| {
        let state = match version(&path) {
            Some(version) => State::Present { found: format!("{} ({version})", path.display()) },
            None => State::Missing { found: "not fetched yet".to_owned(), steps: vec![Step::Kube] },
        };
        Need { name, reason, state }
    };
    let own = OWN.into_iter().map(|(name, reason)| need(name, reason, own_in(tools).join(name)));
    let others = OTHERS.into_iter().map(|other| {
        let path = others_in(tools).join(other.suite).join("usr/bin/containerd");
        need(other.name, other.reason, path)
    });
    own.chain(others).collect()
}

/// Fetches those of these names.
pub(super) fn fetch(tools: &Path, names: &[&str]) -> Result<()> {
    if OWN.iter().any(|(name, _)| names.contains(name)) {
        debian::unpack(&OWN.map(|(name, _)| name), &unpacked_in(tools))?;
    }
    let others: Vec<_> = OTHERS.into_iter().filter(|other| names.contains(&other.name)).collect();
    if others.is_empty() {
        return Ok(());
    }
    let apt = Apt::of_suites(&tools.join("containerds.apt"), &OTHERS.map(|other| ("Debian", other.suite)))?;
    for Other { suite, packages, .. } in others {
        let directory = others_in(tools).join(suite);
        let packages = packages.iter().map(|package| format!("{package}/{suite}")).collect::<Vec<_>>();
        apt.download(&packages, &directory)?;
        debian::unpack_all(&directory)?;
    }
    Ok(())
}
