//! Sysctls of the netns that the calling thread is in.
//!
//! Owns: where they are written. Never does: know what for. Called by: `enrol`, on the netns thread.

use std::fs;
use std::io;
use std::path::Path;

/// Where a sysctl of networking is the netns' of whoever opens it (`net/sysctl_net.c`). A runtime mounts the first one
/// read-only into every container that is not privileged. The other is the node's own, by way of its first process:
/// the agent sees the node's processes.
const PLACES: [&str; 2] = ["/proc/sys", "/proc/1/root/proc/sys"];

/// Sets a sysctl; `name` has slashes: `net/ipv4/ip_forward`.
///
/// # Errors
/// As the system says; ENOENT where the kernel has none of that name. EROFS in a container that does not see the node's
/// processes.
pub fn set(name: &str, value: &str) -> io::Result<()> {
    let [ours, nodes] = PLACES.map(|place| Path::new(place).join(name));
    match fs::write(ours, value) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => fs::write(nodes, value),
        other => other,
    }
}
