//! The laws of the source text that no lint knows.
//!
//! A law is a pure function from one source file to the lines that break it ([`code`], [`text`]); this
//! module reads the files that git knows or would add, applies each law, and reports file, line and why.

mod code;
mod rust;
mod text;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::exec;

/// A file of the repository.
struct Source {
    /// From the repository's root, with slashes.
    path: String,
    text: String,
}

/// A line that breaks a law.
#[derive(Debug, PartialEq, Eq)]
struct Violation {
    path: String,
    line: usize,
    /// What was found and why it is against the law.
    text: String,
}

impl Source {
    fn violation(&self, line: usize, text: impl Into<String>) -> Violation {
        Violation { path: self.path.clone(), line, text: text.into() }
    }

    fn is_rust(&self) -> bool {
        Path::new(&self.path).extension().is_some_and(|extension| extension == "rs")
    }
}

/// Fails when a law is broken, after all violations are printed.
pub(crate) fn uphold(root: &Path) -> Result<()> {
    let sources = read(root)?;
    let violations = judge(&sources);
    for Violation { path, line, text } in &violations {
        exec::say(&format!("{path}:{line}: {text}"));
    }
    if violations.is_empty() {
        exec::say(&format!("{} files, no law broken", sources.len()));
        return Ok(());
    }
    bail!("laws broken: {} (CONTRIBUTING.md tells their reasons)", violations.len())
}

fn judge(sources: &[Source]) -> Vec<Violation> {
    let documents: Vec<&Source> =
        sources.iter().filter(|source| text::is_documentation(&source.path)).collect();
    let mut violations = Vec::new();
    for source in sources {
        violations.extend(text::no_place_of_one_machine(source));
        violations.extend(text::variables_are_documented(source, &documents));
        if source.is_rust() {
            violations.extend(text::fits_in_a_small_room(source));
            violations.extend(code::judge(source));
        }
    }
    violations
}

/// All text files but generated ones and licences, which are not ours to word.
fn read(root: &Path) -> Result<Vec<Source>> {
    let mut list = Command::new("git");
    list.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root);
    let names = exec::output(&mut list)?;
    let mut sources = Vec::new();
    for name in names.split('\0').filter(|name| !name.is_empty() && !is_exempt(name)) {
        let path = root.join(name);
        // git still lists what was deleted and not yet committed.
        if !path.is_file() {
            continue;
        }
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        if let Ok(text) = String::from_utf8(bytes) {
            sources.push(Source { path: name.to_owned(), text });
        }
    }
    Ok(sources)
}

fn is_exempt(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name == "Cargo.lock" || name.starts_with("LICENSE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violations_of_all_laws_are_reported_together() {
        let source = |path: &str, text: &str| Source { path: path.to_owned(), text: text.to_owned() };
        let sources = [
            source("README.md", "VEER_KNOWN"),
            source("agent/src/model/pod.rs", "use std::fs;\nconst V: &str = \"VEER_UNKNOWN\";\n"),
            source("deploy/values.yaml", concat!("path: /ho", "me/someone/veer\n")),
        ];
        let found: Vec<_> =
            judge(&sources).into_iter().map(|violation| (violation.path, violation.line)).collect();
        let expected =
            [("agent/src/model/pod.rs", 2), ("agent/src/model/pod.rs", 1), ("deploy/values.yaml", 1)];
        assert_eq!(found, expected.map(|(path, line)| (path.to_owned(), line)));
    }

    #[test]
    fn licences_and_the_lock_file_are_exempt() {
        assert!(is_exempt("Cargo.lock") && is_exempt("ebpf/LICENSE-MIT") && is_exempt("LICENSE"));
        assert!(!is_exempt("Cargo.toml") && !is_exempt("agent/src/license.rs"));
    }
}
