//! Sysctls of the netns that the calling thread is in.
//!
//! Owns: where they are written. Never does: know what for. Called by: `enrol`, on the netns thread.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Where a sysctl of networking is the netns' of whoever opens it (`net/sysctl_net.c`).
const PLACE: &str = "/proc/sys";

/// Sets a sysctl; `name` has slashes: `net/ipv4/ip_forward`.
///
/// A runtime mounts `/proc/sys` read-only into every container that is not privileged, and then it is set by way of a procfs
/// of our own, which is mounted nowhere.
///
/// # Errors
/// As the system says; ENOENT where the kernel has none of that name. ENOSYS in such a container before Linux 5.2.
pub fn set(name: &str, value: &str) -> io::Result<()> {
    match fs::write(Path::new(PLACE).join(name), value) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            let file = openat(
                procfs()?,
                Path::new("sys").join(name),
                OFlags::WRONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            File::from(file).write_all(value.as_bytes())
        }
        other => other,
    }
}

/// A procfs that nobody else sees (`fsopen(2)`, `fsmount(2)`); it goes with its descriptor.
fn procfs() -> io::Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_procfs_of_our_own_has_the_sysctls() {
        let name = "sys/net/ipv4/ip_forward";
        let file = openat(procfs().unwrap(), name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let ours = io::read_to_string(File::from(file)).unwrap();
        assert_eq!(ours, fs::read_to_string(Path::new("/proc").join(name)).unwrap());
    }
}
