//! The laws on text of any kind: length, places, environment variables.

use super::rust::{self, Named};
use super::{Source, Violation};

/// A file that is longer is two.
const MAX_LINES: usize = 500;

/// Places of one machine or one network. In two parts each, so that this file keeps its own law.
const PLACES: [&str; 9] = [
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/wo", "rk/"),
    concat!("/Us", "ers/"),
    concat!("index.crates", ".io"),
    concat!("static.crates", ".io"),
    concat!("pypi", ".org"),
    concat!("files.python", "hosted.org"),
    concat!("deb.debian", ".org"),
];

/// What begins as such a place and is one of a whole platform: where GKE has the CNI plugins.
const PLATFORMS: [&str; 1] = [concat!("/ho", "me/kubernetes/bin")];

const PREFIX: &str = concat!("VEER", "_");

/// Where a variable counts as documented.
pub(super) fn is_documentation(path: &str) -> bool {
    matches!(path, "README.md" | "CONTRIBUTING.md") || path.starts_with("docs/")
}

pub(super) fn fits_in_a_small_room(source: &Source) -> Option<Violation> {
    let lines = source.text.lines().count();
    (lines > MAX_LINES)
        .then(|| source.violation(MAX_LINES + 1, format!("{lines} lines: a file has {MAX_LINES} at most")))
}

pub(super) fn no_place_of_one_machine(source: &Source) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (number, line) in (1..).zip(source.text.lines()) {
        for place in PLACES {
            if begins_in(line, place) {
                violations.push(
                    source.violation(number, format!("`{place}` is a place of one machine or network")),
                );
            }
        }
    }
    violations
}

/// Whether the line holds the place at the beginning of a path or a host, not in the middle of another.
fn begins_in(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        let is_platforms =
            PLATFORMS.iter().any(|known| line.get(at..).is_some_and(|text| text.starts_with(known)));
        !is_platforms && !before.is_some_and(|before| before.is_alphanumeric() || "_-.}".contains(before))
    })
}

/// Whoever sets a variable finds it in the documentation.
pub(super) fn variables_are_documented(source: &Source, documents: &[&Source]) -> Vec<Violation> {
    if is_documentation(&source.path) || source.path == "CHANGELOG.md" {
        return Vec::new();
    }
    let documented =
        |name: &str| documents.iter().any(|document| variables(&document.text).any(|known| known == name));
    let mut violations = Vec::new();
    for (line, text) in texts(source) {
        for name in variables(&text).filter(|name| !documented(name)) {
            violations.push(
                source.violation(line, format!("{name} is in neither README.md, CONTRIBUTING.md nor docs/")),
            );
        }
    }
    violations
}

/// Rust: the strings outside of tests. Anything else: each line.
fn texts(source: &Source) -> Vec<(usize, String)> {
    if !source.is_rust() {
        return (1..).zip(source.text.lines().map(str::to_owned)).collect();
    }
    // A file that is no Rust is reported by the laws on code.
    let strings = rust::names(&source.text).map(|names| names.strings).unwrap_or_default();
    strings
        .into_iter()
        .filter(|string| !string.in_test)
        .map(|Named { text, line, .. }| (line, text))
        .collect()
}

/// The names of our variables in a text.
fn variables(text: &str) -> impl Iterator<Item = &str> {
    let word = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    text.split(move |c: char| !word(c))
        .filter(|name| name.strip_prefix(PREFIX).is_some_and(|rest| !rest.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_file_of_500_lines_is_small_and_one_of_501_is_not() {
        assert_eq!(fits_in_a_small_room(&source("a.rs", &"x\n".repeat(500))), None);
        let violation = fits_in_a_small_room(&source("a.rs", &"x\n".repeat(501))).unwrap();
        assert_eq!(violation.line, 501);
    }

    #[test]
    fn places_of_one_machine_are_found() {
        for place in PLACES {
            for line in [
                format!("path = \"{place}x\""),
                place.to_owned(),
                format!("see https://{place}"),
                format!("({place})"),
            ] {
                let found = no_place_of_one_machine(&source("a.md", &format!("first\n{line}\n")));
                assert_eq!(found.iter().map(|violation| violation.line).collect::<Vec<_>>(), [2], "{line}");
            }
        }
    }

    #[test]
    fn a_path_that_only_contains_such_a_word_is_none() {
        for line in [
            "github.com/someone/work/x",
            "chroot/root/x",
            "${ROOT}/home/x",
            "crates.io",
            "$HOME/.cache",
            "/network/",
        ] {
            assert_eq!(no_place_of_one_machine(&source("a.md", line)), [], "{line}");
        }
    }

    #[test]
    fn a_variable_must_be_documented_by_its_whole_name() {
        let name = |rest: &str| format!("{PREFIX}{rest}");
        let document = source("README.md", &format!("| `{}` |", name("RUN_DIR")));
        let broken = |path: &str, text: &str| {
            let found = variables_are_documented(&source(path, text), &[&document]);
            found.into_iter().map(|violation| violation.line).collect::<Vec<_>>()
        };
        assert_eq!(
            broken("agent/src/a.rs", &format!("\n#[arg(env = \"{}\")] struct S;", name("RUN_DIR"))),
            [0; 0]
        );
        assert_eq!(broken("agent/src/a.rs", &format!("\n#[arg(env = \"{}\")] struct S;", name("RUN"))), [2]);
        assert_eq!(broken("deploy/a.yaml", &format!("- name: {}", name("OTHER"))), [1]);
        assert_eq!(
            broken("agent/src/a.rs", &format!("static {}: u32 = 0; // {}", name("X"), name("Y"))),
            [0; 0]
        );
        assert_eq!(broken("agent/src/a.rs", &format!("#[test] fn t() {{ f(\"{}\"); }}", name("Z"))), [0; 0]);
    }
}
