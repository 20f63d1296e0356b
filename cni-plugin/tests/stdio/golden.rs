//! Golden cases: files of what the plugin is given and of all that it gives.
//!
//! A case is a file of sections, each headed by a line `-- name --`. What comes before the first one says
//! what the case shows. Given are `environment`, `agent` and `stdin`; expected are `request` (what the
//! agent received), `stdout`, `stderr` and `exit`. `$RUN` is the run directory, `$NETNS` a network namespace and
//! `$VERSION` the plugin's version. `UPDATE_GOLDEN=1` rewrites what is expected: read the diff.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use veer_common::cni::SOCKET_NAME;
use veer_tests::netns::NetNs;

use crate::agent::{Agent, Behaviour, Received};
use crate::plugin;

const EXPECTED: [&str; 4] = ["request", "stdout", "stderr", "exit"];

/// The names of all directories of cases.
pub(crate) fn directories() -> Vec<String> {
    let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Runs all cases of a directory below `tests/golden`.
pub(crate) fn check(directory: &str) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(directory);
    let mut paths: Vec<PathBuf> =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} has no cases", directory.display());
    let netns = NetNs::new().unwrap();
    let wrong: Vec<String> = paths.iter().filter_map(|path| differs(path, &netns.path())).collect();
    assert!(wrong.is_empty(), "{} of {} cases differ:\n{}", wrong.len(), paths.len(), wrong.join("\n"));
}

/// Runs one case; what is expected and what came, if they differ.
fn differs(path: &Path, netns: &Path) -> Option<String> {
    let expected = fs::read_to_string(path).unwrap();
    let run = TempDir::with_prefix("veer-cni-test-").unwrap();
    let names = Names { run: run.path().to_str().unwrap(), netns: netns.to_str().unwrap() };
    let case = Case::parse(&expected);
    let found = case.with(&outcome(&case, &names));
    if found == expected {
        return None;
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(path, found).unwrap();
        return None;
    }
    Some(format!("== {}, expected:\n{expected}\n== found:\n{found}", path.display()))
}

fn outcome(case: &Case<'_>, names: &Names<'_>) -> [String; 4] {
    let environment = names.insert(case.section("environment"));
    let variables: Vec<(&str, &str)> =
        environment.lines().map(|line| line.split_once('=').unwrap_or_else(|| panic!("{line}"))).collect();
    let run_dir = Path::new(names.run);
    let agent = match case.section("agent").trim() {
        "absent" => None,
        "gone" => {
            // The socket's file outlives its listener.
            drop(UnixListener::bind(run_dir.join(SOCKET_NAME)).unwrap());
            None
        }
        behaves => Some(Agent::start(run_dir, behaviour(behaves))),
    };
    let outcome = plugin::run(&variables, names.insert(case.section("stdin")).as_bytes());
    let received = agent.map(Agent::stop).unwrap_or_default();
    let requests: String = received.iter().map(|one| request(one, names)).collect();
    [requests, outcome.stdout, outcome.stderr, format!("{}\n", outcome.exit)].map(|text| names.remove(&text))
}

fn behaviour(agent: &str) -> Behaviour {
    match agent {
        "silent" => Behaviour::Silence,
        "hangs up" => Behaviour::HangUp,
        "rejects" => Behaviour::Rejection,
        "says HTTP" => Behaviour::Bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n".into()),
        "says a newer word" => Behaviour::Bytes(b"\x12\0\0\0{\"result\":\"newer\"}".into()),
        reply => {
            Behaviour::Reply(serde_json::from_str(reply).unwrap_or_else(|error| panic!("{reply}: {error}")))
        }
    }
}

fn request(received: &Received, names: &Names<'_>) -> String {
    let with = match received.descriptors.len() {
        0 => "no descriptor",
        _ if received.has_netns(Path::new(names.netns)) => "the netns",
        _ => "something else than the netns",
    };
    format!("{}\nwith {with}\n", received.request)
}

/// What differs from run to run.
struct Names<'a> {
    run: &'a str,
    netns: &'a str,
}

impl Names<'_> {
    fn pairs(&self) -> [(&str, &str); 3] {
        [("$RUN", self.run), ("$NETNS", self.netns), ("$VERSION", env!("CARGO_PKG_VERSION"))]
    }

    fn insert(&self, text: &str) -> String {
        self.pairs().iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    }

    /// The version is taken off only where it stands behind the plugin's name: it looks like a CNI version.
    fn remove(&self, text: &str) -> String {
        let [run, netns, (version, number)] = self.pairs();
        let text = text.replace(run.1, run.0).replace(netns.1, netns.0);
        text.replace(&format!("veer-cni {number}"), &format!("veer-cni {version}"))
    }
}

/// A case, taken apart.
struct Case<'a> {
    title: &'a str,
    sections: Vec<(&'a str, &'a str)>,
}

impl<'a> Case<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split("-- ");
        let title = parts.next().unwrap_or_default();
        let sections =
            parts.map(|part| part.split_once(" --\n").unwrap_or_else(|| panic!("{part}"))).collect();
        Self { title, sections }
    }

    fn section(&self, name: &str) -> &'a str {
        let found = self.sections.iter().find(|(section, _)| *section == name);
        found.unwrap_or_else(|| panic!("{}: no section {name}", self.title)).1
    }

    /// The case with other expectations.
    fn with(&self, expected: &[String; 4]) -> String {
        let mut text = self.title.to_owned();
        let given = self.sections.iter().copied().filter(|(name, _)| !EXPECTED.contains(name));
        for (name, section) in given.chain(EXPECTED.into_iter().zip(expected.iter().map(String::as_str))) {
            text.extend(["-- ", name, " --\n", section]);
        }
        text
    }
}
