//! The plugin's socket: how long a request may take, how long it may be, and the descriptor with it.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use veer_common::cni::{self, Reply, Request, code};

use super::answer::Answerer;
use crate::socket;
use crate::source::PodSource;

/// How long a plugin may take to send its request: it has it ready when it connects.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves requests until `stop`; those that are under way are finished.
pub async fn serve<S>(listener: UnixListener, answerer: Arc<Answerer<S>>, stop: CancellationToken)
where
    S: PodSource + Send + Sync + 'static,
{
    socket::serve(listener, cni::SOCKET_NAME, stop, |stream| {
        let answerer = Arc::clone(&answerer);
        async move { converse(stream, &answerer).await }
    })
    .await;
}

async fn converse<S: PodSource>(mut stream: UnixStream, answerer: &Answerer<S>) -> io::Result<()> {
    let received = timeout(PATIENCE, receive(&mut stream)).await?;
    let reply = match received {
        Ok((request, netns)) => answerer.answer(request, netns, || has_hung_up(&stream)).await,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Reply::Failed {
            code: code::PROTOCOL,
            msg: format!("the request is not one: {error}"),
            details: "veer-cni and veer are of different releases, or something else wrote to the socket"
                .to_owned(),
        },
        Err(error) => return Err(error),
    };
    stream.write_all(&cni::encode(&reply)?).await?;
    stream.shutdown().await
}

/// Whether the peer has closed its end, or has died.
fn has_hung_up(stream: &UnixStream) -> bool {
    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    // Not asked for, because it is always told.
    poll(&mut polled, PollTimeout::ZERO).is_ok()
        && polled.iter().any(|fd| fd.revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)))
}

/// Receives a request, and the descriptor that came with its first byte.
async fn receive(stream: &mut UnixStream) -> io::Result<(Request, Option<OwnedFd>)> {
    let mut prefix = [0; 4];
    let (count, netns) = stream.async_io(Interest::READABLE, || receive_first(stream, &mut prefix)).await?;
    if count == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let rest = prefix.get_mut(count..).unwrap_or_default();
    stream.read_exact(rest).await?;
    let mut bytes = vec![0; cni::message_length(prefix)?];
    stream.read_exact(&mut bytes).await?;
    let request =
        serde_json::from_slice(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok((request, netns))
}

fn receive_first(stream: &UnixStream, prefix: &mut [u8; 4]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(prefix)];
    let received = recvmsg(stream.as_fd(), &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    // Owned at once, whatever is found wrong later; more than one are closed with the iterator.
    let netns = ancillary.drain().find_map(|message| {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message { descriptors.next() } else { None }
    });
    Ok((received.bytes, netns))
}
