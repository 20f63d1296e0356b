//! Debian's kernels for `cargo xtask vm`: which, where they are kept, and how they are fetched.
//!
//! Owns: a directory of apt's own below the tools, so that neither the machine's sources nor its packages change.
//! The archive's address is the one that the machine's own apt has; its signatures are checked by apt with Debian's
//! keys, and the newest package of each series is taken, because mirrors drop the older ones.
//! Never does: install a kernel.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::exec::{self, step};

/// Debian's, which all suites are signed with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const LIMIT: Duration = Duration::from_mins(15);

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

/// Which archive has them, by its label, and the suite.
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
    let apt = Apt::prepare(tools)?;
    step("reading the lists of Debian's suites", apt.command("apt-get").arg("update"), LIMIT)?;
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

/// A configuration of apt's with nothing of the machine's but the way to the archive.
struct Apt {
    directory: PathBuf,
}

impl Apt {
    fn prepare(tools: &Path) -> Result<Self> {
        let directory = tools.join("kernels/apt");
        for below in ["lists/partial", "cache/archives/partial"] {
            let path = directory.join(below);
            fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        let targets = exec::output(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(LABEL) $(REPO_URI)",
            "Created-By: Packages",
        ]))?;
        let sources = sources(&targets)?;
        for (name, text) in [("sources.list", sources.as_str()), ("status", "")] {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(Self { directory })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut option = |name: &str, value: &str| {
            command.arg("-o").arg(format!("{name}={value}"));
        };
        let at = |name: &str| self.directory.join(name).display().to_string();
        option("Dir::Etc::SourceList", &at("sources.list"));
        option("Dir::Etc::SourceParts", "/dev/null");
        option("Dir::Etc::PreferencesParts", "/dev/null");
        option("Dir::State::Lists", &at("lists"));
        option("Dir::State::Status", &at("status"));
        option("Dir::Cache", &at("cache"));
        option("APT::Architecture", "amd64");
        option("APT::Architectures", "amd64");
        option("Acquire::Languages", "none");
        // Its own user could not write into a directory of ours.
        option("APT::Sandbox::User", "");
        command
    }

    /// Into a directory that is there only when all of them are.
    fn download(&self, packages: &[String], into: &Path) -> Result<()> {
        let mut draft = into.as_os_str().to_owned();
        draft.push(".draft");
        let draft = PathBuf::from(draft);
        for path in [&draft, into] {
            if path.exists() {
                fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
        fs::create_dir_all(&draft).with_context(|| format!("make {}", draft.display()))?;
        let mut command = self.command("apt-get");
        command.arg("download").args(packages).current_dir(&draft);
        step(&format!("fetching {}", packages.first().map_or("", String::as_str)), &mut command, LIMIT)?;
        fs::rename(&draft, into).with_context(|| format!("name {}", into.display()))
    }
}

/// A source for each suite, at the address that the machine's own sources of that archive have.
fn sources(targets: &str) -> Result<String> {
    let mut lines = Vec::new();
    for (label, suite) in SUITES {
        let address = targets.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(' '));
        let Some(address) = address else {
            bail!("apt's sources name no archive with the label {label}, whose suite {suite} has kernels");
        };
        lines.push(format!("deb [signed-by={KEYRING}] {address} {suite} main\n"));
    }
    Ok(lines.concat())
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
    fn sources_are_at_the_machines_own_addresses_and_signed_by_debian() {
        let targets =
            "Debian http://mirror.example/debian/\nDebian-Security http://mirror.example/security/\n";
        let sources = sources(targets).unwrap();
        assert!(sources.starts_with(&format!(
            "deb [signed-by={KEYRING}] http://mirror.example/security/ bullseye-security main\n"
        )));
        assert!(sources.ends_with("http://mirror.example/debian/ sid main\n"), "{sources}");
        assert!(super::sources("Debian http://x/\n").unwrap_err().to_string().contains("Debian-Security"));
    }

    #[test]
    fn a_series_that_does_not_exist_is_refused_with_those_that_do() {
        assert_eq!(chosen(&[]).unwrap().len(), SERIES.len());
        assert_eq!(chosen(&["6.1".to_owned()]).unwrap()[0].name, "6.1");
        assert!(chosen(&["4.4".to_owned()]).unwrap_err().contains("5.10, 6.1, 6.12, 6.18, newest"));
    }
}
