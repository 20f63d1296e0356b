//! Starts programs, and tells what failed and how to run it alone.
//!
//! The only place where xtask starts a process. Commands are values ([`Command`]) that the verbs make,
//! so what is printed for doing it by hand is what is done.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

/// How much of a failed program's output is shown.
const TAIL_LINES: usize = 25;
const TAIL_BYTES: u64 = 16 * 1024;
/// How often the state of a long step is looked at.
const GLANCE: Duration = Duration::from_millis(100);
/// How often a long step shows that it lives where no terminal can be redrawn.
const SIGN_OF_LIFE: Duration = Duration::from_secs(20);

/// One line to whoever watches. A closed stderr is no reason to stop.
pub(crate) fn say(text: &str) {
    writeln!(io::stderr(), "{text}").ok();
}

/// A result. Fails when stdout is closed, as everything does that is piped into `head`.
pub(crate) fn print(text: &str) -> Result<()> {
    writeln!(io::stdout(), "{text}").context("write to stdout")
}

/// Runs a program that shares our terminal.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| not_started(command))?;
    ended(command, status)
}

/// Becomes the program: its signals and its exit code are ours.
pub(crate) fn become_program(command: &mut Command) -> anyhow::Error {
    let error = command.exec();
    anyhow!(error).context(not_started(command))
}

/// Runs a program and returns what it printed to stdout; what it prints to stderr is ours.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| not_started(command))?;
    ended(command, output.status)?;
    String::from_utf8(output.stdout).with_context(|| format!("`{}` printed no text", shell_line(command)))
}

/// What a program printed, stdout and stderr together, if it can be started and ends well.
pub(crate) fn quiet(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(text)
}

/// Runs a program, passes its stdout on line by line and shows each line to `look`. Whether it ended
/// well is the caller's business.
pub(crate) fn watch(command: &mut Command, mut look: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| not_started(command))?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.with_context(|| format!("read from `{}`", shell_line(command)))?;
            let line = String::from_utf8_lossy(&line);
            print(&line)?;
            look(&line);
        }
    }
    child.wait().with_context(|| format!("wait for `{}`", shell_line(command)))
}

/// Runs a program and shows each line of its stdout to `look` as it comes; what it writes to stderr goes into `errors`.
/// It is killed when `limit` has passed, or when as much has passed as `look` said last, since it said so: `None` then.
pub(crate) fn follow(
    command: &mut Command,
    errors: File,
    limit: Duration,
    mut look: impl FnMut(&str) -> Option<Duration>,
) -> Result<Option<ExitStatus>> {
    let mut deadline = Instant::now() + limit;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
    let mut child = command.spawn().with_context(|| not_started(command))?;
    let stdout = child.stdout.take().context("a pipe from the child")?;
    // A reader of its own, because a read waits for as long as the child is silent. It ends with the child.
    let (lines, heard) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if lines.send(line).is_err() {
                break;
            }
        }
    });
    loop {
        match heard.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if let Some(limit) = look(&String::from_utf8_lossy(&line)) {
                    deadline = Instant::now() + limit;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                child.kill().context("kill a child")?;
                child.wait().context("wait for a killed child")?;
                return Ok(None);
            }
        }
    }
    Ok(Some(child.wait().with_context(|| format!("wait for `{}`", shell_line(command)))?))
}

/// Runs a step that takes long: shows `what` and the time, keeps its output to itself, and shows the end
/// of it when the step fails or is not done within `limit`.
pub(crate) fn step(what: &str, command: &mut Command, limit: Duration) -> Result<()> {
    let mut log = tempfile::tempfile().context("make a temporary file")?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
    let child = command.spawn().with_context(|| not_started(command))?;
    let started = Instant::now();
    let status = supervise(child, what, limit)?;
    let elapsed = started.elapsed().as_secs();
    match status {
        Some(status) if status.success() => {
            redraw(&format!("{what}: done in {elapsed} s\n"));
            Ok(())
        }
        Some(status) => {
            redraw(&format!("{what}: failed after {elapsed} s\n"));
            bail!("`{}` ended with {status}\n{}", shell_line(command), tail(&mut log)?)
        }
        None => {
            redraw(&format!("{what}: stopped\n"));
            bail!("`{}` was not done in {} s\n{}", shell_line(command), limit.as_secs(), tail(&mut log)?)
        }
    }
}

/// Waits for the child, at most `limit`. `None` if it had to be killed.
fn supervise(mut child: Child, what: &str, limit: Duration) -> Result<Option<ExitStatus>> {
    let started = Instant::now();
    let mut last_sign = started;
    redraw(&format!("{what} …"));
    if !io::stderr().is_terminal() {
        say("");
    }
    loop {
        if let Some(status) = child.try_wait().context("wait for a child")? {
            return Ok(Some(status));
        }
        if started.elapsed() > limit {
            child.kill().context("kill a child")?;
            child.wait().context("wait for a killed child")?;
            return Ok(None);
        }
        let elapsed = started.elapsed().as_secs();
        if io::stderr().is_terminal() {
            redraw(&format!("{what} … {elapsed} s"));
        } else if last_sign.elapsed() > SIGN_OF_LIFE {
            last_sign = Instant::now();
            say(&format!("{what} … {elapsed} s"));
        }
        pause(GLANCE);
    }
}

