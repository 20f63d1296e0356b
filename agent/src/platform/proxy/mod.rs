//! The node's Envoys as processes: starting one, finding those that are there, waiting for the end of one, and what they use.
//!
//! Owns: the child that becomes the shim, and pidfds, by which an agent waits for processes that are not its children.
//! Never does: decide whether one is to run; that is `proxy::supervise`. Called by: `proxy::supervise`.

pub mod shim;
mod usage;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use futures_util::FutureExt;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::net::unix::pipe::Receiver;

use crate::model::DEFAULT_PROXY_ID;
use crate::platform::cgroup::{mount_point, path_in_v2};
use crate::proxy::instance::{Charge, End, Ended, FileMark, ProcessMark, Record, number_in};
use crate::wall_clock;

pub use usage::Usage;

/// What Envoys have said, in their directory.
pub const LOG: &str = "envoy.log";
/// What they have said before that.
pub const LOG_BEFORE: &str = "envoy.log.1";
/// The name of their cgroup, below that of the pods.
const CGROUP: &str = "veer-proxy";
/// A record is no longer, in bytes: its command line may have some flags.
const LONGEST_RECORD: u64 = 1 << 20;

/// Why one is not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The shim says why.
    #[error("{0}")]
    Shim(String),
    /// The agent cannot start the shim, or look after it.
    #[error("{attempt}: {source}")]
    System {
        /// What was tried.
        attempt: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// A running one. Dropping it lets it go on.
#[derive(Debug)]
pub struct Running {
    /// What its shim has left.
    pub record: Record,
    directory: PathBuf,
    /// A pidfd, which can be read from when the shim has ended; it is no pipe, and is only waited for.
    shim: Receiver,
    /// If this agent has started it.
    child: Option<Child>,
}

impl Running {
    /// Starts one. Returns once its program runs.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn start(charge: Charge) -> Result<Self, StartError> {
        let directory = charge.directory.clone();
        let file = charge.instance.file_name();
        let starting = tokio::task::spawn_blocking(move || start_shim(&charge));
        let mut child =
            starting.await.map_err(|error| system("start the shim", io::Error::other(error)))??;
        let path = directory.join(file);
        let record = match read(&path) {
            Ok(record) => record,
            Err(source) => return Err(given_up(child, system("read its record", source))),
        };
        match watch(record.shim) {
            Ok(shim) => Ok(Self { record, directory, shim, child: Some(child) }),
            // A program that is no Envoy may have ended by now, and its shim with it.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                drop(child.wait());
                let ended = read(&path).ok().and_then(|record| record.ended);
                drop(fs::remove_file(&path));
                let ended =
                    ended.map_or_else(String::new, |end| format!("{} after {} s", end.by, end.after_s));
                Err(StartError::Shim(format!("pid {} {ended}", record.envoy.pid)))
            }
            Err(source) => Err(given_up(child, system("watch the shim", source))),
        }
    }

    /// Those that run, the oldest first, and the records of those that do not, in the same order.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn find(directory: &Path) -> io::Result<(Vec<Self>, Vec<Record>)> {
        let (mut running, mut ended): (Vec<Self>, Vec<Record>) = (Vec::new(), Vec::new());
        for path in records(directory)? {
            let Ok(record) = read(&path) else { continue };
            match watch(record.shim) {
                Ok(shim) => {
                    running.push(Self { record, directory: directory.to_owned(), shim, child: None });
                }
                // Who cannot be looked at may run.
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                Err(_gone) => ended.push(record),
            }
        }
        running.sort_by_key(|one| one.record.instance.number);
        ended.sort_by_key(|record| record.instance.number);
        Ok((running, ended))
    }

    /// Waits for its end; to be called again when it is cancelled.
    pub async fn ended(&self) {
        if let Err(error) = self.shim.readable().await {
            tracing::error!(%error, "wait for the node's proxy");
            std::future::pending::<()>().await;
        }
    }

    /// Whether it has. The descriptor tells, which nothing can be short of: who is taken for ended is buried, and followed.
    pub fn has_ended(&self) -> bool {
        self.shim.readable().now_or_never().is_some_and(|ended| ended.is_ok())
    }

    /// How it has ended, which it has. Its record goes.
    pub fn bury(mut self) -> Ended {
        if let Some(child) = &mut self.child {
            // It has ended, so this does not wait.
            drop(child.wait());
        }
        let path = self.directory.join(self.record.instance.file_name());
        let ended = read(&path).ok().and_then(|record| record.ended);
        if ended.is_none() {
            // Envoy has asked to be ended with its shim, and may take its time.
            drop(self.signal(Signal::KILL));
        }
        drop(fs::remove_file(path));
        let now = wall_clock::seconds();
        let after_s = now.saturating_sub(self.record.started_at);
        ended.unwrap_or(Ended { by: End::Unknown, after_s, at: now })
    }

    /// Asks it to end, or kills it.
    ///
    /// # Errors
    /// As the kernel says; one that has ended is none.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match open(self.record.envoy) {
            Ok(envoy) => Ok(pidfd_send_signal(envoy, signal)?),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The cgroup that was made for it, if it is in that.
    pub fn cgroup(&self) -> Option<PathBuf> {
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", self.pid())).ok()?;
        let path = mount_point()?.join(path_in_v2(&groups)?.trim_start_matches('/'));
        path.ends_with(CGROUP).then_some(path)
    }

    /// Its process id.
    pub const fn pid(&self) -> u32 {
        self.record.envoy.pid
    }
}

