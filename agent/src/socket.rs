//! Unix sockets that only root may talk to: the plugin's and the commands'.
//!
//! Owns: making them, and who may talk to them. Never does: read what is said.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::accept;

/// Makes a socket that only root can use, in place of one that an earlier agent left.
///
/// # Errors
/// As the file system says.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    // The run directory is locked: whoever made this socket is gone.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Has `converse` talk to everyone who connects, until `stop`; those that are under way are finished.
pub async fn serve<F, C>(listener: UnixListener, name: &'static str, stop: CancellationToken, converse: F)
where
    F: Fn(UnixStream) -> C,
    C: Future<Output = io::Result<()>> + Send + 'static,
{
    let accept = || listener.accept();
    accept::serve(name, &stop, accept, |(stream, _address)| {
        let conversation = is_root(&stream).then(|| converse(stream));
        async move {
            match conversation {
                None => tracing::warn!(socket = name, "refused a connection: the peer is not root"),
                Some(conversation) => {
                    if let Err(error) = conversation.await {
                        tracing::warn!(socket = name, %error, "a conversation broke off");
                    }
                }
            }
        }
    })
    .await;
}

/// The socket's mode says so already, and modes get changed.
fn is_root(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0)
}
