//! What all machines have in common: programs of this machine with their libraries, veer, and the tests.
//!
//! Owns: which files. A machine sees these and nothing else of the one that it runs on.
//! Never does: touch them. Called by: `vm`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::archive::{Archive, Entry};
use crate::setup::Tools;
use crate::{exec, workspace};

/// Where veer and the tests are.
pub(super) const PLACE: &str = "/veer";
/// Where Envoy, istio-iptables and the CNI plugins are.
pub(super) const TOOLS: &str = "/tools";

/// Programs that the tests and the kernel start, found on PATH here and there.
const PROGRAMS: [&str; 18] = [
    "getent",
    "ip",
    "nft",
    "conntrack",
    "iptables",
    "iptables-save",
    "iptables-restore",
    "iptables-legacy",
    "iptables-legacy-save",
    "iptables-legacy-restore",
    "ip6tables",
    "ip6tables-save",
    "ip6tables-restore",
    "ip6tables-legacy",
    "ip6tables-legacy-save",
    "ip6tables-legacy-restore",
    "iptables-nft",
    "ip6tables-nft",
];
/// What busybox is to stand in for. `unshare`, `mkfifo` and the like are what tests start besides.
const OF_BUSYBOX: [&str; 18] = [
    "sh", "cat", "chmod", "cp", "dmesg", "echo", "grep", "ls", "mkdir", "mkfifo", "mount", "poweroff", "ps",
    "rm", "sleep", "sync", "unshare", "uname",
];
/// The kernel starts it to load what is asked for. Not busybox's, which takes a module that another process is
/// loading for one that is there.
const MODPROBE: &str = "/sbin/modprobe";
/// iptables loads its matches and targets from here.
const PLUGINS_OF_IPTABLES: [&str; 2] = ["/usr/lib/x86_64-linux-gnu/xtables", "/usr/lib64/xtables"];

/// All of it. `binaries` are names and files for [`PLACE`].
pub(super) fn base(binaries: &[(String, PathBuf)], tools: &Tools, busybox: &Path) -> Result<Archive> {
    let mut archive = Archive::default();
    for directory in ["/dev", "/etc", "/proc", "/root", "/run", "/sys", "/tmp", "/var/tmp"] {
        archive.put(directory, Entry::Directory);
    }
    archive.put("/etc/passwd", Entry::Text("root:x:0:0:root:/root:/bin/sh\n".to_owned()));
    archive.put("/etc/group", Entry::Text("root:x:0:\n".to_owned()));
    archive.put("/etc/hosts", Entry::Text("127.0.0.1 localhost\n::1 localhost\n".to_owned()));
    // A test mounts one of its own there.
    archive.put("/etc/resolv.conf", Entry::Text(String::new()));
    archive.put("/init", Entry::Link(Path::new(PLACE).join("vm-init")));
    for name in PROGRAMS {
        let path = workspace::program(name).with_context(|| format!("{name} is not on PATH"))?;
        program(&mut archive, &path, &path)?;
    }
    for name in ["bridge", "host-local", "loopback"] {
        let path = tools.cni_plugins.join(name);
        if path.is_file() {
            program(&mut archive, &path, &Path::new(TOOLS).join("cni").join(name))?;
        }
    }
    program(&mut archive, &tools.envoy, &Path::new(TOOLS).join("envoy"))?;
    program(&mut archive, &tools.istio_iptables, &Path::new(TOOLS).join("istio-iptables"))?;
    for directory in PLUGINS_OF_IPTABLES {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        for file in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
            program(&mut archive, &file, &file)?;
        }
    }
    program(&mut archive, busybox, Path::new("/bin/busybox"))?;
    for name in OF_BUSYBOX {
        archive.put(Path::new("/bin").join(name), Entry::Link("/bin/busybox".into()));
    }
    let modprobe = workspace::program("modprobe").context("modprobe is not on PATH")?;
    program(&mut archive, &modprobe, Path::new(MODPROBE))?;
    for (name, path) in binaries {
        archive.put(Path::new(PLACE).join(name), Entry::Copy(path.clone()));
    }
    Ok(archive)
}

/// PATH in the machine: where [`PROGRAMS`] were found here.
pub(super) fn search_path() -> String {
    let mut path = "/usr/sbin:/usr/bin:/sbin:/bin".to_owned();
    for name in PROGRAMS {
        let Some(directory) = workspace::program(name).and_then(|path| path.parent().map(Path::to_owned))
        else {
            continue;
        };
        if !env::split_paths(&path).any(|known| known == directory) {
            path = format!("{path}:{}", directory.display());
        }
    }
    path
}

/// A program or library, and what it loads when it starts.
fn program(archive: &mut Archive, source: &Path, place: &Path) -> Result<()> {
    let real = fs::canonicalize(source).with_context(|| format!("find {}", source.display()))?;
    for library in libraries(&exec::quiet(Command::new("ldd").arg(&real)).unwrap_or_default()) {
        archive.put(library, Entry::Copy(library.into()));
    }
    archive.put(place, Entry::Copy(real));
    Ok(())
}

/// The files that ldd names: `libc.so.6 => /lib/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`. What is
/// static has none.
fn libraries(listing: &str) -> Vec<&str> {
    let path = |line| -> Option<&str> {
        let (_name, path) = str::split_once(line, '/')?;
        let start = line.len() - path.len() - 1;
        line.get(start..)?.split(' ').next()
    };
    listing.lines().filter(|line| line.starts_with('\t')).filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        let text = "\tlinux-vdso.so.1 (0x00007fff)\n\tlibmnl.so.0 => /lib/x86_64-linux-gnu/libmnl.so.0 (0x1)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x2)\n";
        assert_eq!(libraries(text), ["/lib/x86_64-linux-gnu/libmnl.so.0", "/lib64/ld-linux-x86-64.so.2"]);
        assert!(libraries("\tstatically linked\n").is_empty());
    }
}
