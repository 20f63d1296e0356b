//! What `cargo xtask test kube` needs beyond the rest: the programs of a Kubernetes cluster of one node.
//!
//! Only `setup --kube` installs them: building takes a quarter of an hour. Kubernetes and etcd are built by Go from
//! `tests/kubernetes`, whose `go.sum` has the hash of each module; containerd and runc are Debian's packages,
//! unpacked and not installed, so that the machine gets no service that it did not have. `KUBEBUILDER_ASSETS`, as
//! the ecosystem's envtest sets it, names an etcd and a kube-apiserver that are taken instead.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, Result};

use super::machine::{self, Machine};
use super::needs::{Need, PIP, State, Step};
use super::{Tools, containerd, missing, steps};
use crate::Unavailable;
use crate::exec::{quiet, step};

/// Of the module `tests/kubernetes`, which names it once more.
const KUBERNETES_VERSION: &str = "1.36.3";
/// The first program compiles what all of them share.
const BUILD_LIMIT: Duration = Duration::from_hours(1);

/// What Go builds: the name, the package, and what it is for.
const PROGRAMS: [(&str, &str, &str); 6] = [
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver", "the API of test kube's cluster"),
    ("etcd", "go.etcd.io/etcd/server/v3", "its memory"),
    ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager", "its controllers"),
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler", "its scheduler"),
    ("kubelet", "k8s.io/kubernetes/cmd/kubelet", "runs the pods of its node"),
    ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy", "Services on its node"),
];
/// What envtest's directory has, too.
const ENVTEST: [&str; 2] = ["kube-apiserver", "etcd"];

/// What the verb works with.
pub(crate) struct KubeTools {
    /// Those of every verb.
    pub(crate) tools: Tools,
    /// The directory of what Go has built.
    pub(crate) kubernetes: PathBuf,
    /// The directory of containerd, its shim, `ctr` and runc.
    pub(crate) containerd: PathBuf,
    /// The directory of the releases of other suites.
    pub(crate) other_containerds: PathBuf,
}

fn kubernetes_in(tools: &Path) -> PathBuf {
    tools.join(format!("kubernetes-{KUBERNETES_VERSION}"))
}

/// What the build keeps while it lasts: 4 GB.
fn build_cache_in(tools: &Path) -> PathBuf {
    tools.join("kubernetes.build")
}

/// What is there; everything that is missing is an error that names it.
pub(super) fn look(tools: Tools, directory: &Path) -> Result<KubeTools> {
    let needs = needs(directory);
    let missing = missing(&needs);
    if !missing.is_empty() {
        return Err(Unavailable(text(&missing)).into());
    }
    let [containerd, other_containerds] = [containerd::own_in(directory), containerd::others_in(directory)];
    Ok(KubeTools { tools, kubernetes: kubernetes_in(directory), containerd, other_containerds })
}

