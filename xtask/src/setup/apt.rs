//! Debian's packages of suites that the machine does not have: fetched, and not installed.
//!
//! Owns: a directory of apt's own, so that neither the machine's sources nor its packages change. The archive's address
//! is the one that the machine's own apt has; its signatures are checked by apt with Debian's keys.
//! Never does: install or unpack.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::exec::{self, step};

/// Debian's, which all suites are signed with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const LIMIT: Duration = Duration::from_mins(15);

/// A configuration of apt's with nothing of the machine's but the way to the archive.
pub(super) struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// In this directory, with the lists of these suites: the label of the archive that has one, and its name.
    pub(super) fn of_suites(directory: &Path, suites: &[(&str, &str)]) -> Result<Self> {
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
        let sources = sources(&targets, suites)?;
        for (name, text) in [("sources.list", sources.as_str()), ("status", "")] {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        let apt = Self { directory: directory.to_owned() };
        step("reading the lists of Debian's suites", apt.command("apt-get").arg("update"), LIMIT)?;
        Ok(apt)
    }

    pub(super) fn command(&self, program: &str) -> Command {
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
    pub(super) fn download(&self, packages: &[String], into: &Path) -> Result<()> {
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
fn sources(targets: &str, suites: &[(&str, &str)]) -> Result<String> {
    let mut lines = Vec::new();
    for (label, suite) in suites {
        let address = targets.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(' '));
        let Some(address) = address else {
            bail!("apt's sources name no archive with the label {label}, whose suite {suite} is wanted");
        };
        lines.push(format!("deb [signed-by={KEYRING}] {address} {suite} main\n"));
    }
    Ok(lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_at_the_machines_own_addresses_and_signed_by_debian() {
        let suites = [("Debian-Security", "bullseye-security"), ("Debian", "sid")];
        let targets =
            "Debian http://mirror.example/debian/\nDebian-Security http://mirror.example/security/\n";
        let sources = sources(targets, &suites).unwrap();
        assert!(sources.starts_with(&format!(
            "deb [signed-by={KEYRING}] http://mirror.example/security/ bullseye-security main\n"
        )));
        assert!(sources.ends_with("http://mirror.example/debian/ sid main\n"), "{sources}");
        assert!(
            super::sources("Debian http://x/\n", &suites)
                .unwrap_err()
                .to_string()
                .contains("Debian-Security")
        );
    }
}
