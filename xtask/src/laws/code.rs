//! The laws on what code names: pure modules, network namespaces, processes, the wall clock.

use super::rust::{self, Named, Names};
use super::{Source, Violation};

/// Where decisions are made: these take facts and give plans, and open nothing.
const PURE: [&str; 10] = [
    "agent/src/model",
    "agent/src/capture",
    "agent/src/conflist",
    "agent/src/doctor",
    "agent/src/install",
    "agent/src/locate",
    "agent/src/explain",
    "agent/src/plan",
    "cni-plugin/src/netconf",
    "common/src",
];
/// What a pure module does not name.
const IMPURE: [&str; 13] = [
    "tokio",
    "aya",
    "kube",
    "nix",
    "rustix",
    "libc",
    "socket2",
    "std::fs",
    "std::process",
    "std::env",
    "std::thread",
    "std::os",
    "crate::platform",
];
/// `aya::Pod` can only be implemented where the types are.
const KNOWN_EXCEPTION: (&str, &str) = ("common/src/pod.rs", "aya");

/// The one place of the agent that enters a netns.
const NETNS: &str = "agent/src/platform/netns.rs";
/// The test kit enters netns as well: it makes them.
const TEST_KIT: &str = "tests/src/";
/// setns(2) as the crates call it.
const ENTERS_NAMESPACE: [&str; 3] = ["setns", "move_into_link_name_space", "move_into_thread_name_spaces"];
/// The one place of what runs on nodes that reads the wall clock.
const WALL_CLOCK: &str = "agent/src/wall_clock.rs";
/// Written in two parts, so that this file does not break its own law.
const OWN_NETNS: &str = concat!("/proc/self", "/ns/net");

/// All violations of one Rust file.
pub(super) fn judge(source: &Source) -> Vec<Violation> {
    match rust::names(&source.text) {
        Ok(names) => {
            let laws = [
                pure_modules_open_nothing,
                netns_is_entered_in_one_place,
                own_netns_is_per_thread,
                platform_starts_processes,
                the_wall_clock_is_read_in_one_place,
            ];
            laws.iter().flat_map(|law| law(source, &names)).collect()
        }
        Err(error) => vec![source.violation(1, format!("is no Rust: {error}"))],
    }
}

fn pure_modules_open_nothing(source: &Source, names: &Names) -> Vec<Violation> {
    let is_pure = PURE.iter().any(|module| is_in_module(&source.path, module)) && !is_test_file(&source.path);
    let named = names.paths.iter().filter(|path| is_pure && !path.in_test);
    let broken =
        named.filter_map(|path| Some((path, IMPURE.iter().find(|impure| begins(&path.text, impure))?)));
    let broken = broken.filter(|(_, impure)| (source.path.as_str(), **impure) != KNOWN_EXCEPTION);
    let violation = |(path, _): (&Named, _)| {
        source.violation(path.line, format!("`{}` in a pure module: it decides, platform/ acts", path.text))
    };
    broken.map(violation).collect()
}

fn netns_is_entered_in_one_place(source: &Source, names: &Names) -> Vec<Violation> {
    if source.path == NETNS || source.path.starts_with(TEST_KIT) {
        return Vec::new();
    }
    let enters =
        |path: &&Named| path.text.rsplit("::").next().is_some_and(|last| ENTERS_NAMESPACE.contains(&last));
    let violation = |path: &Named| {
        let why = "a thread that fails to come back is in the wrong netns, so it is entered in";
        source.violation(path.line, format!("`{}`: {why} {NETNS} and the test kit alone", path.text))
    };
    names.paths.iter().filter(enters).map(violation).collect()
}

fn own_netns_is_per_thread(source: &Source, names: &Names) -> Vec<Violation> {
    if source.path == NETNS {
        return Vec::new();
    }
    let violation = |string: &Named| {
        source.violation(
            string.line,
            format!("{OWN_NETNS} is the main thread's netns, not the caller's: ask {NETNS}"),
        )
    };
    names.strings.iter().filter(|string| string.text.contains(OWN_NETNS)).map(violation).collect()
}

fn platform_starts_processes(source: &Source, names: &Names) -> Vec<Violation> {
    let path = &source.path;
    let is_agent =
        path.starts_with("agent/src/") && !path.starts_with("agent/src/platform/") && !is_test_file(path);
    let starts = |path: &&Named| {
        is_agent
            && !path.in_test
            && (path.text.contains("process::Command") || path.text.ends_with("Command::new"))
    };
    let violation = |path: &Named| {
        source.violation(path.line, format!("`{}`: only platform/ starts processes", path.text))
    };
    names.paths.iter().filter(starts).map(violation).collect()
}

fn the_wall_clock_is_read_in_one_place(source: &Source, names: &Names) -> Vec<Violation> {
    let path = &source.path;
    let is_on_nodes = ["agent/src/", "cni-plugin/src/"].iter().any(|place| path.starts_with(place));
    let is_bound = is_on_nodes && path != WALL_CLOCK && !is_test_file(path);
    let reads = |path: &&Named| is_bound && !path.in_test && path.text.ends_with("SystemTime::now");
    let violation = |path: &Named| {
        source.violation(path.line, format!("`{}`: it jumps; Instant waits, {WALL_CLOCK} tells", path.text))
    };
    names.paths.iter().filter(reads).map(violation).collect()
}

