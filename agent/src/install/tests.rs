//! Each vendor's directory (`golden/`), through its whole life, and rules that hold for any directory.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::*;

mod life;
mod properties;
mod refused;

/// An entry as an agent of this release writes it.
pub(super) fn entry() -> Entry {
    Entry {
        run_dir: "/run/veer".into(),
        log_level: "info".to_owned(),
        exclude_namespaces: ["kube-system".to_owned()].into(),
    }
}

/// What an agent wants; in the mode that is named, or the one that fits.
pub(super) fn wish(mode: Option<Mode>) -> Wish {
    Wish { mode, entry: entry(), primary: None, reads_dropins: false, passes_broken: false }
}

/// A directory with these files.
pub(super) fn directory<const N: usize>(files: [(&str, &str); N]) -> Directory {
    let file = |(name, text): (&str, &str)| (name.to_owned(), File::new(text.as_bytes().to_vec()));
    Directory { files: files.into_iter().map(file).collect() }
}

/// The directory after the steps; after each of them `judge` sees it.
pub(super) fn taken(before: &Directory, steps: &[Step], judge: impl Fn(&Directory)) -> Directory {
    let mut state = before.clone();
    for step in steps {
        state.take(step);
        judge(&state);
    }
    state
}

/// The directory after a plan, of which nothing is left to do.
#[track_caller]
pub(super) fn installed(before: &Directory, wish: &Wish) -> (Directory, Placed) {
    let Plan { steps, placed } = plan(before, wish).unwrap();
    let after = taken(before, &steps, |_| {});
    assert_eq!(
        plan(&after, wish).unwrap(),
        Plan { steps: Vec::new(), placed: placed.clone() },
        "the second time"
    );
    (after, placed)
}

/// The types that the runtime calls, in order; without a network none.
pub(super) fn called(directory: &Directory, reads_dropins: bool) -> Vec<String> {
    let first = directory.candidates().next().and_then(|name| directory.network(name));
    let Some(Ok(network)) = first else { return Vec::new() };
    let name = network.name.clone().unwrap_or_default();
    let dropins =
        directory.dropins(&name).filter(|_| reads_dropins && network.is_list && !network.only_inlined);
    let types = dropins.filter_map(|(_, text)| parse_type(text));
    network.plugins.iter().cloned().chain(types).collect()
}

fn parse_type(text: &str) -> Option<String> {
    Some(serde_json::from_str::<serde_json::Value>(text).ok()?["type"].as_str()?.to_owned())
}

/// A vendor's directory, as it is committed.
fn golden(case: &str) -> Directory {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/install/golden").join(case);
    let mut found = Directory::default();
    let mut read = |path: &Path, name: String| {
        let bytes = fs::read(path).unwrap();
        // As the agent reads a directory.
        if Directory::reads(&name) {
            found.files.insert(name, File::new(bytes));
        }
    };
    for entry in fs::read_dir(&root).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !path.is_dir() {
            read(&path, name);
            continue;
        }
        for below in fs::read_dir(&path).unwrap() {
            let path = below.unwrap().path();
            read(&path, format!("{name}/{}", path.file_name().unwrap().to_str().unwrap()));
        }
    }
    found
}

/// A directory as text. What is as it was before is only named.
fn shown(directory: &Directory, before: &Directory) -> String {
    let mut text = String::new();
    for (name, file) in &directory.files {
        let content = String::from_utf8(file.content.clone().unwrap()).unwrap();
        if before.files.get(name) == Some(file) {
            writeln!(text, "== {name}: as it was").unwrap();
        } else {
            writeln!(text, "== {name}\n{content}").unwrap();
        }
    }
    text
}

fn vendors() -> BTreeMap<String, Directory> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/install/golden");
    let cases = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    cases.map(|case| (case.clone(), golden(&case))).collect()
}
