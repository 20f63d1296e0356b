//! `in-pod`: enters a netns and a cgroup, drops every privilege, executes a program.
//!
//! See `veer_tests::launch`, which is how it is used. It keeps its process id, so whoever started it
//! knows the program's.

#![expect(clippy::disallowed_methods, reason = "the launcher enters the netns for the program it becomes")]

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Parser;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::ptrace;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, fexecve, setgid, setgroups, setuid};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
};
use veer_tests::bpf_gate;

/// `CLONE_NEWTIME`, which nix does not name.
const CLONE_NEWTIME: i32 = 0x80;

/// Run a program in a pod: in its netns and cgroup, with no privilege.
#[derive(Parser)]
struct Options {
    /// File of the netns to enter
    #[arg(long)]
    netns: Option<PathBuf>,
    /// Directory of the cgroup to join
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// User to become, without any capability
    #[arg(long, requires = "gid")]
    uid: Option<u32>,
    /// Primary group to become
    #[arg(long, requires = "uid")]
    gid: Option<u32>,
    /// Supplementary group, any number of them
    #[arg(long, requires = "uid")]
    group: Vec<u32>,
    /// Capabilities, as bits, that the program is to have for all that
    #[arg(long, requires = "uid", default_value_t = 0)]
    keep: u64,
    /// Capability, as a bit, that the program is not to have; any number of them
    #[arg(long, conflicts_with = "uid")]
    without: Vec<u64>,
    /// Socket of a gate that each bpf(2) of the program has to pass
    #[arg(long)]
    bpf_gate: Option<PathBuf>,
    /// File of the mount namespace to enter
    #[arg(long, conflicts_with = "own_mounts")]
    mounts: Option<PathBuf>,
    /// Have a mount namespace of its own
    #[arg(long)]
    own_mounts: bool,
    /// Have a time namespace whose monotonic clocks are off by so many seconds
    #[arg(long, allow_negative_numbers = true)]
    clock_offset: Option<i64>,
    /// Be killed when the thread that started this ends
    #[arg(long)]
    die_with_parent: bool,
    /// Be traced by whoever started this
    #[arg(long)]
    traced: bool,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    program: Vec<String>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let program = options.program.first().context("no program")?;
    // Opened as who we are: the way to it may be root's alone, as everything below /root is.
    let executable = if program.contains('/') {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let file = open(program.as_str(), flags, Mode::empty()).with_context(|| format!("open {program}"))?;
        Some(file)
    } else {
        None
    };
    if let Some(cgroup) = &options.cgroup {
        fs::write(cgroup.join("cgroup.procs"), "0")
            .with_context(|| format!("join cgroup {}", cgroup.display()))?;
    }
    if let Some(path) = &options.netns {
        let netns = File::open(path).with_context(|| format!("open netns {}", path.display()))?;
        setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("enter netns {}", path.display()))?;
    }
    if let Some(path) = &options.mounts {
        let mounts = File::open(path).with_context(|| format!("open mount namespace {}", path.display()))?;
        setns(mounts.as_fd(), CloneFlags::CLONE_NEWNS)
            .with_context(|| format!("enter mount namespace {}", path.display()))?;
    }
    if options.own_mounts {
        unshare(CloneFlags::CLONE_NEWNS).context("unshare the mount namespace")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("hear of no other's mounts")?;
    }
    if let Some(seconds) = options.clock_offset {
        shift_clocks(seconds)?;
    }
    if let (Some(uid), Some(gid)) = (options.uid, options.gid) {
        let keep = CapabilitySet::from_bits_retain(options.keep);
        become_nobody_special(uid, gid, &options.group, keep)?;
    }
    // What a program of root's gets when it is executed is limited by the bounding set.
    for bit in &options.without {
        remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(*bit))
            .context("take a capability away")?;
    }
    if options.die_with_parent {
        // Last, because a change of user clears it.
        set_parent_process_death_signal(Some(Signal::KILL)).context("ask to die with the parent")?;
    }
    if let Some(gate) = &options.bpf_gate {
        bpf_gate::go_before(gate)?;
    }
    if options.traced {
        // From here on it stops when the program is executed.
        ptrace::traceme().context("be traced")?;
    }
    execute(executable, &options.program)
}

/// Becomes the program; returns only if that fails.
fn execute(executable: Option<OwnedFd>, command: &[String]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no program")?;
    match executable {
        Some(file) => {
            let environment = environment()?;
            let arguments = command.iter().map(|text| CString::new(text.as_str()));
            let arguments =
                arguments.collect::<Result<Vec<_>, _>>().context("an argument has a zero byte")?;
            match fexecve(file, &arguments, &environment) {
                Err(error) => Err(error).with_context(|| format!("execute {program}")),
            }
        }
        None => {
            Err(Command::new(program).args(arguments).exec()).with_context(|| format!("execute {program}"))
        }
    }
}

/// A process keeps the clocks that it has begun with, so it enters the namespace that it made for its children.
fn shift_clocks(seconds: i64) -> Result<()> {
    unshare(CloneFlags::from_bits_retain(CLONE_NEWTIME)).context("unshare the time namespace")?;
    fs::write("/proc/self/timens_offsets", format!("monotonic {seconds} 0\nboottime {seconds} 0\n"))
        .with_context(|| format!("shift the clocks by {seconds} s"))?;
    let shifted = File::open("/proc/self/ns/time_for_children").context("open the time namespace")?;
    setns(shifted.as_fd(), CloneFlags::empty()).context("enter the time namespace")
}

fn environment() -> Result<Vec<CString>> {
    let variables = std::env::vars_os().map(|(name, value)| {
        CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
            .context("the environment has a zero byte")
    });
    variables.collect()
}

/// The bounding set first, because that takes a capability; the rest goes with the user, and what root
/// would keep goes by hand.
fn become_nobody_special(uid: u32, gid: u32, groups: &[u32], keep: CapabilitySet) -> Result<()> {
    let last: u32 = fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .context("read /proc/sys/kernel/cap_last_cap")?
        .trim()
        .parse()
        .context("parse /proc/sys/kernel/cap_last_cap")?;
    let all = (0..=last).map(|number| CapabilitySet::from_bits_retain(1 << number));
    for capability in all.filter(|capability| !keep.contains(*capability)) {
        remove_capability_from_bounding_set(capability).context("empty the bounding set")?;
    }
    let groups: Vec<_> = groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).context("set the supplementary groups")?;
    setgid(Gid::from_raw(gid)).with_context(|| format!("become group {gid}"))?;
    // Root has what is kept of the bounding set when its program is executed, and anybody else of the ambient one.
    let ambient = if uid == 0 { CapabilitySet::empty() } else { keep };
    set_keep_capabilities(true).context("keep capabilities through a change of user")?;
    setuid(Uid::from_raw(uid)).with_context(|| format!("become user {uid}"))?;
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: ambient };
    set_capabilities(None, sets).context("drop all capabilities")?;
    clear_ambient_capability_set().context("clear the ambient capabilities")?;
    for capability in ambient.iter() {
        configure_capability_in_ambient_set(capability, true).context("make a capability ambient")?;
    }
    set_no_new_privs(true).context("set no_new_privs")
}
