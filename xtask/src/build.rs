//! `cargo xtask build`: the two binaries that go onto a node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{exec, setup, workspace};

/// How to compile.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// What tests run: no link-time optimization, all assertions.
    Dev,
    /// What nodes run, and what is measured.
    Release,
}

/// The binaries of a node.
pub(crate) struct Binaries {
    /// The agent and the operator's commands.
    pub(crate) veer: PathBuf,
    /// The CNI plugin.
    pub(crate) veer_cni: PathBuf,
}

/// The verb.
pub(crate) fn run() -> Result<ExitCode> {
    setup::ensure()?;
    let root = workspace::root()?;
    let built = executables(&root, Profile::Release, &["--bin", "veer", "--bin", "veer-cni"])?;
    for name in ["veer", "veer-cni"] {
        let path = built.find(name)?;
        let size = path.metadata().with_context(|| format!("look at {}", path.display()))?.len();
        require_static(&path)?;
        exec::print(&format!("{name:9} {:5.1} MB  static  {}", size_in_mb(size), path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Executables that cargo has built.
pub(crate) struct Executables(Vec<(String, PathBuf)>);

impl Executables {
    pub(crate) fn find(&self, name: &str) -> Result<PathBuf> {
        let found = self.0.iter().find(|(known, _)| known == name).map(|(_, path)| path.clone());
        found.with_context(|| format!("no package of the workspace has a binary `{name}`"))
    }

    pub(crate) fn of_a_node(&self) -> Result<Binaries> {
        Ok(Binaries { veer: self.find("veer")?, veer_cni: self.find("veer-cni")? })
    }
}

/// Builds the binaries that `selection` names, in cargo's words. Always with the features of the whole
/// workspace: with those of a few packages, dependencies would be compiled once more for the tests.
pub(crate) fn executables(root: &Path, profile: Profile, selection: &[&str]) -> Result<Executables> {
    built(root, "build", profile, selection)
}

/// Builds all that is in the directories `tests` of the workspace, and the binaries of those packages: in one call,
/// because with the dependencies of tests the others have other features, and a second call would compile them anew.
/// With the tests that want a machine of their own: who calls this gives them one.
pub(crate) fn tests(root: &Path, profile: Profile) -> Result<Executables> {
    built(root, "test", profile, &["--no-run", "--test", "*", "--features", "veer-tests/own-machine"])
}

fn built(root: &Path, verb: &str, profile: Profile, selection: &[&str]) -> Result<Executables> {
    let mut command = workspace::cargo(root);
    command.args([verb, "--workspace", "--exclude", workspace::KERNEL_CRATE]).args(selection);
    if profile == Profile::Release {
        command.arg("--release").arg("--config").arg(nameless_places(root)?);
    }
    // Cargo tells where it puts them: it may have been told to build elsewhere.
    command.arg("--message-format=json-render-diagnostics");
    let messages = exec::output(&mut command)?;
    Ok(Executables(messages.lines().filter_map(executable).collect()))
}

/// A `veer` for tests of upgrades, whose eBPF programs are compiled into other instructions. It is built before
/// the usual one, which cargo puts into the same place.
pub(crate) fn other_build(root: &Path) -> Result<PathBuf> {
    let built = executables(root, Profile::Dev, &["--bin", "veer", "--features", "veer/other-build"])?;
    let veer = built.find("veer")?;
    let kept = veer.with_file_name("veer-other-build");
    fs::copy(&veer, &kept).with_context(|| format!("copy {} to {}", veer.display(), kept.display()))?;
    Ok(kept)
}

/// Panic messages name source files. With the names of this machine's directories in them, no two machines would
/// build the same binary. Cargo joins this with the flags in `.cargo/config.toml`.
fn nameless_places(root: &Path) -> Result<String> {
    let ask = |arguments: &[&str]| exec::output(Command::new("rustc").args(arguments).current_dir(root));
    let version = ask(&["--version", "--verbose"])?;
    let commit = version.lines().find_map(|line| line.strip_prefix("commit-hash: ")).unwrap_or("unknown");
    let sources = Path::new(ask(&["--print", "sysroot"])?.trim()).join("lib/rustlib/src/rust");
    let registry = workspace::cargo_home().map(|home| (home.join("registry/src"), "crates".to_owned()));
    // As rustc names its own sources where they are not installed.
    let places = [(root.to_path_buf(), "veer".to_owned()), (sources, format!("/rustc/{commit}"))];
    let flag = |(place, name): (PathBuf, String)| {
        format!("{:?}", format!("--remap-path-prefix={}={name}", place.display()))
    };
    let flags: Vec<String> = places.into_iter().chain(registry).map(flag).collect();
    Ok(format!("target.'cfg(target_os = \"linux\")'.rustflags = [{}]", flags.join(", ")))
}

#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

fn executable(line: &str) -> Option<(String, PathBuf)> {
    let message: Message = serde_json::from_str(line).ok()?;
    Some((message.target?.name, message.executable?))
}

/// Fails for a program that would look for its libraries.
pub(crate) fn require_static(path: &Path) -> Result<()> {
    if !is_static(path)? {
        bail!(
            "{} is not static: it would look for its libraries on nodes whose libc it does not know",
            path.display()
        );
    }
    Ok(())
}

/// A static program has no interpreter. readelf is where gcc is: both need the same binutils.
fn is_static(path: &Path) -> Result<bool> {
    let headers = exec::output(Command::new("readelf").args(["--program-headers", "--wide"]).arg(path))?;
    Ok(!headers.contains("INTERP"))
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
pub(crate) fn size_in_mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_read_from_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"veer"},"executable":"/t/veer"}"#;
        assert_eq!(executable(line), Some(("veer".to_owned(), PathBuf::from("/t/veer"))));
        let library = r#"{"reason":"compiler-artifact","target":{"name":"veer"},"executable":null}"#;
        assert_eq!(executable(library), None);
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#), None);
    }

    #[test]
    fn this_test_is_as_static_as_the_binaries_of_a_node() {
        assert!(is_static(&std::env::current_exe().unwrap()).unwrap());
    }
}
