//! The shim: the process between the agent and the node's Envoy, which lives as long as Envoy does.
//!
//! Envoy asks the kernel to end it with its parent, so its parent must not be the agent; and whoever reads what it says and
//! waits for its end must be there when the agent is not. Owns: Envoy's rights (the proxy's ids, and CAP_SYS_ADMIN, which
//! network namespaces are entered with), its log, and its record. It is the agent's own binary, and has no more rights than
//! Envoy, from before it starts it. Never does: decide whether or when one is started.
//! Called by: `platform::proxy`; the shim's side by `main`.

use std::fs::{self, DirBuilder, File};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use nix::unistd::{Gid, Uid, setgid, setgroups, setsid, setuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
};

use super::look;
use crate::proxy::command::shared_memory;
use crate::proxy::instance::{Charge, End, Ended, Record, number_in};
use crate::wall_clock;

/// The argument that makes the agent's binary the shim; a [`Charge`] follows.
pub const CHILD_COMMAND: &str = "keep-proxy";
/// What it says on stdout once Envoy has been started; anything else is why not.
pub(super) const STARTED: &str = "started";

/// All that Envoy may do besides what anybody may.
const RIGHTS: CapabilitySet = CapabilitySet::SYS_ADMIN;
/// So much is in a log when another one is begun; the one before is kept, and none besides. In bytes.
const LOG_SIZE: u64 = 16 << 20;

/// Why no Envoy is started.
#[derive(Debug, thiserror::Error)]
enum ShimError {
    /// What it was told is no charge.
    #[error("read the charge: {0}")]
    Charge(#[from] serde_json::Error),
    /// A file, or a directory.
    #[error("{attempt} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The directory is not the proxy's.
    #[error("{path} belongs to user {owner} and not to the proxy: remove it", path = path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// The proxy's ids and rights.
    #[error(
        "{attempt}: {source}; the agent needs CAP_SETUID, CAP_SETGID and CAP_SETPCAP to start the node's proxy, and \
         CAP_SYS_ADMIN to give it"
    )]
    Rights {
        /// What was tried.
        attempt: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Anything else.
    #[error("{attempt}: {source}")]
    System {
        /// What was tried.
        attempt: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// The shim: starts Envoy, says so, or why not, and ends after Envoy.
///
/// # Errors
/// If nobody can be told.
pub fn child(charge: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    match start(charge) {
        Ok((envoy, log)) => {
            // An agent that has gone meanwhile finds the record.
            drop(writeln!(stdout, "{STARTED}").and_then(|()| stdout.flush()));
            envoy.keep(log);
            Ok(())
        }
        Err(error) => writeln!(stdout, "{error}"),
    }
}

/// A running Envoy.
struct Envoy {
    process: std::process::Child,
    said: PipeReader,
    charge: Charge,
    record: Record,
    started: Instant,
}

fn start(charge: &str) -> Result<(Envoy, Log), ShimError> {
    let charge: Charge = serde_json::from_str(charge)?;
    let program = &charge.instance.build.command.program;
    // As who the agent is: the way to it may be root's alone.
    let executable = File::options().read(true).custom_flags(libc::O_PATH).open(program);
    let executable = executable.map_err(file("open", program))?;
    if let Some(cgroup) = &charge.cgroup {
        fs::write(cgroup.join("cgroup.procs"), "0").map_err(file("join cgroup", cgroup))?;
    }
    setsid().map_err(|errno| system("leave the agent's session", errno.into()))?;
    become_the_proxy(charge.id)?;
    make_directory(&charge.directory, charge.id)?;
    let log = Log::open(&charge.directory)?;
    let (said, says) = io::pipe().map_err(|source| system("make a pipe", source))?;
    let errors = says.try_clone().map_err(|source| system("duplicate a pipe", source))?;
    let process = Command::new(format!("/proc/self/fd/{}", executable.as_raw_fd()))
        .arg0(program)
        .args(&charge.arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(says)
        .stderr(errors)
        .spawn()
        .map_err(file("execute", program))?;
    let started = Instant::now();
    // A program that is no Envoy may have ended by now; it stays until it is waited for.
    let processes = look(std::process::id()).and_then(|(shim, _)| Ok((shim, look(process.id())?.0)));
    let (shim, envoy) = match processes {
        Ok(processes) => processes,
        Err(source) => {
            end_now(process);
            return Err(system("look at /proc", source));
        }
    };
    let (instance, started_at) = (charge.instance.clone(), wall_clock::seconds());
    let record = Record { instance, shim, envoy, started_at, ended: None };
    let envoy = Envoy { process, said, charge, record, started };
    if let Err(error) = envoy.write_record() {
        end_now(envoy.process);
        return Err(file("write the record into", &envoy.charge.directory)(error));
    }
    Ok((envoy, log))
}

/// Without a record nobody would know of it, and no other one could be started beside it.
fn end_now(mut process: std::process::Child) {
    // One that has ended by itself is as good.
    drop(process.kill().and_then(|()| process.wait()));
}

impl Envoy {
    /// Reads what it says until it says no more, and leaves behind how it has ended.
    fn keep(mut self, mut log: Log) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length) = self.said.read(&mut buffer) {
            let Some(said) = buffer.get(..length).filter(|said| !said.is_empty()) else { break };
            log.write(said);
        }
        let by = self.process.wait().map_or(End::Unknown, end);
        let after_s = self.started.elapsed().as_secs();
        self.record.ended = Some(Ended { by, after_s, at: wall_clock::seconds() });
        // Without it, the agent says that nobody knows.
        drop(self.write_record());
        if self.is_last() {
            drop(fs::remove_file(shared_memory(&self.charge.directory)));
        }
    }

    /// Whole, or as before.
    fn write_record(&self) -> io::Result<()> {
        let path = self.charge.directory.join(self.record.instance.file_name());
        let draft = path.with_extension("draft");
        fs::write(&draft, serde_json::to_vec(&self.record)?)?;
        fs::rename(draft, path)
    }

    /// Whether no later one was started, which would use the same memory.
    fn is_last(&self) -> bool {
        let Ok(entries) = fs::read_dir(&self.charge.directory) else { return false };
        let mut numbers =
            entries.flatten().filter_map(|entry| entry.file_name().to_str().and_then(number_in));
        numbers.all(|number| number <= self.record.instance.number)
    }
}

fn end(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exit(code),
        (None, Some(signal)) => End::Signal(signal),
        (None, None) => End::Unknown,
    }
}

