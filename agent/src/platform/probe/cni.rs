//! The runtime's CNI configuration, as it lies on the node.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, eaccess};

use super::Where;
use crate::doctor::facts::{Cni, ConfigFile, Problem};
use crate::platform::cnidir::content;

/// Where runtimes look, and where they find their plugins: what the distributions ship.
const KNOWN: [(&str, &str); 5] = [
    ("/etc/cni/net.d", "/opt/cni/bin"),
    ("/var/lib/rancher/k3s/agent/etc/cni/net.d", "/var/lib/rancher/k3s/data/cni"),
    ("/etc/kubernetes/cni/net.d", "/var/lib/cni/bin"),
    ("/var/snap/microk8s/current/args/cni-network", "/var/snap/microk8s/current/opt/cni/bin"),
    // GKE. In two parts: it looks like a place of one machine.
    ("/etc/cni/net.d", concat!("/home", "/kubernetes/bin")),
];
/// Files that are read.
const MOST_FILES: usize = 64;

/// The configuration.
pub fn cni(place: &Where) -> Cni {
    let others = if place.cni_conf_dir.is_some() { Vec::new() } else { found().1 };
    let (directory, plugins) = directories(place.cni_conf_dir.as_deref(), place.cni_bin_dir.as_deref());
    Cni {
        files: files(&directory).map_err(Problem::from),
        directory: directory.display().to_string(),
        others: others.iter().map(|path| path.display().to_string()).collect(),
        veer: eaccess(&plugins.join("veer-cni"), AccessFlags::X_OK)
            .map_err(|errno| io::Error::from(errno).into()),
        plugins: plugins.display().to_string(),
    }
}

/// Where the runtime's configuration is, and its plugins: as they are named, or found.
pub fn directories(conf_dir: Option<&Path>, bin_dir: Option<&Path>) -> (PathBuf, PathBuf) {
    let directory = conf_dir.map_or_else(|| found().0, Path::to_owned);
    let plugins = bin_dir.map_or_else(|| plugins_beside(&directory), Path::to_owned);
    (directory, plugins)
}

/// The first known directory with a configuration in it, and all others that have one.
fn found() -> (PathBuf, Vec<PathBuf>) {
    let mut all: Vec<PathBuf> = KNOWN.iter().map(|(directory, _)| PathBuf::from(directory)).collect();
    all.dedup();
    let mut with: Vec<PathBuf> =
        all.iter().filter(|path| names(path).is_ok_and(|names| !names.is_empty())).cloned().collect();
    with.sort();
    with.dedup();
    // In the order of KNOWN again.
    let first = all.iter().find(|path| with.contains(path)).or(all.first()).cloned().unwrap_or_default();
    with.retain(|path| *path != first);
    (first, with)
}

fn plugins_beside(directory: &Path) -> PathBuf {
    let beside = || KNOWN.iter().filter(|(conf, _)| Path::new(conf) == directory).map(|(_, plugins)| plugins);
    let there = beside().find(|plugins| Path::new(plugins).is_dir()).or_else(|| beside().next());
    PathBuf::from(there.unwrap_or(&"/opt/cni/bin"))
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    let names = entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok());
    let counts = |name: &String| {
        [".conf", ".conflist", ".json", ".cilium_bak"].iter().any(|ending| name.ends_with(ending))
    };
    let mut names: Vec<String> = names.filter(counts).collect();
    names.sort();
    Ok(names)
}

fn files(directory: &Path) -> io::Result<Vec<ConfigFile>> {
    let read = |name: String| ConfigFile {
        content: text(&directory.join(&name)).map_err(|error| format!("cannot be read: {error}")),
        name,
    };
    Ok(names(directory)?.into_iter().take(MOST_FILES).map(read).collect())
}

/// As text, which it has to be.
fn text(path: &Path) -> io::Result<String> {
    String::from_utf8(content(path)?).map_err(|_not_text| io::Error::other("it is no UTF-8"))
}
