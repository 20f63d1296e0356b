//! What the node's Envoy says, in the agent's log.
//!
//! Owns: reading on in the file that the shims write, and its last lines. A line of the access log is JSON and goes to
//! stderr as it is; anything else becomes a line of the agent's, at Envoy's level. What was said while no agent ran stays in
//! the file. Called by: `proxy::supervise`.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::IgnoredAny;

use crate::platform::proxy::{LOG, open_of};

/// Lines that are kept for a report.
const LAST: usize = 10;
/// A longer line is cut, in bytes; what is read at once.
const LONGEST: usize = 1 << 16;
/// So much is passed on within a second, in bytes: pods decide how many lines there are, and how long they are, and all of
/// the agent waits for whoever reads its log.
const MOST: usize = 4 << 20;
const SECOND: Duration = Duration::from_secs(1);

/// A reader of the log.
#[derive(Debug)]
pub(super) struct Said {
    path: PathBuf,
    /// Whose it must be.
    owner: u32,
    /// What is read, and its inode.
    open: Option<(File, u64)>,
    /// The beginning of a line.
    begun: Vec<u8>,
    /// Whether that line is passed over up to its end.
    is_cut: bool,
    last: VecDeque<String>,
    /// Since when [`Self::passed`] is counted.
    since: Instant,
    passed: usize,
    /// What was not passed on, in bytes.
    skipped: u64,
}

impl Said {
    /// From now on, of a log that is this user's.
    pub(super) fn from_now(directory: &Path, owner: u32) -> Self {
        let path = directory.join(LOG);
        let mut open = open(owner, &path);
        if let Some((file, _)) = &mut open {
            drop(file.seek(SeekFrom::End(0)));
        }
        let (begun, last, since) = (Vec::new(), VecDeque::new(), Instant::now());
        Self { path, owner, open, begun, is_cut: false, last, since, passed: 0, skipped: 0 }
    }

    /// Passes on what was said since the last time.
    pub(super) fn pass_on(&mut self) {
        self.pass_on_at(Instant::now());
    }

    fn pass_on_at(&mut self, now: Instant) {
        if now.saturating_duration_since(self.since) >= SECOND {
            (self.since, self.passed) = (now, 0);
            if self.skipped > 0 {
                let (skipped, path) = (std::mem::take(&mut self.skipped), self.path.display());
                tracing::warn!(skipped, %path, "the node's proxy says more than is passed on; the file has it");
            }
        }
        self.read();
        let written = std::fs::metadata(&self.path).map(|file| file.ino()).ok();
        let is_another = written.is_some() && written != self.open.as_ref().map(|(_, inode)| *inode);
        if is_another {
            // What was written into the one before until it was put aside.
            self.read();
            self.open = open(self.owner, &self.path);
            self.read();
        }
    }

    /// What it has said last, the access log aside.
    pub(super) fn last_words(&self) -> Vec<String> {
        self.last.iter().cloned().collect()
    }

    fn read(&mut self) {
        let mut buffer = vec![0; LONGEST];
        while self.passed < MOST {
            let length = self.open.as_mut().and_then(|(file, _)| file.read(&mut buffer).ok());
            let said = length.and_then(|length| buffer.get(..length)).unwrap_or_default();
            if said.is_empty() {
                return;
            }
            self.passed += said.len();
            for part in said.split_inclusive(|byte| *byte == b'\n') {
                self.take(part);
            }
        }
        self.skip();
    }

    /// Takes a line, or a part of one.
    fn take(&mut self, part: &[u8]) {
        let is_end = part.ends_with(b"\n");
        if !self.is_cut {
            let room = LONGEST - self.begun.len();
            self.begun.extend_from_slice(part.get(..room).unwrap_or(part));
            if is_end || self.begun.len() == LONGEST {
                self.pass_line();
                self.is_cut = true;
            }
        }
        // The rest of a line is no line.
        self.is_cut &= !is_end;
    }

    /// Passes over what there is but for the last of it, which may be why it ends.
    fn skip(&mut self) {
        let Some((file, _)) = &mut self.open else { return };
        let (Ok(end), Ok(here)) = (file.metadata().map(|file| file.len()), file.stream_position()) else {
            return;
        };
        let last = end.saturating_sub(LONGEST as u64);
        if last > here && file.seek(SeekFrom::Start(last)).is_ok() {
            self.skipped += last - here;
            self.begun.clear();
            self.is_cut = true;
        }
    }

    fn pass_line(&mut self) {
        let line = std::mem::take(&mut self.begun);
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        if is_access(line) {
            // On a full disk it is lost, as a line of the agent's own is.
            drop(io::stderr().lock().write_all(format!("{}\n", shown(line)).as_bytes()));
            return;
        }
        match level(line) {
            "critical" | "error" => tracing::error!(said = line, "the node's proxy"),
            "warning" => tracing::warn!(said = line, "the node's proxy"),
            "debug" | "trace" => tracing::debug!(said = line, "the node's proxy"),
            _ => tracing::info!(said = line, "the node's proxy"),
        }
        if self.last.len() == LAST {
            self.last.pop_front();
        }
        self.last.push_back(line.to_owned());
    }
}

