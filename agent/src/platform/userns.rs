//! The user namespace that owns a pod's netns, and how its ids map to the node's (`hostUsers: false`).
//!
//! Owns: a child for a moment. The kernel shows the maps of a namespace only through a process in it, and at ADD
//! there is none: the runtime's is gone, the pod's not there yet. So the agent starts itself once more; the child
//! joins the namespace, which a process with threads may not, says so, and waits to be let go.
//! Never does: run anything of the pod's; the child executes the agent's own binary and no other.
//! Called by: `enrol::node`; the child's side by `main`.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::netns;
use crate::model::ids::{IdMap, IdMaps};
use crate::platform::netns::NetnsId;

/// The argument that makes the agent's binary the child.
pub const CHILD_COMMAND: &str = "join-user-namespace";
/// It takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// The id maps of the user namespace that owns a netns; `None` if that is the agent's own.
///
/// # Errors
/// As the system says; with a kernel or a sandbox that does not let the agent join it, too.
pub fn id_maps(of: BorrowedFd<'_>) -> io::Result<Option<IdMaps>> {
    let userns = netns::owner(of)?;
    let own = fs::File::open("/proc/self/ns/user")?;
    if NetnsId::of(userns.as_fd())? == NetnsId::of(own.as_fd())? {
        return Ok(None);
    }
    let (ours, theirs) = UnixStream::pair()?;
    let mut child = Command::new("/proc/self/exe")
        .arg(CHILD_COMMAND)
        .env_clear()
        .stdin(Stdio::from(userns))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::null())
        .spawn()?;
    let maps = read(ours, &child);
    // It ends when its stream does, which `read` has closed; a child that is stuck must not stay.
    if maps.is_err() {
        child.kill()?;
    }
    child.wait()?;
    maps.map(Some)
}

fn read(mut child_said: UnixStream, child: &Child) -> io::Result<IdMaps> {
    child_said.set_read_timeout(Some(PATIENCE))?;
    child_said.read_exact(&mut [0])?;
    let map = |name: &str| {
        let text = fs::read_to_string(format!("/proc/{}/{name}", child.id()))?;
        let bad =
            || io::Error::new(io::ErrorKind::InvalidData, format!("{name} is {text:?}, which is no map"));
        IdMap::parse(&text).ok_or_else(bad)
    };
    Ok(IdMaps { uids: map("uid_map")?, gids: map("gid_map")? })
}

/// The child: joins the user namespace on stdin, says so on stdout, and ends when nobody listens any more.
///
/// # Errors
/// As the kernel says.
pub fn child() -> io::Result<()> {
    netns::join_user_namespace(io::stdin().as_fd())?;
    let mut stream = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    stream.write_all(&[1])?;
    stream.read_exact(&mut [0]).or(Ok(()))
}
