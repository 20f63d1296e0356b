//! `kube-node`: makes the mount namespace that it was started in a Kubernetes node's, and holds it.
//!
//! See `veer_tests::kube::node`. The usual paths are there and are the node's own: what kubelet, containerd and
//! plugins write below /etc, /opt, /run and /var/lib is in the node's directory and goes with it; the sysctls that
//! kubelet sets for the whole machine are files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::mount::{MsFlags, mount};
use nix::unistd::{getppid, pause};

/// What kubelet sets if it may; it runs as well if it only seems to.
const SYSCTLS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];
/// Directories of the machine that the node sees and changes only for itself.
const OVERLAID: [&str; 3] = ["etc", "opt", "var/lib"];
/// The node's own, in its directory under the first name, so that a test can look into them.
const OWN: [(&str, &str); 7] = [
    ("net.d", "/etc/cni/net.d"),
    ("bin", "/opt/cni/bin"),
    ("containerd", "/var/lib/containerd"),
    ("kubelet", "/var/lib/kubelet"),
    ("cni", "/var/lib/cni"),
    ("veer", "/run/veer"),
    ("log", "/var/log"),
];

/// Hold a node's mount namespace.
#[derive(Parser)]
struct Options {
    /// The node's directory
    directory: PathBuf,
}

fn main() -> Result<()> {
    let Options { directory } = Options::parse();
    // An overlay on the machine's own /etc would be hard to take away again.
    let [own, parents] = ["self".to_owned(), getppid().to_string()]
        .map(|process| fs::read_link(format!("/proc/{process}/ns/mnt")));
    ensure!(own? != parents?, "this is the mount namespace of who started it: it must have one of its own");
    for path in OVERLAID {
        overlay(&directory.join("overlay"), path)?;
    }
    mount_at("/run", "tmpfs")?;
    for below in ["netns", "containerd", "lock"] {
        make(&Path::new("/run").join(below))?;
    }
    for (name, path) in OWN {
        make(&directory.join(name))?;
        make(Path::new(path))?;
        bind(&directory.join(name), Path::new(path))?;
    }
    if !Path::new("/var/run").exists() {
        symlink("/run", "/var/run").context("link /var/run")?;
    }
    mount_at("/sys/fs/bpf", "bpf")?;
    for name in SYSCTLS {
        protect(&directory.join("sysctls"), name)?;
    }
    let shared = MsFlags::MS_REC | MsFlags::MS_SHARED;
    mount(None::<&str>, "/", None::<&str>, shared, None::<&str>).context("share mounts with pods")?;
    fs::write(directory.join("ready"), "").context("say that it is ready")?;
    loop {
        pause();
    }
}

fn overlay(parts: &Path, path: &str) -> Result<()> {
    let [upper, work] = ["upper", "work"].map(|part| parts.join(path.replace('/', "-")).join(part));
    make(&upper)?;
    make(&work)?;
    let lower = Path::new("/").join(path);
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    mount(Some("overlay"), &lower, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("mount an overlay on {}", lower.display()))
}

fn mount_at(path: &str, kind: &str) -> Result<()> {
    mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mount a {kind} on {path}"))
}

/// What is written there changes nothing, and is read as it was.
fn protect(directory: &Path, name: &str) -> Result<()> {
    let real = Path::new("/proc/sys").join(name);
    // Not every kernel has all of them.
    let Ok(value) = fs::read(&real) else { return Ok(()) };
    let file = directory.join(name);
    file.parent().map_or(Ok(()), make)?;
    fs::write(&file, value).with_context(|| format!("write {}", file.display()))?;
    bind(&file, &real)
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("bind {} to {}", from.display(), to.display()))
}

fn make(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))
}
