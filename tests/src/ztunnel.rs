//! A peer that plays ztunnel towards the agent: as strict as the real one, and as broken as a test wants it.
//!
//! The rules are those of istio/ztunnel, `src/inpod`: what that would end or break off for is an error here. It starts no proxy.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::stat::fstat;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
};

use crate::netns::NetNs;
use crate::wait;

/// What ztunnel says first: version 1 (field 1 of `ZdsHello`).
pub const HELLO: &[u8] = b"\x08\x01";
/// What it says to what it has done: an `Ack` (field 1 of `WorkloadResponse`) without an error.
pub const DONE: &[u8] = b"\x0a\x00";
/// Where the real one tells its metrics, in its own netns.
pub const TELEMETRY: u16 = 15020;
/// The buffer that it reads into.
const LONGEST: usize = 1024;

/// A connection of a ztunnel.
#[derive(Debug)]
pub struct Ztunnel {
    socket: OwnedFd,
    /// What it has of pods, by their uids. Of one that it was told to keep, nothing is known.
    pods: BTreeMap<String, Option<Workload>>,
    has_snapshot: bool,
}

/// A pod, as ztunnel is told of it.
#[derive(Debug)]
pub struct Workload {
    /// Pod name.
    pub name: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Service account.
    pub service_account: String,
    /// Device and inode number of its netns.
    pub netns: (u64, u64),
}

/// What the agent says.
#[derive(Debug)]
pub enum Message {
    /// A pod.
    Add {
        /// Its uid.
        uid: String,
        /// The rest of it.
        workload: Workload,
    },
    /// A pod that it may have.
    Keep(String),
    /// A pod has gone.
    Del(String),
    /// That was all.
    SnapshotSent,
}

impl Ztunnel {
    /// Connects and says hello.
    pub fn start(socket: &Path) -> Result<Self> {
        let ztunnel = Self::connect(socket)?;
        ztunnel.say(HELLO)?;
        Ok(ztunnel)
    }

    /// Connects from a netns of its own, as from a pod, and says hello.
    pub fn start_in(netns: &NetNs, socket: &Path) -> Result<Self> {
        netns.run(|| Self::start(socket))?
    }

    /// Connects, and says nothing.
    pub fn connect(path: &Path) -> Result<Self> {
        let kind = SocketType::SEQPACKET;
        let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?).with_context(|| format!("dial {}", path.display()))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(wait::scaled(wait::LIMIT)))?;
        Ok(Self { socket, pods: BTreeMap::new(), has_snapshot: false })
    }

    /// Another descriptor of the connection, for whoever is to end it while somebody listens.
    pub fn another_end(&self) -> Result<OwnedFd> {
        self.socket.try_clone().context("duplicate the connection")
    }

    /// From here on waits for the agent's next words however long it takes, as ztunnel itself does. Whoever has
    /// [`Self::another_end`] can end it.
    pub fn wait_without_limit(&self) -> Result<()> {
        set_socket_timeout(&self.socket, Timeout::Recv, None).context("wait without a limit")
    }

    /// Says something; who has closed need not hear it.
    pub fn say(&self, packet: &[u8]) -> Result<()> {
        let mut nothing = SendAncillaryBuffer::default();
        match sendmsg(&self.socket, &[IoSlice::new(packet)], &mut nothing, SendFlags::NOSIGNAL) {
            Ok(_) | Err(Errno::PIPE) => Ok(()),
            Err(error) => Err(error).context("write to the agent"),
        }
    }

    /// Says that it cannot do what it was told to, as ztunnel does when a port is taken.
    pub fn refuse(&self, words: &str) -> Result<()> {
        let length = u8::try_from(words.len()).ok().filter(|length| *length < 126);
        let length = length.context("longer words than this writes")?;
        self.say(&[&[0x0a, length + 2, 0x0a, length], words.as_bytes()].concat())
    }

    /// What the agent says next, if it may say that now; it is not answered yet. `None` when it has closed.
    pub fn hear(&mut self) -> Result<Option<Message>> {
        let (packet, mut descriptors) = self.receive()?;
        if packet.is_empty() {
            return Ok(None);
        }
        let message = message(&packet, descriptors.pop())?;
        ensure!(descriptors.is_empty(), "more than one descriptor with {message:?}");
        match &message {
            Message::Keep(uid) => ensure!(!self.has_snapshot, "keep of {uid} after the snapshot"),
            Message::SnapshotSent => ensure!(!self.has_snapshot, "a second snapshot"),
            Message::Add { .. } | Message::Del(_) => {}
        }
        // Before it is answered, nothing else may come.
        let mut polled = [nix::poll::PollFd::new(self.socket.as_fd(), nix::poll::PollFlags::POLLIN)];
        ensure!(
            nix::poll::poll(&mut polled, nix::poll::PollTimeout::ZERO)? == 0,
            "another message before the answer to {message:?}"
        );
        Ok(Some(message))
    }

    /// Hears a message, does it, and says so; gives back what it was, for the log of a test: `add u-1`, `snapshot`.
    pub fn obey(&mut self) -> Result<String> {
        let Some(message) = self.hear()? else { bail!("the agent has closed") };
        let said = match message {
            Message::Add { uid, workload } => {
                let said = format!("add {uid}");
                self.pods.insert(uid, Some(workload));
                said
            }
            Message::Keep(uid) => {
                let said = format!("keep {uid}");
                self.pods.insert(uid, None);
                said
            }
            Message::Del(uid) => {
                self.pods.remove(&uid);
                format!("del {uid}")
            }
            Message::SnapshotSent => {
                self.has_snapshot = true;
                "snapshot".to_owned()
            }
        };
        self.say(DONE)?;
        Ok(said)
    }

    /// Does all up to the snapshot.
    pub fn obey_to_the_snapshot(&mut self) -> Result<Vec<String>> {
        let mut said = Vec::new();
        while !self.has_snapshot {
            said.push(self.obey()?);
        }
        Ok(said)
    }

    /// The pods that it has, by their uids.
    pub const fn pods(&self) -> &BTreeMap<String, Option<Workload>> {
        &self.pods
    }

    /// Waits until the agent has closed, whatever it says before.
    pub fn wait_closed(&mut self) -> Result<()> {
        while !self.receive()?.0.is_empty() {}
        Ok(())
    }

    /// Whether nothing has come for this long.
    pub fn is_quiet(&self, time: Duration) -> Result<bool> {
        let mut polled = [nix::poll::PollFd::new(self.socket.as_fd(), nix::poll::PollFlags::POLLIN)];
        Ok(nix::poll::poll(&mut polled, nix::poll::PollTimeout::try_from(time)?)? == 0)
    }

    /// A packet with its descriptors; an empty one at the end.
    fn receive(&self) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
        let (mut packet, mut descriptors) = (vec![0; LONGEST], Vec::new());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut packet)];
        let received = match recvmsg(&self.socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            // Closed before it has read all.
            Err(Errno::CONNRESET) => return Ok((Vec::new(), Vec::new())),
            received => received.context("wait for the agent to say something")?,
        };
        ensure!(
            !received.flags.contains(rustix::net::ReturnFlags::TRUNC),
            "a message of more than {LONGEST} bytes"
        );
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        packet.truncate(received.bytes);
        Ok((packet, descriptors))
    }
}

