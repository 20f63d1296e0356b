//! What the plugin says to the agent, said by a test: the messages of `veer_common::cni` over `cni.sock`, and how a
//! runtime names a pod's attachment.

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use veer_common::cni::{
    Attachment, PROTOCOL_VERSION, PodReference, Reply, Request, SOCKET_NAME, Verb, encode, read_message,
};

use crate::netns::NetNs;
use crate::wait;

/// The Kubernetes namespace of the kit's pods.
pub const NAMESPACE: &str = "test";

/// How a runtime names the attachment of the pod `name`, which has this netns.
pub fn of(netns: &NetNs, name: &str) -> Attachment {
    Attachment {
        container_id: netns.name().to_owned(),
        netns: netns.path().display().to_string(),
        interface: "eth0".to_owned(),
        network: "test".to_owned(),
        pod: Some(PodReference { namespace: NAMESPACE.to_owned(), name: name.to_owned(), uid: None }),
    }
}

/// Asks the agent below `run_dir`; `netns` goes with an ADD.
pub fn ask(run_dir: &Path, verb: Verb, netns: Option<BorrowedFd<'_>>) -> Result<Reply> {
    send(run_dir, &encode(&Request { version: PROTOCOL_VERSION, verb })?, netns)
}

/// Asks and dies before the answer, as a plugin does whose runtime has lost its patience.
pub fn ask_and_die(run_dir: &Path, verb: Verb, netns: Option<BorrowedFd<'_>>) -> Result<()> {
    speak(run_dir, &encode(&Request { version: PROTOCOL_VERSION, verb })?, netns).map(drop)
}

/// Sends any bytes and reads the reply: for what a plugin would never say.
pub fn send(run_dir: &Path, message: &[u8], netns: Option<BorrowedFd<'_>>) -> Result<Reply> {
    let mut stream = speak(run_dir, message, netns)?;
    read_message(&mut stream).context("read the agent's reply")
}

fn speak(run_dir: &Path, message: &[u8], netns: Option<BorrowedFd<'_>>) -> Result<UnixStream> {
    let path = run_dir.join(SOCKET_NAME);
    let mut stream = UnixStream::connect(&path).with_context(|| format!("connect to {}", path.display()))?;
    stream.set_read_timeout(Some(wait::LIMIT)).context("limit the wait for the agent")?;
    let sent = send_first(&stream, message, netns)?;
    stream.write_all(message.get(sent..).unwrap_or_default()).context("write to the agent")?;
    Ok(stream)
}

/// Descriptors travel with the first byte; how many bytes went with it is the kernel's choice.
fn send_first(stream: &UnixStream, message: &[u8], netns: Option<BorrowedFd<'_>>) -> Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if let Some(netns) = &netns
        && !ancillary.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(netns)))
    {
        bail!("no room for the descriptor");
    }
    let bytes = [IoSlice::new(message)];
    sendmsg(stream.as_fd(), &bytes, &mut ancillary, SendFlags::NOSIGNAL).context("write to the agent")
}
