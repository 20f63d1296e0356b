//! What `cargo xtask vm` needs beyond the rest: an emulator, a few programs for the guest, and kernels.
//!
//! Only `setup --vm` installs them: they are large, and nothing else needs them. The verb itself looks, and names
//! what is missing.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

use super::kernels::{self, Series};
use super::machine::Machine;
use super::needs::{Need, State, Step};
use super::{Tools, missing, steps};
use crate::{Unavailable, workspace};

const QEMU: &str = "qemu-system-x86_64";
const BUSYBOX: &str = "busybox";

/// Programs, the package of each, and what it is for.
const PROGRAMS: [(&str, &[&str], &str); 5] = [
    (QEMU, &["qemu-system-x86"], "the virtual machines of vm"),
    (BUSYBOX, &["busybox-static"], "the guest's shell"),
    ("depmod", &["kmod"], "lists the guest's modules, and its modprobe loads them"),
    ("xz", &["xz-utils"], "unpacks the guest's modules"),
    ("dpkg-deb", &["dpkg"], "unpacks kernels"),
];

/// What the verb works with.
pub(crate) struct VmTools {
    /// Those of every verb.
    pub(crate) tools: Tools,
    /// The emulator.
    pub(crate) qemu: PathBuf,
    /// For the guest.
    pub(crate) busybox: PathBuf,
    /// Names of series, and their packages.
    pub(crate) kernels: Vec<(String, Vec<PathBuf>)>,
}

/// What is there; everything that is missing is an error that names it.
pub(super) fn look(tools: Tools, directory: &Path, wanted: &[Series]) -> Result<VmTools> {
    let needs = needs(directory, wanted);
    let missing = missing(&needs);
    if !missing.is_empty() {
        return Err(Unavailable(text(&missing)).into());
    }
    let program = |name| workspace::program(name).ok_or_else(|| anyhow!("{name} was there a moment ago"));
    let kernels =
        wanted.iter().filter_map(|series| Some((series.name.to_owned(), kernels::look(directory, series)?)));
    Ok(VmTools { tools, qemu: program(QEMU)?, busybox: program(BUSYBOX)?, kernels: kernels.collect() })
}

/// Installs what is missing.
pub(super) fn install(machine: &Machine) -> Result<()> {
    let needs = needs(&machine.tools, &kernels::SERIES);
    let missing_now = missing(&needs);
    let packages: Vec<&Need> = missing_now.iter().copied().filter(|need| !is_kernel(need)).collect();
    if (!packages.is_empty() && !machine.may_install()) || !machine.has_apt {
        return Err(Unavailable(text(&missing_now)).into());
    }
    if !packages.is_empty() {
        steps::carry_out(machine, &packages)?;
    }
    let series: Vec<Series> = kernels::SERIES
        .into_iter()
        .filter(|series| kernels::look(&machine.tools, series).is_none())
        .collect();
    if series.is_empty() { Ok(()) } else { kernels::fetch(&machine.tools, &series) }
}

/// All of it, met or not.
pub(super) fn needs(directory: &Path, wanted: &[Series]) -> Vec<Need> {
    let program = |(name, packages, reason): (&'static str, &'static [&'static str], &'static str)| {
        let state = match workspace::program(name) {
            Some(path) => State::Present { found: path.display().to_string() },
            None => State::Missing { found: "not on PATH".to_owned(), steps: vec![Step::Packages(packages)] },
        };
        Need { name, reason, state }
    };
    let kernel = |series: &Series| {
        let state = match kernels::look(directory, series) {
            Some(packages) => State::Present { found: names(&packages) },
            None => State::Missing { found: "not fetched yet".to_owned(), steps: vec![Step::Kernel] },
        };
        Need { name: series.name, reason: "a kernel for vm", state }
    };
    PROGRAMS.into_iter().map(program).chain(wanted.iter().map(kernel)).collect()
}

fn is_kernel(need: &Need) -> bool {
    matches!(&need.state, State::Missing { steps, .. } if steps.contains(&Step::Kernel))
}

fn names(packages: &[PathBuf]) -> String {
    let names =
        packages.iter().filter_map(|path| path.file_stem()).map(|name| name.to_string_lossy().into_owned());
    names.collect::<Vec<_>>().join(", ")
}

fn text(missing: &[&Need]) -> String {
    let mut lines = vec!["something is missing that the virtual machines need:".to_owned()];
    let mut packages = Vec::new();
    for need in missing {
        let State::Missing { found, steps } = &need.state else { continue };
        lines.push(format!("  {} ({}): {found}", need.name, need.reason));
        for step in steps {
            if let Step::Packages(names) = step {
                packages.extend(names.iter().copied());
            }
        }
    }
    lines.push("As root on Debian: cargo xtask setup --vm".to_owned());
    if !packages.is_empty() {
        lines.push(format!("By hand: apt-get install --no-install-recommends {}", packages.join(" ")));
    }
    if missing.iter().any(|need| is_kernel(need)) {
        lines
            .push("A kernel of your own needs none of Debian's: cargo xtask vm --kernel-deb FILE".to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_ways_to_it() {
        let missing = [
            Need {
                name: QEMU,
                reason: "why",
                state: State::Missing {
                    found: "not on PATH".to_owned(),
                    steps: vec![Step::Packages(&["qemu-system-x86"])],
                },
            },
            Need {
                name: "6.1",
                reason: "a kernel",
                state: State::Missing { found: "not fetched yet".to_owned(), steps: vec![Step::Kernel] },
            },
        ];
        let text = text(&missing.iter().collect::<Vec<_>>());
        for words in
            ["qemu-system-x86_64 (why)", "setup --vm", "apt-get install", "qemu-system-x86", "--kernel-deb"]
        {
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn a_kernel_that_was_not_fetched_is_a_need_that_is_missing() {
        let directory = tempfile::tempdir().unwrap();
        let needs = needs(directory.path(), &kernels::SERIES);
        assert_eq!(missing(&needs).into_iter().filter(|need| is_kernel(need)).count(), kernels::SERIES.len());
    }
}