/// Device and inode number of a pod's netns, by which ztunnel tells two apart.
pub fn identity(netns: &NetNs) -> Result<(u64, u64)> {
    identity_of(netns.as_fd())
}

fn identity_of(file: impl AsFd) -> Result<(u64, u64)> {
    let status = fstat(file)?;
    Ok((status.st_dev, status.st_ino))
}

/// The one field of a `WorkloadRequest`.
fn message(packet: &[u8], descriptor: Option<OwnedFd>) -> Result<Message> {
    let fields = fields(packet)?;
    let [(number, content)] = fields.as_slice() else { bail!("{} fields in a request", fields.len()) };
    let message = match (number, descriptor) {
        (1, Some(netns)) => {
            let info = field(content, 2)?.context("add without workload_info")?;
            let workload = Workload {
                name: text(info, 1)?,
                namespace: text(info, 2)?,
                service_account: text(info, 3)?,
                netns: identity_of(netns)?,
            };
            Message::Add { uid: text(content, 1)?, workload }
        }
        (2, None) => Message::Del(text(content, 2)?),
        (3, None) => Message::SnapshotSent,
        (5, None) => Message::Keep(text(content, 1)?),
        (number, descriptor) => bail!("request {number}, with a descriptor: {}", descriptor.is_some()),
    };
    Ok(message)
}

fn text(message: &[u8], number: u8) -> Result<String> {
    Ok(String::from_utf8(field(message, number)?.unwrap_or_default().to_vec())?)
}

fn field(message: &[u8], number: u8) -> Result<Option<&[u8]>> {
    Ok(fields(message)?.into_iter().find(|(one, _)| *one == number).map(|(_, content)| content))
}

/// The fields of a protobuf message, all of which have a length (wire type 2) in ZDS' requests.
fn fields(mut message: &[u8]) -> Result<Vec<(u8, &[u8])>> {
    let mut fields = Vec::new();
    while let Some((tag, rest)) = message.split_first() {
        ensure!(tag & 7 == 2 && *tag < 128, "tag {tag:#x}");
        let (length, rest) = length(rest).context("no length")?;
        let (content, rest) = rest.split_at_checked(length).context("less than its length")?;
        fields.push((tag >> 3, content));
        message = rest;
    }
    Ok(fields)
}

/// A length of one or two bytes: 16,383 at the most.
fn length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    match bytes {
        [low, rest @ ..] if *low < 128 => Some((usize::from(*low), rest)),
        [low, high, rest @ ..] if *high < 128 => {
            Some((usize::from(low & 127) | usize::from(*high) << 7, rest))
        }
        _ => None,
    }
}