/// What a program's file is known by.
///
/// # Errors
/// If it is not there, or no file.
pub fn program(path: &Path) -> io::Result<FileMark> {
    let found = fs::metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let changed_ns = found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec());
    Ok(FileMark { device: found.dev(), inode: found.ino(), size: found.len(), changed_ns })
}

/// The proxy's cgroup below that which the programs hang on, so that its connections in pods' namespaces meet them. One for
/// all Envoys that follow each other: to pods whose proxy is known by its container they are one.
///
/// # Errors
/// If it cannot be made.
pub fn cgroup(above: &Path) -> io::Result<PathBuf> {
    let path = above.join(CGROUP);
    match fs::create_dir(&path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(path),
    }
}

/// Kills what is in the proxy's cgroup and none of these: an Envoy whose shim was killed before it could write its record.
pub fn kill_strays(cgroup: &Path, known: &[&Running]) {
    let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let is_known =
        |pid: u32| known.iter().any(|one| [one.record.shim.pid, one.record.envoy.pid].contains(&pid));
    for pid in processes.lines().filter_map(|pid| pid.parse().ok()).filter(|pid| !is_known(*pid)) {
        tracing::warn!(pid, "ending a proxy that nobody knows");
        let killed = mark(pid).and_then(open).and_then(|stray| Ok(pidfd_send_signal(stray, Signal::KILL)?));
        if let Err(error) = killed {
            tracing::debug!(pid, %error, "it has ended");
        }
    }
}

/// Starts the shim and waits for what it has to say of Envoy's start.
fn start_shim(charge: &Charge) -> Result<Child, StartError> {
    let text = serde_json::to_string(charge).map_err(|error| system("write the charge", error.into()))?;
    let mut child = Command::new("/proc/self/exe")
        .args([shim::CHILD_COMMAND, &text])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|source| system("start the shim", source))?;
    let mut said = String::new();
    // It says one thing within milliseconds, or ends.
    let heard = child.stdout.take().map(|stdout| BufReader::new(stdout).read_line(&mut said));
    if said.trim_end() == shim::STARTED {
        return Ok(child);
    }
    let status = child.wait().map_err(|source| system("wait for the shim", source))?;
    if let (Some(Ok(_)), false) = (heard, said.is_empty()) {
        return Err(StartError::Shim(said.trim_end().to_owned()));
    }
    Err(StartError::Shim(format!("its shim ended with {status} before it could start it")))
}

/// When a process was started, in the kernel's clock ticks since the boot; `None` if it is not there, or cannot be seen.
pub fn started(pid: u32) -> Option<u64> {
    mark(pid).ok().map(|mark| mark.start)
}

/// What a process is known by.
///
/// # Errors
/// `NotFound` if there is none, or it has ended.
fn mark(pid: u32) -> io::Result<ProcessMark> {
    match look(pid)? {
        (_mark, has_ended) if has_ended => Err(ErrorKind::NotFound.into()),
        (mark, _runs) => Ok(mark),
    }
}

/// The same, and whether it has ended: then it is there only as long as nobody has waited for it.
fn look(pid: u32) -> io::Result<(ProcessMark, bool)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(gone)?;
    // The name of the program, in parentheses, may have anything in it. State is the 3rd field, the start the 22nd.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace().collect();
    let has_ended = fields.first().is_none_or(|state| ["Z", "X"].contains(state));
    let start = fields.get(19).and_then(|start| start.parse().ok());
    start.map(|start| (ProcessMark { pid, start }, has_ended)).ok_or_else(|| ErrorKind::InvalidData.into())
}

/// The kernel has its own word for a process that is not there, also for one that goes while it is looked at.
fn gone(error: impl Into<io::Error>) -> io::Error {
    let error = error.into();
    if error.raw_os_error() == Some(libc::ESRCH) { ErrorKind::NotFound.into() } else { error }
}

