//! One connection to a ztunnel: packets out, with descriptors, and packets in.
//!
//! Owns: what a packet is on a SOCK_SEQPACKET socket. Never does: know what they mean, or hold more than one of each direction: who sends
//! faster than the task listens waits in the kernel.
//! Called by: `zds`.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::message::LONGEST;

/// Something to send.
#[derive(Debug)]
pub(super) struct Order {
    /// The message.
    pub(super) packet: Vec<u8>,
    /// What goes with it.
    pub(super) netns: Option<OwnedFd>,
}

/// Sends what it is ordered to, and says so each time; hands on what is said. Until there are no more orders, or the peer has gone.
pub(super) async fn converse<S, H, E>(
    stream: &UnixStream,
    mut orders: mpsc::Receiver<Order>,
    sent: impl Fn() -> S,
    said: impl Fn(Vec<u8>) -> H,
) where
    S: Future<Output = Result<(), E>>,
    H: Future<Output = Result<(), E>>,
{
    loop {
        let heard = tokio::select! {
            order = orders.recv() => {
                let Some(order) = order else { return };
                // One at a time: that there is another answer from the queue means that there will be none.
                let outcome = tokio::select! {
                    outcome = send(stream, &order) => outcome,
                    _closed = orders.recv() => return,
                };
                match outcome {
                    Ok(()) => sent().await,
                    Err(error) => return tracing::debug!(%error, "send to ztunnel"),
                }
            }
            packet = receive(stream) => match packet {
                Ok(Some(packet)) => said(packet).await,
                Ok(None) => return,
                Err(error) => return tracing::warn!(%error, "receive from ztunnel"),
            },
        };
        if heard.is_err() {
            return;
        }
    }
}

async fn send(stream: &UnixStream, order: &Order) -> io::Result<()> {
    let descriptors = order.netns.as_ref().map(AsFd::as_fd);
    stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !descriptors.as_slice().is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(descriptors.as_slice()));
            }
            sendmsg(stream, &[IoSlice::new(&order.packet)], &mut ancillary, SendFlags::NOSIGNAL)?;
            Ok(())
        })
        .await
}

/// A packet; `None` at the end, and for an empty one, which the kernel does not tell from it. Descriptors that come with it are closed
/// by the kernel.
///
/// # Errors
/// Also for one that is longer than any that ztunnel has.
async fn receive(stream: &UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut packet = vec![0; LONGEST];
    let read = || recv(stream, packet.as_mut_slice(), RecvFlags::TRUNC).map_err(io::Error::from);
    let (_, length) = stream.async_io(Interest::READABLE, read).await?;
    if length > LONGEST {
        return Err(io::Error::other(format!("a message of {length} bytes, {LONGEST} is the most")));
    }
    packet.truncate(length);
    Ok((length > 0).then_some(packet))
}