/// Installs what is missing.
pub(super) fn install(machine: &Machine) -> Result<()> {
    let needs = needs(&machine.tools);
    let missing_now = missing(&needs);
    let has = |name: &str| !missing_now.iter().any(|need| need.name == name);
    let debians: Vec<&str> = containerd::names().filter(|name| !has(name)).collect();
    if !debians.is_empty() {
        if !machine.has_apt {
            return Err(Unavailable(text(&missing_now)).into());
        }
        containerd::fetch(&machine.tools, &debians)?;
    }
    let wanted: Vec<_> = PROGRAMS.into_iter().filter(|(name, ..)| !has(name)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let go = needs
        .iter()
        .filter(|need| matches!(&need.state, State::Missing { steps, .. } if steps.contains(&Step::Go)));
    let go: Vec<&Need> = go.take(1).collect();
    if !go.is_empty() {
        steps::carry_out(machine, &go)?;
    }
    let go = machine::look_for_go(&machine.tools).context("Go was there a moment ago")?;
    for (name, package, _) in wanted {
        let what =
            format!("building {name} of Kubernetes {KUBERNETES_VERSION} (the first takes 10 to 20 minutes)");
        step(&what, &mut build(machine, &go, name, package), BUILD_LIMIT)?;
    }
    let cache = build_cache_in(&machine.tools);
    fs::remove_dir_all(&cache).with_context(|| format!("remove {}", cache.display()))
}

/// Go checks every module against `go.sum`. What it fetches and compiles goes into a cache of its own, so that it
/// can be removed when all is built, and is still there when somebody interrupts.
fn build(machine: &Machine, go: &Path, name: &str, package: &str) -> Command {
    let [major, minor] = [0, 1].map(|field| KUBERNETES_VERSION.split('.').nth(field).unwrap_or_default());
    let version = "-X k8s.io/component-base/version.git";
    let linker =
        format!("-s -w {version}Version=v{KUBERNETES_VERSION} {version}Major={major} {version}Minor={minor}");
    let cache = build_cache_in(&machine.tools);
    let mut command = Command::new("nice");
    command.arg(go).args(["build", "-mod=readonly", "-modcacherw", "-trimpath", "-ldflags", &linker, "-o"]);
    command.arg(kubernetes_in(&machine.tools).join(name)).arg(package);
    command.current_dir(machine.repository.join("tests/kubernetes"));
    // Half of the processors: each compiler takes a lot of memory.
    let jobs = available_parallelism().map_or(1, |count| count.get().div_ceil(2));
    command.env("GOFLAGS", format!("-buildvcs=false -p={jobs}")).env("GOWORK", "off").env("CGO_ENABLED", "0");
    command.env("GOCACHE", cache.join("compiled")).env("GOMODCACHE", cache.join("modules"));
    command
}

/// All of it, met or not.
pub(super) fn needs(tools: &Path) -> Vec<Need> {
    let built = |(name, _, reason): (&'static str, &'static str, &'static str)| {
        let given = env::var_os("KUBEBUILDER_ASSETS").filter(|_| ENVTEST.contains(&name));
        let path = given.as_ref().map_or_else(|| kubernetes_in(tools), PathBuf::from).join(name);
        let state = match (version(&path), given) {
            (Some(version), _) => State::Present { found: format!("{} ({version})", path.display()) },
            (None, Some(given)) => State::Missing {
                found: format!(
                    "KUBEBUILDER_ASSETS is {}, and no {name} runs there: unset it to have one built",
                    given.display()
                ),
                steps: Vec::new(),
            },
            (None, None) => {
                State::Missing { found: "not built yet".to_owned(), steps: steps_to_build(tools) }
            }
        };
        Need { name, reason, state }
    };
    containerd::needs(tools).into_iter().chain(PROGRAMS.into_iter().map(built)).collect()
}

fn steps_to_build(tools: &Path) -> Vec<Step> {
    if machine::look_for_go(tools).is_some() {
        vec![Step::Kube]
    } else if machine::look_for_pip().is_some() {
        vec![Step::Go, Step::Kube]
    } else {
        vec![Step::Packages(PIP), Step::Go, Step::Kube]
    }
}

/// What it says of its version, which is enough to see that it runs.
pub(super) fn version(program: &Path) -> Option<String> {
    let text = quiet(Command::new(program).arg("--version"))?;
    let words = text.lines().next()?.split_whitespace();
    words
        .map(str::to_owned)
        .find(|word| word.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit()))
}

fn text(missing: &[&Need]) -> String {
    let mut lines = vec!["something is missing that a Kubernetes node needs:".to_owned()];
    for need in missing {
        let State::Missing { found, .. } = &need.state else { continue };
        lines.push(format!("  {} ({}): {found}", need.name, need.reason));
    }
    lines.push("As root on Debian: cargo xtask setup --kube".to_owned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_directory_lacks_every_program_and_the_error_names_the_way_out() {
        let directory = tempfile::tempdir().unwrap();
        let needs = needs(directory.path());
        let missing = missing(&needs);
        let text = text(&missing);
        let built = PROGRAMS.into_iter().map(|(name, ..)| name).filter(|name| !ENVTEST.contains(name));
        for name in built.chain(containerd::names()) {
            assert!(text.contains(&format!("  {name} (")), "{text}");
        }
        assert!(text.ends_with("cargo xtask setup --kube"), "{text}");
    }

    #[test]
    fn the_module_that_is_built_is_of_the_version_that_is_looked_for() {
        let module = include_str!("../../../tests/kubernetes/go.mod");
        assert!(module.contains(&format!("k8s.io/kubernetes v{KUBERNETES_VERSION} ")), "{module}");
    }
}