/// A descriptor of a process, if it is the one.
fn open(process: ProcessMark) -> io::Result<OwnedFd> {
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw).ok_or(ErrorKind::NotFound)?;
    let descriptor = pidfd_open(pid, PidfdFlags::empty()).map_err(gone)?;
    // Asked afterwards: now the number cannot become another's unnoticed.
    if mark(process.pid)? == process { Ok(descriptor) } else { Err(ErrorKind::NotFound.into()) }
}

fn watch(process: ProcessMark) -> io::Result<Receiver> {
    Receiver::from_owned_fd_unchecked(open(process)?)
}

fn records(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let is_record = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| number_in(name).is_some())
    };
    Ok(entries.flatten().map(|entry| entry.path()).filter(is_record).collect())
}

fn read(path: &Path) -> io::Result<Record> {
    let mut text = Vec::new();
    open_of(DEFAULT_PROXY_ID, path)?.take(LONGEST_RECORD).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Opens a file of the proxy's, by its uid: anybody may make directories and files where agent and Envoy meet, so what
/// others have put there is not believed, a link is not followed, and nothing is waited for.
///
/// # Errors
/// As the kernel says, or that it is somebody else's, or no file.
pub fn open_of(owner: u32, path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let status = file.metadata()?;
    if status.is_file() && status.uid() == owner {
        return Ok(file);
    }
    Err(io::Error::other("it is not the proxy's"))
}

/// Whether a directory is the proxy's, and no link to one.
pub fn owns(directory: &Path) -> bool {
    let status = fs::symlink_metadata(directory);
    status.is_ok_and(|status| status.is_dir() && status.uid() == DEFAULT_PROXY_ID)
}

/// Ends one that cannot be looked after, which another one would be started beside: Envoy ends with its shim.
fn given_up(mut child: Child, why: StartError) -> StartError {
    drop(child.kill().and_then(|()| child.wait()));
    why
}

const fn system(attempt: &'static str, source: io::Error) -> StartError {
    StartError::System { attempt, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::command::ProxyCommand;
    use crate::proxy::instance::{Build, Instance};

    #[test]
    fn a_process_is_known_by_its_number_and_its_start() {
        let own = mark(std::process::id()).unwrap();
        assert!(open(own).is_ok());
        let earlier = ProcessMark { start: own.start - 1, ..own };
        assert_eq!(open(earlier).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_process_that_has_ended_is_none_though_nobody_has_waited_for_it() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id();
        while mark(pid).is_ok() {
            std::thread::yield_now();
        }
        assert_eq!(mark(pid).unwrap_err().kind(), ErrorKind::NotFound);
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn one_that_runs_has_not_ended_though_proc_tells_nothing_of_it() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = mark(child.id()).unwrap();
        let command = ProxyCommand::parse("/bin/cat").unwrap();
        let program = program(&command.program).unwrap();
        let instance =
            Instance { number: 1, epoch: 0, build: Build { command, program, bootstrap: String::new() } };
        let unknown = ProcessMark { start: 0, ..process };
        let record = Record { instance, shim: unknown, envoy: unknown, started_at: 0, ended: None };
        let directory = PathBuf::new();
        let running = Running { record, directory, shim: watch(process).unwrap(), child: None };
        tokio::task::yield_now().await;
        assert!(!running.has_ended());
        child.kill().unwrap();
        running.ended().await;
        assert!(running.has_ended());
        child.wait().unwrap();
    }

    #[test]
    fn what_others_have_put_in_the_place_of_a_file_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let [own, link, pipe] = ["own", "link", "pipe"].map(|name| directory.path().join(name));
        fs::write(&own, "{}").unwrap();
        std::os::unix::fs::symlink(&own, &link).unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let me = fs::metadata(&own).unwrap().uid();
        assert!(open_of(me, &own).is_ok());
        assert!(open_of(me + 1, &own).is_err());
        for other in [&link, &pipe, directory.path()] {
            assert!(open_of(me, other).is_err(), "{}", other.display());
        }
    }

    #[test]
    fn a_program_that_is_replaced_is_another_one() {
        let directory = tempfile::tempdir().unwrap();
        let [path, draft] = ["envoy", "draft"].map(|name| directory.path().join(name));
        fs::write(&path, "one").unwrap();
        let before = program(&path).unwrap();
        assert_eq!(program(&path).unwrap(), before);
        fs::write(&draft, "two").unwrap();
        fs::rename(&draft, &path).unwrap();
        assert_ne!(program(&path).unwrap(), before);
        assert!(program(directory.path()).is_err());
    }
}
