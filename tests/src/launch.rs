//! Processes in a pod: in its netns and cgroup, as its user, with no capability.
//!
//! The work is done by the launcher `in-pod`, which enters, drops everything and executes the program:
//! the same process id from the start to the end, and nothing that a container runtime's process lacks.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::thread::CapabilitySet;

use crate::bpf_gate::BpfGate;
use crate::cgroup::Cgroup;
use crate::netns::NetNs;

/// Who a process is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl Identity {
    /// User and group alone.
    pub const fn new(uid: u32, gid: u32) -> Self {
        Self { uid, gid, groups: Vec::new() }
    }

    /// An app: 1000:1000.
    pub const fn app() -> Self {
        Self::new(1000, 1000)
    }

    /// Root, without any capability.
    pub const fn root() -> Self {
        Self::new(0, 0)
    }

    /// The proxy: 1337:1337.
    pub const fn proxy() -> Self {
        Self::new(1337, 1337)
    }

    /// The same with supplementary groups.
    #[must_use]
    pub fn with_groups(mut self, groups: &[u32]) -> Self {
        groups.clone_into(&mut self.groups);
        self
    }
}

/// What is to become of a process before its program runs.
#[derive(Clone, Debug)]
pub struct Launch {
    netns: Option<PathBuf>,
    cgroup: Option<PathBuf>,
    identity: Option<Identity>,
    lacks: Vec<CapabilitySet>,
    keeps: CapabilitySet,
    survives: bool,
    bpf_gate: Option<PathBuf>,
    mounts: Option<PathBuf>,
    has_own_mounts: bool,
    clock_offset: Option<i64>,
    is_traced: bool,
}

impl Default for Launch {
    fn default() -> Self {
        Self::new()
    }
}

impl Launch {
    /// A process that stays where the test is, as who it is.
    pub const fn new() -> Self {
        Self {
            netns: None,
            cgroup: None,
            identity: None,
            lacks: Vec::new(),
            keeps: CapabilitySet::empty(),
            survives: false,
            bpf_gate: None,
            has_own_mounts: false,
            clock_offset: None,
            is_traced: false,
            mounts: None,
        }
    }

    /// In this namespace.
    #[must_use]
    pub fn in_netns(mut self, netns: &NetNs) -> Self {
        self.netns = Some(netns.path());
        self
    }

    /// In this cgroup.
    #[must_use]
    pub fn in_cgroup(mut self, cgroup: &Cgroup) -> Self {
        self.cgroup = Some(cgroup.path().to_owned());
        self
    }

    /// As somebody else: all capability sets are emptied, the bounding set included, and
    /// `no_new_privs` is set.
    #[must_use]
    pub fn with_identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// With some capabilities in spite of that.
    #[must_use]
    pub const fn keeping(mut self, capabilities: CapabilitySet) -> Self {
        self.keeps = capabilities;
        self
    }

    /// As who it is, without some of its capabilities; they go from the bounding set, before the program runs.
    #[must_use]
    pub fn without(mut self, capabilities: &[CapabilitySet]) -> Self {
        capabilities.clone_into(&mut self.lacks);
        self
    }

    /// Each of its calls of bpf(2) has to pass this gate.
    #[must_use]
    pub fn before_bpf_gate(mut self, gate: &BpfGate) -> Self {
        self.bpf_gate = Some(gate.path().to_owned());
        self
    }

    /// In the mount namespace of this process. The program is looked for outside of it, unless it has no path.
    #[must_use]
    pub fn in_mounts_of(mut self, pid: u32) -> Self {
        self.mounts = Some(format!("/proc/{pid}/ns/mnt").into());
        self
    }

    /// In a mount namespace of its own, which begins as a copy of the test's and hears of no change of it.
    #[must_use]
    pub const fn with_own_mounts(mut self) -> Self {
        self.has_own_mounts = true;
        self
    }

    /// In a time namespace whose clocks of the boot (not the wall clock, which has none) are off by so many seconds.
    #[must_use]
    pub const fn with_clock_offset(mut self, seconds: i64) -> Self {
        self.clock_offset = Some(seconds);
        self
    }

    /// Stopped before its program does anything, and traced by whoever starts it: see
    /// [`Traced`](crate::traced::Traced).
    #[must_use]
    pub const fn traced(mut self) -> Self {
        self.is_traced = true;
        self
    }

    /// It outlives the test. Else the kernel kills it when the thread that started it ends.
    #[must_use]
    pub const fn surviving(mut self) -> Self {
        self.survives = true;
        self
    }

    /// The command that starts `program` so.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = Command::new(kit_binary("in-pod")?);
        if let Some(netns) = &self.netns {
            command.arg("--netns").arg(netns);
        }
        if let Some(cgroup) = &self.cgroup {
            command.arg("--cgroup").arg(cgroup);
        }
        if let Some(identity) = &self.identity {
            command.arg(format!("--uid={}", identity.uid)).arg(format!("--gid={}", identity.gid));
            command.args(identity.groups.iter().map(|group| format!("--group={group}")));
        }
        if !self.keeps.is_empty() {
            command.arg(format!("--keep={}", self.keeps.bits()));
        }
        command.args(self.lacks.iter().map(|capability| format!("--without={}", capability.bits())));
        if let Some(gate) = &self.bpf_gate {
            command.arg("--bpf-gate").arg(gate);
        }
        if let Some(mounts) = &self.mounts {
            command.arg("--mounts").arg(mounts);
        }
        if self.has_own_mounts {
            command.arg("--own-mounts");
        }
        if let Some(seconds) = self.clock_offset {
            command.arg(format!("--clock-offset={seconds}"));
        }
        if self.is_traced {
            command.arg("--traced");
        }
        if !self.survives {
            command.arg("--die-with-parent");
        }
        command.arg("--").arg(program.as_ref());
        Ok(command)
    }
}

/// A binary of the kit: cargo puts it beside the test's own executable, or one directory above.
pub fn kit_binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find the running executable")?;
    let found =
        own.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|path| path.exists());
    match found {
        Some(path) => Ok(path),
        None => bail!("no {name} near {}; build it: cargo build -p veer-tests --bins", own.display()),
    }
}

/// A binary of veer: what `variable` names, else what cargo built beside the kit.
pub fn veer_binary(variable: &str, name: &str) -> Result<PathBuf> {
    let path = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => match kit_binary(name) {
            Ok(path) => path,
            Err(_not_built) => bail!("no {name} is built; build it: cargo build, or set {variable}"),
        },
    };
    executable(path, variable)
}

/// `path`, if there is such a file.
pub fn executable(path: PathBuf, variable: &str) -> Result<PathBuf> {
    if !Path::new(&path).is_file() {
        bail!("{variable} is {}, which is not a file", path.display());
    }
    Ok(path)
}
