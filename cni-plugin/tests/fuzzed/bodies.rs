//! What is fuzzed of the plugin: all of it, from the environment and stdin to what it prints.
//!
//! The same function runs over the committed corpus in the tests (`main.rs` beside this file) and under
//! libFuzzer (`fuzz/`).

#![expect(clippy::expect_used, reason = "a body panics for what must never be")]

use std::ffi::OsString;

/// The first line is the verb and `CNI_ARGS`, the rest the configuration. The netns is one that is not there, and
/// so is the agent, unless the configuration hits upon the socket of one.
pub(crate) fn plugin(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (first, configuration) = data.split_at(end);
    let Ok(first) = std::str::from_utf8(first) else { return };
    let (verb, arguments) = first.split_once(' ').unwrap_or((first, ""));
    let variable = |name: &str| match name {
        "CNI_COMMAND" => Some(OsString::from(verb)),
        "CNI_CONTAINERID" => Some("fuzzed".into()),
        "CNI_NETNS" => Some("/nowhere/netns".into()),
        "CNI_IFNAME" => Some("eth0".into()),
        "CNI_PATH" => Some("/nowhere".into()),
        "CNI_ARGS" => Some(arguments.into()),
        _ => None,
    };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let _code = veer_cni::run(&variable, configuration, &mut stdout, &mut stderr);
    let printed = String::from_utf8(stdout).expect("it prints text");
    // A runtime reads either nothing or one JSON value.
    if !printed.trim().is_empty() {
        let value: serde_json::Value = serde_json::from_str(&printed).expect("it prints JSON");
        let is_error = value.get("code").is_some();
        assert!(
            !is_error || value.get("msg").is_some_and(|msg| msg.as_str().is_some_and(|msg| !msg.is_empty()))
        );
    }
    let log = String::from_utf8(stderr).expect("it logs text");
    assert!(log.lines().all(|line| !line.chars().any(char::is_control)), "{log:?}");
}
