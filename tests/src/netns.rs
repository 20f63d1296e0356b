//! Network namespaces: where the kit makes and enters them.
//!
//! A namespace is entered by a thread of its own, which ends with the closure it runs; no other thread
//! ever changes its namespace. Sockets made inside stay inside.

#![expect(clippy::disallowed_methods, reason = "this is the place of the kit for setns and unshare")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::{scratch, userns, veth};

/// Where `ip netns` keeps its names.
pub const DIRECTORY: &str = "/run/netns";

/// A network namespace with a name, loopback up and no duplicate address detection.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    file: File,
}

impl NetNs {
    /// Makes one with a unique name.
    pub fn new() -> Result<Self> {
        Self::named(&scratch::unique_name())
    }

    /// Makes one with this name.
    pub fn named(name: &str) -> Result<Self> {
        let path = path_of(name);
        make(&path).with_context(|| format!("make netns {name}"))?;
        Self::prepared(name.to_owned())
    }

    fn prepared(name: String) -> Result<Self> {
        let path = path_of(&name);
        // From here on the guard removes it, whatever fails below.
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let netns = Self { name, file };
        for interface in ["all", "default", "lo"] {
            netns.set_sysctl(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "0")?;
            // Addresses are usable at once; two seconds for each would be most of a test's time.
            netns.set_sysctl(&format!("net/ipv6/conf/{interface}/accept_dad"), "0")?;
        }
        veth::ip(&netns, ["link set lo up"])?;
        Ok(netns)
    }

    /// Makes one that belongs to a new user namespace, whose ids from 0 on are the node's from `first` on.
    pub fn of_user_namespace(first: u32) -> Result<Self> {
        let name = scratch::unique_name();
        let path = path_of(&name);
        let member = userns::Member::start(first)?;
        bind(&path, &member.netns()).with_context(|| format!("make netns {name}"))?;
        Self::prepared(name)
    }

    /// Its name, as `ip -n` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file below `/run/netns`.
    pub fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// Runs `inside` on a thread in this namespace and gives back what it returns.
    ///
    /// Processes started inside are in the namespace, too. One that dies with its parent (see
    /// [`Launch`](crate::launch::Launch)) would die with the thread: let the launcher enter instead.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T> {
        let on_thread = || {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("enter netns {}", self.name))?;
            Ok(inside())
        };
        thread::scope(|scope| scope.spawn(on_thread).join()).unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Starts a thread in this namespace, for whoever stays there.
    pub fn spawn(&self, inside: impl FnOnce() + Send + 'static) -> Result<thread::JoinHandle<()>> {
        let file = self.file.try_clone().context("duplicate the netns's descriptor")?;
        let (entered, has_entered) = mpsc::channel();
        let thread = thread::spawn(move || {
            let entry = setns(file.as_fd(), CloneFlags::CLONE_NEWNET);
            let is_in = entry.is_ok();
            // Whoever waits for it is there: this function.
            entered.send(entry).ok();
            if is_in {
                inside();
            }
        });
        has_entered
            .recv()
            .context("the thread has ended")?
            .with_context(|| format!("enter netns {}", self.name))?;
        Ok(thread)
    }

    /// How many TCP sockets listen on a port, of both families.
    pub fn listening(&self, port: u16) -> Result<usize> {
        // Columns: the line's number, both addresses, the state.
        let (port, listens) = (format!(":{port:04X}"), "0A");
        let count = |text: &str| {
            let is_it = |line: &&str| {
                let mut columns = line.split_whitespace().skip(1);
                let local = columns.next();
                local.is_some_and(|local| local.ends_with(&port)) && columns.nth(1) == Some(listens)
            };
            text.lines().filter(is_it).count()
        };
        let read = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
        let (v4, v6) = self.run(|| (read("tcp"), read("tcp6")))?;
        Ok(count(&v4.context("read net/tcp")?) + count(&v6.context("read net/tcp6")?))
    }

    /// What the kernel has counted for the namespace's TCP: the rows `TcpExt` of `/proc/net/netstat`.
    pub fn tcp_counters(&self) -> Result<BTreeMap<String, u64>> {
        let text =
            self.run(|| fs::read_to_string("/proc/thread-self/net/netstat"))?.context("read net/netstat")?;
        let mut rows = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
        let (names, counts) = (rows.next().unwrap_or_default(), rows.next().unwrap_or_default());
        let counters = names.split_whitespace().zip(counts.split_whitespace());
        counters
            .map(|(name, count)| Ok((name.to_owned(), count.parse().with_context(|| name.to_owned())?)))
            .collect()
    }

    /// One of [`Self::tcp_counters`].
    pub fn tcp_counter(&self, name: &str) -> Result<u64> {
        self.tcp_counters()?.remove(name).with_context(|| format!("the kernel does not count {name}"))
    }

    /// Sets a sysctl of this namespace; `name` has slashes: `net/ipv4/ip_forward`.
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.run(|| fs::write(Path::new("/proc/sys").join(name), value))?
            .with_context(|| format!("set sysctl {name} to {value} in netns {}", self.name))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            eprintln!("{error:#}");
        }
    }
}

/// The names of all network namespaces that have one.
pub fn names() -> Vec<String> {
    let Ok(entries) = fs::read_dir(DIRECTORY) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Removes a name; the namespace goes with its last process and socket.
pub fn remove(name: &str) -> Result<()> {
    let path = path_of(name);
    // Not mounted any more is as good: the file is what remains to be removed.
    umount2(&path, MntFlags::MNT_DETACH)
        .or_else(|error| if error == nix::Error::EINVAL { Ok(()) } else { Err(error) })
        .with_context(|| format!("unmount netns {name}"))?;
    fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
}

fn path_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// A bind mount of the new namespace's file is what keeps it alive and gives it its name.
fn make(path: &Path) -> Result<()> {
    let unshared = || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET).context("unshare the network namespace (needs root)")?;
        bind(path, Path::new("/proc/thread-self/ns/net"))
    };
    let made = thread::scope(|scope| scope.spawn(unshared).join());
    made.unwrap_or_else(|_panic| Err(anyhow!("the thread that makes it panicked")))
}

fn bind(path: &Path, netns: &Path) -> Result<()> {
    fs::create_dir_all(DIRECTORY).with_context(|| format!("make {DIRECTORY}"))?;
    File::create_new(path)?;
    let bound = mount(Some(netns), path, None::<&str>, MsFlags::MS_BIND, None::<&str>);
    bound.context("bind it to its name").inspect_err(|_error| {
        // The name is ours alone, and nothing is mounted on it yet.
        if let Err(error) = fs::remove_file(path) {
            eprintln!("remove {}: {error}", path.display());
        }
    })
}
