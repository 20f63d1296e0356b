//! Makes a node of the bare machine: mounts, names, loopback.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use rustix::stdio::{dup2_stderr, dup2_stdout};

/// Where the reports go.
const LINE: &str = "/dev/ttyS0";

/// Type and place.
const MOUNTS: [(&str, &str); 10] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    // Where Envoys that take over from each other have their memory.
    ("tmpfs", "/dev/shm"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
    ("tracefs", "/sys/kernel/tracing"),
];

/// Makes it one. The first process starts without a PATH, so programs are found by that of `environment`.
pub(crate) fn prepare(environment: &BTreeMap<String, String>) -> Result<()> {
    for (kind, place) in MOUNTS {
        fs::create_dir_all(place).with_context(|| format!("make {place}"))?;
        mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount {kind} at {place}"))?;
    }
    speak()?;
    // A mount is to be seen in the namespaces that are made later, as under systemd.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>)
        .context("share the mounts")?;
    let mut ip = Command::new("ip");
    let status = ip.args(["link", "set", "lo", "up"]).envs(environment).status().context("start ip")?;
    if !status.success() {
        bail!("ip link set lo up ended with {status}");
    }
    Ok(())
}

/// From here on, what this process and its children print goes to the first serial line. The kernel's messages go
/// to the second, so that neither tears the other's lines.
fn speak() -> Result<()> {
    let line = File::options().read(true).write(true).open(LINE).with_context(|| format!("open {LINE}"))?;
    dup2_stdout(&line).and_then(|()| dup2_stderr(&line)).with_context(|| format!("write to {LINE}"))
}

/// The kernel's release.
pub(crate) fn release() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    Ok(release.trim().to_owned())
}