/// Whether the path is `module` or below it: also once `module.rs` has become a directory.
fn is_in_module(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// `mod tests;` under `#[cfg(test)]`, as every module of the house has it.
fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

fn begins(path: &str, name: &str) -> bool {
    path.strip_prefix(name)
        .is_some_and(|rest| rest.starts_with("::") || (rest.is_empty() && name.contains("::")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        judge(&Source { path: path.to_owned(), text: text.to_owned() })
            .into_iter()
            .map(|violation| violation.line)
            .collect()
    }

    #[test]
    fn a_pure_module_names_no_runtime_no_kernel_and_no_files() {
        for bad in [
            "use std::fs;",
            "use std::{fmt, process::ExitStatus};",
            "use tokio::sync::mpsc;",
            "fn f() { let _ = std::env::var(\"HOME\"); }",
            "fn f(n: &crate::platform::Netns) {}",
            "use nix::sched::CloneFlags;",
        ] {
            for path in [
                "agent/src/model/pod.rs",
                "agent/src/plan.rs",
                "common/src/cni.rs",
                "cni-plugin/src/netconf.rs",
            ] {
                assert_eq!(lines(path, bad), [1], "{path}: {bad}");
            }
            assert_eq!(lines("agent/src/model.rs", bad), [1], "{bad}");
        }
    }

    #[test]
    fn a_pure_module_may_name_what_opens_nothing() {
        let good = "use std::io::{self, Read};\nuse std::net::IpAddr;\nuse serde::Deserialize;\nlet fs = nix;\n\
                    #[cfg(test)]\nmod tests { use std::fs; }";
        for path in ["agent/src/model/pod.rs", "common/src/cni.rs", "agent/src/capture/rules.rs"] {
            assert_eq!(lines(path, good), [0; 0]);
        }
        assert_eq!(lines("agent/src/platform/files.rs", "use std::fs;"), [0; 0]);
        assert_eq!(lines("agent/src/modelling.rs", "use std::fs;"), [0; 0]);
        assert_eq!(lines("agent/src/model/tests.rs", "use std::fs;"), [0; 0]);
    }

    #[test]
    fn aya_is_named_in_common_only_for_pod() {
        assert_eq!(lines("common/src/pod.rs", "unsafe impl aya::Pod for T {}"), [0; 0]);
        assert_eq!(lines("common/src/maps.rs", "unsafe impl aya::Pod for T {}"), [1]);
        assert_eq!(lines("common/src/pod.rs", "use std::fs;"), [1]);
    }

    #[test]
    fn a_netns_is_entered_in_one_place_and_in_the_test_kit() {
        for bad in [
            "use nix::sched::{CloneFlags, setns};",
            "fn f() { rustix::thread::move_into_link_name_space(a, b); }",
        ] {
            assert_eq!(lines("agent/src/platform/listeners.rs", bad), [1]);
            assert_eq!(lines("cni-plugin/src/main.rs", bad), [1]);
            assert_eq!(lines("tests/tests/outbound.rs", bad), [1]);
            assert_eq!(lines("agent/src/platform/netns.rs", bad), [0; 0]);
            assert_eq!(lines("tests/src/netns.rs", bad), [0; 0]);
        }
        assert_eq!(lines("agent/src/app.rs", "// setns\nfn unsetns() {}"), [0; 0]);
    }

    #[test]
    fn the_netns_of_the_main_thread_is_asked_for_in_one_place() {
        let bad = format!("const OWN: &str = \"{OWN_NETNS}\";");
        assert_eq!(lines("agent/src/app.rs", &bad), [1]);
        assert_eq!(lines("tests/src/netns.rs", &bad), [1]);
        assert_eq!(lines("agent/src/platform/netns.rs", &bad), [0; 0]);
        assert_eq!(lines("tests/src/netns.rs", "const OWN: &str = \"/proc/thread-self/ns/net\";"), [0; 0]);
    }

    #[test]
    fn only_platform_starts_processes_in_the_agent() {
        let bad = "use std::process;\nfn f() { process::Command::new(\"nft\"); }";
        assert_eq!(lines("agent/src/reconcile.rs", bad), [2]);
        assert_eq!(lines("agent/src/platform/nft.rs", bad), [0; 0]);
        assert_eq!(lines("xtask/src/demo.rs", bad), [0; 0]);
        assert_eq!(lines("agent/src/main.rs", "use std::process::ExitCode;"), [0; 0]);
    }

    #[test]
    fn the_wall_clock_is_read_where_it_is_told_and_in_tests() {
        let bad = "use std::time::SystemTime;\nfn f() { SystemTime::now(); }";
        assert_eq!(lines("agent/src/reconcile/mod.rs", bad), [2]);
        assert_eq!(lines("cni-plugin/src/client.rs", bad), [2]);
        for path in ["agent/src/wall_clock.rs", "agent/src/source/directory/tests.rs", "tests/src/wait.rs"] {
            assert_eq!(lines(path, bad), [0; 0], "{path}");
        }
    }
}
