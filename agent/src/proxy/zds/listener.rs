//! The socket that ztunnel dials, by default of Istio `/var/run/ztunnel/ztunnel.sock`.
//!
//! Owns: making it, who may talk to it, and the pace at which it is taken. tokio and the standard library know two kinds of unix
//! sockets, neither of which is SOCK_SEQPACKET; what they do with a descriptor is the same for it.
//! Never does: read what is said. Called by: `app`.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net as unix;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Zds;
use crate::accept;

/// Connections that wait: there is one ztunnel, or two while one takes over.
const BACKLOG: i32 = 16;
/// Between two connections: one that is closed connects again at once, for ever if need be.
const PACE: Duration = Duration::from_millis(100);

/// Makes it, and its directory, in place of one that nobody serves any more.
///
/// # Errors
/// As the file system says; and if somebody serves it: Istio's node agent, most likely, beside which no pod must be driven.
pub fn open(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    let address = SocketAddrUnix::new(path)?;
    match connect(&socket()?, &address) {
        Ok(()) | Err(Errno::AGAIN) => {
            let words =
                "somebody else serves it: istio-cni, in ambient mode? A node has one that tells ztunnel";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, words));
        }
        Err(Errno::NOENT) => {}
        Err(_) => fs::remove_file(path)?,
    }
    let socket = socket()?;
    bind(&socket, &address)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listen(&socket, BACKLOG)?;
    UnixListener::from_std(unix::UnixListener::from(socket))
}

/// Serves ztunnels until `stop`. Istio runs ztunnel as root; nobody else is talked to.
pub async fn serve(listener: UnixListener, zds: Zds, stop: CancellationToken) {
    let accept = || async {
        let accepted = listener.accept().await;
        sleep(PACE).await;
        accepted
    };
    accept::serve("ztunnel", &stop, accept, |(stream, _address)| {
        let (zds, stop) = (zds.clone(), stop.clone());
        async move {
            if is_root(&stream) {
                // It is not told: it serves on without an agent, and waits for the next one.
                stop.run_until_cancelled(zds.converse(stream)).await;
            } else {
                tracing::warn!("refused a connection: the peer is not root, as Istio's ztunnel is");
            }
        }
    })
    .await;
}

/// The socket's mode says so already, and modes get changed. Root of a pod's own user namespace is another uid here.
fn is_root(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0)
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}