/// Whether it is a whole line of the access log. What was cut, or only begins like one, is not passed for one.
fn is_access(line: &str) -> bool {
    line.starts_with('{') && serde_json::from_str::<IgnoredAny>(line).is_ok()
}

/// Without what a terminal would act on: Envoy escapes of what clients send only the control characters of ASCII's first 32.
fn shown(line: &str) -> Cow<'_, str> {
    if line.contains(char::is_control) {
        line.replace(char::is_control, "\u{fffd}").into()
    } else {
        line.into()
    }
}

fn open(owner: u32, path: &Path) -> Option<(File, u64)> {
    let file = open_of(owner, path).ok()?;
    let inode = file.metadata().ok()?.ino();
    Some((file, inode))
}

/// `[2026-11-21 17:55:34.041][7453][warning][main] …`
fn level(line: &str) -> &str {
    line.split("][").nth(2).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_level_of_a_line_is_envoys() {
        assert_eq!(level("[2026-11-21 17:55:34.041][7453][warning][main] [a.cc:1] caught"), "warning");
        assert_eq!(level("terminate called"), "");
    }

    #[test]
    fn what_only_begins_like_a_line_of_the_access_log_is_none() {
        assert!(is_access(r#"{"pod": "a", "path": "/\n{\"pod\": \"b\"}"}"#));
        for line in [r#"{"pod": "a", "path": "/xx"#, r#"{"pod": "a"} {"pod": "b"}"#, "{ said a filter", ""] {
            assert!(!is_access(line), "{line}");
        }
    }

    #[test]
    fn what_a_terminal_would_act_on_is_not_passed_on() {
        let line = "{\"path\": \"/\u{9b}2J\u{7f}\r\u{1b}[1A\"}";
        assert_eq!(shown(line), "{\"path\": \"/\u{fffd}2J\u{fffd}\u{fffd}\u{fffd}[1A\"}");
        assert_eq!(shown("{\"path\": \"/ä\"}"), "{\"path\": \"/ä\"}");
    }

    #[test]
    fn of_a_line_that_is_too_long_the_rest_is_no_line() {
        let directory = tempfile::tempdir().unwrap();
        let mut said = Said::from_now(directory.path(), nix::unistd::geteuid().as_raw());
        let long = "x".repeat(3 * LONGEST);
        fs::write(
            directory.path().join(LOG),
            format!("{long}\n{long}{{\"pod\": \"of somebody else\"}}\nshort\n"),
        )
        .unwrap();
        said.pass_on();
        let words = said.last_words();
        let lengths: Vec<usize> = words.iter().map(String::len).collect();
        assert_eq!(lengths, [LONGEST, LONGEST, 5]);
    }

    #[test]
    fn what_is_said_beyond_the_most_of_a_second_is_passed_over_but_for_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LOG);
        let mut said = Said::from_now(directory.path(), nix::unistd::geteuid().as_raw());
        let start = said.since;
        let line = "0123456789abcde\n";
        fs::write(&path, format!("{}the last\n", line.repeat(3 * MOST / line.len()))).unwrap();
        said.pass_on_at(start);
        assert_eq!((said.passed, said.skipped > u64::try_from(MOST).unwrap()), (MOST, true));
        assert_eq!(said.last_words().last().map(String::as_str), Some("0123456789abcde"));
        // Nothing more within the second.
        said.pass_on_at(start);
        assert_eq!(said.passed, MOST);
        said.pass_on_at(start + SECOND);
        assert_eq!(said.last_words().last().map(String::as_str), Some("the last"));
        assert!(said.last_words().iter().all(|words| words == "the last" || words == "0123456789abcde"));
        assert_eq!(said.skipped, 0);
    }

    #[test]
    fn lines_are_read_on_when_another_file_is_begun() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LOG);
        fs::write(&path, "old\n").unwrap();
        let mut said = Said::from_now(directory.path(), nix::unistd::geteuid().as_raw());
        fs::write(&path, "old\none\ntw").unwrap();
        said.pass_on();
        assert_eq!(said.last_words(), ["one"]);
        fs::write(&path, "old\none\ntwo\n{\"pod\": \"a\"}\nthree\n").unwrap();
        fs::rename(&path, directory.path().join("before")).unwrap();
        fs::write(&path, "four\n").unwrap();
        said.pass_on();
        assert_eq!(said.last_words(), ["one", "two", "three", "four"]);
        let many: Vec<String> = (0..20).map(|number| number.to_string()).collect();
        fs::write(&path, format!("four\n{}\n", many.join("\n"))).unwrap();
        said.pass_on();
        assert_eq!(said.last_words().first().map(String::as_str), Some("10"));
    }
}
