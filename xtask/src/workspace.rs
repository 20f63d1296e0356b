//! Where things are: the root of the repository, cargo, programs, the cache of downloaded tools.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The crate that is built for the eBPF machine, by the agent's build script. As a process of the host it
/// is of no use, and its tests would run with the memcpy that aya-ebpf brings for that machine.
pub(crate) const KERNEL_CRATE: &str = "veer-ebpf";

/// Directories that hold what we start although a plain user's PATH, or that of `su`, lacks them.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The root of the repository.
pub(crate) fn root() -> Result<PathBuf> {
    let own = env::var_os("CARGO_MANIFEST_DIR")
        .context("start it as `cargo xtask`: cargo tells where the repository is")?;
    let root = Path::new(&own).parent().context("xtask lies in the root of the repository")?;
    Ok(root.to_path_buf())
}

/// A cargo that works on this repository.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).env("PATH", search_path());
    command
}

/// PATH, and behind it the places where `cargo install` and the system put programs. `bpf-linker` must
/// be found by rustc, and Debian's cargo does not put its own directory into PATH.
pub(crate) fn search_path() -> std::ffi::OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&path).collect();
    for directory in
        cargo_home().map(|home| home.join("bin")).into_iter().chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
    {
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    // Only a directory with a colon in its name can fail, and such a PATH is no PATH.
    env::join_paths(directories).unwrap_or(path)
}

/// The first program of that name on [`search_path`].
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// Where cargo keeps what it installs.
pub(crate) fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")))
}

/// Where downloaded tools are kept: `$VEER_TOOLS`, else `veer/tools` in the user's cache. Root's is the
/// system's cache, because the proxy of a pod runs as uid 1337 and cannot look below root's home.
pub(crate) fn tools(is_root: bool) -> Result<PathBuf> {
    if let Some(directory) = env::var_os("VEER_TOOLS") {
        return std::path::absolute(directory).context("VEER_TOOLS is not a path");
    }
    let cache = match env::var_os("XDG_CACHE_HOME") {
        Some(directory) => PathBuf::from(directory),
        None if is_root => PathBuf::from("/var/cache"),
        None => env::home_dir().context("neither VEER_TOOLS nor HOME is set")?.join(".cache"),
    };
    Ok(cache.join("veer/tools"))
}
