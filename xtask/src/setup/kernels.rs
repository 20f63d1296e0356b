//! Debian's kernels for `cargo xtask vm`: which, where they are kept, and how they are fetched.
//!
//! The newest package of each series is taken, because mirrors drop the older ones.
//! Never does: install a kernel.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::apt::Apt;
use crate::exec;

/// A kernel series.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Series {
    /// As it is asked for, and the directory it is kept in.
    pub(crate) name: &'static str,
    /// What the version begins with; nothing for the newest of all.
    prefix: &'static str,
}

/// Debian 11, 12 and 13, what its backports had between, and unstable.
pub(crate) const SERIES: [Series; 5] = [
    Series { name: "5.10", prefix: "5.10." },
    Series { name: "6.1", prefix: "6.1." },
    Series { name: "6.12", prefix: "6.12." },
    Series { name: "6.18", prefix: "6.18." },
    Series { name: "newest", prefix: "" },
];

/// Which have them.
const SUITES: [(&str, &str); 5] = [
    ("Debian-Security", "bullseye-security"),
    ("Debian-Security", "bookworm-security"),
    ("Debian-Security", "trixie-security"),
    ("Debian", "trixie-backports"),
    ("Debian", "sid"),
];

/// Where a series' packages are kept.
fn place(tools: &Path, series: &Series) -> PathBuf {
    tools.join("kernels").join(series.name)
}

/// The packages of a series that are there.
pub(super) fn look(tools: &Path, series: &Series) -> Option<Vec<PathBuf>> {
    let entries = fs::read_dir(place(tools, series)).ok()?;
    let mut packages: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    packages.sort();
    (!packages.is_empty()).then_some(packages)
}

/// Fetches what is missing.
pub(super) fn fetch(tools: &Path, missing: &[Series]) -> Result<()> {
    let apt = Apt::of_suites(&tools.join("kernels/apt"), &SUITES)?;
    let names = exec::output(apt.command("apt-cache").args(["pkgnames", "linux-image-"]))?;
    for series in missing {
        let image = newest(names.lines(), series.prefix)
            .with_context(|| format!("Debian's suites have no cloud kernel {}", series.name))?;
        let record = exec::output(apt.command("apt-cache").args(["show", "--no-all-versions", image]))?;
        let mut packages = vec![image.to_owned()];
        packages.extend(parts(&record));
        apt.download(&packages, &place(tools, series))?;
    }
    Ok(())
}

/// The newest cloud kernel whose version begins so.
fn newest<'a>(packages: impl Iterator<Item = &'a str>, prefix: &str) -> Option<&'a str> {
    let version = |name: &'a str| {
        let version = name.strip_prefix("linux-image-")?.strip_suffix("-cloud-amd64")?;
        version.starts_with(|c: char| c.is_ascii_digit()).then_some(version)
    };
    let wanted = packages.filter(|name| version(name).is_some_and(|version| version.starts_with(prefix)));
    wanted.max_by(|one, other| compare(version(one).unwrap_or_default(), version(other).unwrap_or_default()))
}

/// By their numbers, from the left.
fn compare(one: &str, other: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> {
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    numbers(one).cmp(&numbers(other))
}

/// The packages that a kernel has been divided into, from 7.x on.
fn parts(record: &str) -> Vec<String> {
    let depends = record.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
    let names = depends.split(", ").filter_map(|dependency| dependency.split(' ').next());
    let is_part = |name: &&str| ["linux-binary-", "linux-modules-"].iter().any(|part| name.starts_with(part));
    names.filter(is_part).map(str::to_owned).collect()
}

/// The series of these names; all of them, if none is named.
///
/// # Errors
/// In words, if there is none of that name.
pub(super) fn chosen(wanted: &[String]) -> Result<Vec<Series>, String> {
    let known = || SERIES.map(|series| series.name).join(", ");
    let find = |name: &String| {
        let found = SERIES.into_iter().find(|series| series.name == name);
        found.ok_or_else(|| format!("there is no kernel series {name}: {}", known()))
    };
    if wanted.is_empty() { Ok(SERIES.to_vec()) } else { wanted.iter().map(find).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_series_is_taken_by_its_numbers() {
        let packages = [
            "linux-image-6.12.9+deb13-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.117+deb13-cloud-amd64",
            "linux-image-6.12.117+deb13-cloud-amd64-unsigned",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-7.2.13+deb14-cloud-amd64",
            "linux-image-7.2.13+deb14-amd64",
            "linux-image-cloud-amd64",
        ];
        let newest = |prefix| newest(packages.into_iter(), prefix);
        assert_eq!(newest("6.12."), Some("linux-image-6.12.117+deb13-cloud-amd64"));
        assert_eq!(newest("6.1."), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest(""), Some("linux-image-7.2.13+deb14-cloud-amd64"));
        assert_eq!(newest("5.4."), None);
    }

    #[test]
    fn a_divided_kernel_names_its_parts() {
        let record = "Package: linux-image-7\nDepends: dracut | initramfs-tools (>= 0.120), linux-base-7.2 (= 7.2-1), \
                      linux-binary-7.2 (= 7.2-1), linux-modules-7.2 (= 7.2-1)\nSize: 1\n";
        assert_eq!(parts(record), ["linux-binary-7.2", "linux-modules-7.2"]);
        assert!(parts("Package: x\nDepends: kmod, linux-base (>= 4.3~)\n").is_empty());
    }

    #[test]
    fn a_series_that_does_not_exist_is_refused_with_those_that_do() {
        assert_eq!(chosen(&[]).unwrap().len(), SERIES.len());
        assert_eq!(chosen(&["6.1".to_owned()]).unwrap()[0].name, "6.1");
        assert!(chosen(&["4.4".to_owned()]).unwrap_err().contains("5.10, 6.1, 6.12, 6.18, newest"));
    }
}