/// The bounding set first, because that takes a capability. What is left is ambient, so that Envoy has it after exec; it
/// cannot come to more by any program that it executes.
fn become_the_proxy(id: u32) -> Result<(), ShimError> {
    let failed = |attempt| move |errno: io::Error| ShimError::Rights { attempt, source: errno };
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok();
    let last: u32 = last.and_then(|text| text.trim().parse().ok()).unwrap_or(40);
    let others = (0..=last).map(|number| CapabilitySet::from_bits_retain(1 << number));
    for capability in others.filter(|capability| !RIGHTS.contains(*capability)) {
        remove_capability_from_bounding_set(capability)
            .map_err(|errno| failed("empty the bounding set")(errno.into()))?;
    }
    setgroups(&[]).map_err(|errno| failed("leave all groups")(errno.into()))?;
    setgid(Gid::from_raw(id)).map_err(|errno| failed("become the proxy's group")(errno.into()))?;
    set_keep_capabilities(true).map_err(|errno| failed("keep capabilities")(errno.into()))?;
    setuid(Uid::from_raw(id)).map_err(|errno| failed("become the proxy's user")(errno.into()))?;
    let sets = CapabilitySets { effective: RIGHTS, permitted: RIGHTS, inheritable: RIGHTS };
    set_capabilities(None, sets).map_err(|errno| failed("keep CAP_SYS_ADMIN alone")(errno.into()))?;
    clear_ambient_capability_set().map_err(|errno| failed("clear the ambient set")(errno.into()))?;
    configure_capability_in_ambient_set(RIGHTS, true)
        .map_err(|errno| failed("make CAP_SYS_ADMIN ambient")(errno.into()))?;
    set_no_new_privs(true).map_err(|errno| failed("set no_new_privs")(errno.into()))
}

/// Anybody may make files beside it, so it has to be the proxy's. What is in it is read by the agent, who may be root
/// without the right to overlook modes.
fn make_directory(path: &Path, id: u32) -> Result<(), ShimError> {
    match DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(file("make", path)(error)),
        _ => {}
    }
    let found = fs::symlink_metadata(path).map_err(file("look at", path))?;
    if found.is_dir() && found.uid() == id {
        return Ok(());
    }
    Err(ShimError::Foreign { path: path.to_owned(), owner: found.uid() })
}

/// What Envoys have said: the latest, and as much as before that.
struct Log {
    directory: PathBuf,
    file: File,
    written: u64,
}

impl Log {
    fn open(directory: &Path) -> Result<Self, ShimError> {
        let path = directory.join(super::LOG);
        let file = append(&path).map_err(file("open", &path))?;
        let written = file.metadata().map_or(0, |file| file.len());
        Ok(Self { directory: directory.to_owned(), file, written })
    }

    /// On a full disk, lines are lost, and Envoy does not notice.
    fn write(&mut self, said: &[u8]) {
        let full = self.written + u64::try_from(said.len()).unwrap_or(u64::MAX) > LOG_SIZE;
        let line = said.iter().rposition(|byte| *byte == b'\n').filter(|_| full);
        let (before, behind) = line.and_then(|end| said.split_at_checked(end + 1)).unwrap_or((said, &[]));
        self.append(before);
        if line.is_some() {
            self.begin_another();
            self.append(behind);
        }
    }

    fn append(&mut self, said: &[u8]) {
        if self.file.write_all(said).is_ok() {
            self.written += u64::try_from(said.len()).unwrap_or_default();
        }
    }

    fn begin_another(&mut self) {
        let path = self.directory.join(super::LOG);
        // One that takes over writes into the same file. Whoever of the two is late finds it small.
        let is_full = fs::metadata(&path).is_ok_and(|file| file.len() > LOG_SIZE / 2);
        if is_full && fs::rename(&path, self.directory.join(super::LOG_BEFORE)).is_err() {
            return;
        }
        if let Ok(file) = append(&path) {
            self.written = file.metadata().map_or(0, |file| file.len());
            self.file = file;
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(0o644).custom_flags(libc::O_NOFOLLOW).open(path)
}

fn file(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ShimError {
    let path = path.to_owned();
    move |source| ShimError::File { attempt, path, source }
}

const fn system(attempt: &'static str, source: io::Error) -> ShimError {
    ShimError::System { attempt, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_full_makes_room_between_two_lines_and_one_before_it_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::open(directory.path()).unwrap();
        let line = format!("{}\n", "x".repeat(65_535));
        let times = usize::try_from(LOG_SIZE).unwrap() / line.len();
        for _ in 0..times {
            log.write(line.as_bytes());
        }
        log.write(b"the last\nthe first of anoth");
        log.write(b"er\n");
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!(read(super::super::LOG), "the first of another\n");
        assert!(read(super::super::LOG_BEFORE).ends_with("\nthe last\n"));
        let files = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(files, 2);
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = make_directory(directory.path(), 4711).unwrap_err().to_string();
        assert!(error.contains("belongs to user") && error.ends_with("remove it"), "{error}");
    }
}