#[expect(clippy::disallowed_methods, reason = "std waits for a child either forever or not at all")]
fn pause(time: Duration) {
    thread::sleep(time);
}

/// Replaces the line that the terminal shows; where there is none, writes it once.
fn redraw(text: &str) {
    let mut stderr = io::stderr();
    let clear = if stderr.is_terminal() { "\r\x1b[K" } else { "" };
    write!(stderr, "{clear}{text}").ok();
    stderr.flush().ok();
}

/// The end of what a program printed.
fn tail(log: &mut File) -> Result<String> {
    let length = log.seek(SeekFrom::End(0))?;
    log.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    log.read_to_end(&mut bytes)?;
    Ok(last_lines(&String::from_utf8_lossy(&bytes)))
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.len().saturating_sub(TAIL_LINES);
    lines.iter().skip(first).map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n")
}

fn ended(command: &Command, status: ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    bail!("the command ended with {status}; to run it alone:\n  {}", shell_line(command))
}

fn not_started(command: &Command) -> String {
    format!("start `{}`", shell_line(command))
}

/// The command as one would type it. PATH is left out: it only adds what a shell has anyway.
pub(crate) fn shell_line(command: &Command) -> String {
    let variables = command
        .get_envs()
        .filter(|(name, _)| *name != "PATH")
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_string_lossy(), quoted(value?))));
    let words = std::iter::once(command_name(command)).chain(command.get_args()).map(quoted);
    let line = variables.chain(words).collect::<Vec<_>>().join(" ");
    match command.get_current_dir() {
        Some(directory) if env::current_dir().ok().as_deref() != Some(directory) => {
            format!("(cd {} && {line})", quoted(directory.as_os_str()))
        }
        _ => line,
    }
}

/// The cargo that started us gave its full path; who types says cargo.
fn command_name(command: &Command) -> &OsStr {
    let program = command.get_program();
    if Path::new(program).file_name() == Some(OsStr::new("cargo")) { OsStr::new("cargo") } else { program }
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = Command::new("cargo");
        command.args(["test", "--test", "*", "it's"]).env("VEER_BIN", "/x y/veer").env("PATH", "/bin");
        assert_eq!(shell_line(&command), r"VEER_BIN='/x y/veer' cargo test --test '*' 'it'\''s'");
        command.current_dir("/srv");
        assert!(shell_line(&command).starts_with("(cd /srv && VEER_BIN="));
    }

    #[test]
    fn a_failed_step_names_the_command_and_shows_the_end_of_its_output() {
        let mut command = Command::new("sh");
        command.args(["-c", "seq 1 40; echo last words >&2; exit 3"]);
        let error = step("counting", &mut command, Duration::from_mins(1)).unwrap_err().to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.contains("seq 1 40"), "{error}");
        assert!(error.ends_with("| last words"), "{error}");
        assert!(!error.contains("| 16\n") && error.contains("| 17\n"), "{error}");
    }

    #[test]
    fn a_step_that_hangs_is_stopped_at_its_limit() {
        let started = Instant::now();
        let mut command = Command::new("sleep");
        let error = step("waiting", command.arg("600"), Duration::from_millis(10)).unwrap_err().to_string();
        assert!(error.contains("was not done in"), "{error}");
        assert!(started.elapsed() < Duration::from_mins(1));
    }

    #[test]
    fn what_is_followed_is_heard_until_its_time_is_up() {
        let started = Instant::now();
        let mut heard = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two; exec sleep 600"]);
        let errors = || tempfile::tempfile().unwrap();
        let ended = follow(&mut command, errors(), Duration::from_secs(1), |line| {
            heard.push(line.to_owned());
            None
        });
        assert_eq!((ended.unwrap(), heard), (None, vec!["one".to_owned(), "two".to_owned()]));
        // It has an hour, until it says something.
        let ended =
            follow(&mut command, errors(), Duration::from_hours(1), |_| Some(Duration::from_millis(1)));
        assert_eq!(ended.unwrap(), None);
        assert!(started.elapsed() < Duration::from_mins(1));
        let mut command = Command::new("sh");
        let status =
            follow(command.args(["-c", "exit 3"]), errors(), Duration::from_mins(1), |_| None).unwrap();
        assert_eq!(status.and_then(|status| status.code()), Some(3));
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let error = format!("{:#}", run(&mut Command::new("veer-no-such-program")).unwrap_err());
        assert!(error.contains("veer-no-such-program"), "{error}");
    }

    #[test]
    fn watched_output_is_seen_line_by_line_and_the_status_returned() {
        let mut seen = Vec::new();
        let mut command = Command::new("sh");
        let status =
            watch(command.args(["-c", "echo one; echo two; exit 4"]), |line| seen.push(line.to_owned()));
        assert_eq!(seen, ["one", "two"]);
        assert_eq!(status.unwrap().code(), Some(4));
    }
}
