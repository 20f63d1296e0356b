//! Sockets of a pod in the hands of a test.
//!
//! A socket belongs for life to the netns and the cgroup it was created in, and its creator is who the
//! datapath asks about. So a process in the pod, the maker, creates it and hands the descriptor to the
//! test, which binds, connects, listens and accepts: every step is the test's, every fact is the pod's.
//!
//! A socket that a test closes may live for a moment longer: a process that another thread is just
//! starting has a copy of every descriptor until it executes its program. Wait for what closing brings.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use crate::cgroup::Cgroup;
use crate::launch::{Identity, Launch, kit_binary};
use crate::netns::NetNs;

/// Longest message between test and maker.
const MAX_MESSAGE: usize = 512;

/// A process in a pod that creates sockets. It goes with the guard, and with it the sockets it kept.
#[derive(Debug)]
pub struct Maker {
    identity: Identity,
    channel: Option<Mutex<Socket>>,
    child: Child,
}

impl Maker {
    /// Starts it.
    pub fn start(netns: &NetNs, cgroup: &Cgroup, identity: Identity) -> Result<Self> {
        // Packets keep requests, answers and their descriptors apart.
        let (ours, theirs) =
            Socket::pair(Domain::UNIX, Type::SEQPACKET, None).context("make the maker's channel")?;
        let child = Launch::new()
            .in_netns(netns)
            .in_cgroup(cgroup)
            .with_identity(identity.clone())
            .command(kit_binary("socket-maker")?)?
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .context("start the socket maker")?;
        Ok(Self { identity, channel: Some(Mutex::new(ours)), child })
    }

    /// Who creates.
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A TCP socket for IPv4.
    pub fn tcp4(&self) -> Result<Socket> {
        self.socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))
    }

    /// A TCP socket for IPv6, and for IPv4 as v4-mapped addresses.
    pub fn tcp6(&self) -> Result<Socket> {
        self.socket(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))
    }

    /// A UDP socket for IPv4.
    pub fn udp4(&self) -> Result<Socket> {
        self.socket(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))
    }

    /// A UDP socket for IPv6.
    pub fn udp6(&self) -> Result<Socket> {
        self.socket(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))
    }

    /// Any socket.
    pub fn socket(&self, domain: Domain, kind: Type, protocol: Option<Protocol>) -> Result<Socket> {
        self.ask(domain, kind, protocol, Keep::No)
    }

    /// Any socket; the maker keeps a descriptor of it, too, so that it is found in the pod's processes,
    /// and stays when the test closes its own.
    pub fn kept_socket(&self, domain: Domain, kind: Type, protocol: Option<Protocol>) -> Result<Socket> {
        self.ask(domain, kind, protocol, Keep::Yes)
    }

    /// A stream socket that the maker has bound, too, and that may share its port. What listens of an MPTCP
    /// socket is made by bind(), and so by whoever calls that.
    pub fn bound(&self, protocol: Protocol, at: SocketAddr) -> Result<Socket> {
        self.bound_as(Type::STREAM, protocol, at)
    }

    /// A UDP socket that the maker has bound, likewise.
    pub fn bound_udp(&self, at: SocketAddr) -> Result<Socket> {
        self.bound_as(Type::DGRAM, Protocol::UDP, at)
    }

    fn bound_as(&self, kind: Type, protocol: Protocol, at: SocketAddr) -> Result<Socket> {
        self.request(&Request {
            domain: Domain::for_address(at).into(),
            kind: kind.into(),
            protocol: Some(protocol.into()),
            keep: Keep::No,
            bind: Some(at),
        })
    }

    fn ask(&self, domain: Domain, kind: Type, protocol: Option<Protocol>, keep: Keep) -> Result<Socket> {
        self.request(&Request {
            domain: domain.into(),
            kind: kind.into(),
            protocol: protocol.map(Into::into),
            keep,
            bind: None,
        })
    }

    fn request(&self, request: &Request) -> Result<Socket> {
        let channel = self.channel.as_ref().context("the maker's channel is closed")?;
        // A test that panicked in between has its answer still in the channel: nothing to go on with.
        let Ok(channel) = channel.lock() else { bail!("a thread panicked while it asked the socket maker") };
        channel.send(&serde_json::to_vec(request)?).context("ask the socket maker")?;
        let (answer, socket) = receive::<Answer>(&*channel).context("hear from the socket maker")?;
        match (answer, socket) {
            (Some(Answer::Made), Some(socket)) => Ok(socket.into()),
            (Some(Answer::Refused { errno }), _) => {
                let error = io::Error::from_raw_os_error(errno);
                Err(error).with_context(|| format!("create {request:?} as {:?}", self.identity))
            }
            (Some(Answer::Made), None) => bail!("the socket maker answered without a socket"),
            (None, _) => bail!("the socket maker ended"),
        }
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        // The end of the channel is the maker's end.
        self.channel = None;
        if let Err(error) = self.child.wait() {
            eprintln!("wait for the socket maker: {error}");
        }
    }
}

/// Whether the maker keeps a descriptor of what it makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Keep {
    Yes,
    No,
}

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    domain: i32,
    kind: i32,
    protocol: Option<i32>,
    keep: Keep,
    bind: Option<SocketAddr>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Made,
    Refused { errno: i32 },
}

/// The maker's side: creates what is asked for until the channel ends.
pub fn serve(channel: impl AsFd) -> Result<()> {
    let mut kept = Vec::new();
    while let (Some(request), _) = receive::<Request>(&channel)? {
        match make(&request) {
            Ok(socket) => {
                send(&channel, &Answer::Made, Some(&socket))?;
                if request.keep == Keep::Yes {
                    kept.push(socket);
                }
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or_default();
                send(&channel, &Answer::Refused { errno }, None)?;
            }
        }
    }
    Ok(())
}

fn make(request: &Request) -> io::Result<Socket> {
    let kind = Type::from(request.kind);
    let socket = Socket::new(request.domain.into(), kind, request.protocol.map(Into::into))?;
    if let Some(at) = request.bind {
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&at.into())?;
    }
    Ok(socket)
}

fn send(channel: impl AsFd, message: &Answer, socket: Option<&Socket>) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = socket.map(AsFd::as_fd);
    if let Some(descriptor) = &descriptors
        && !ancillary.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(descriptor)))
    {
        bail!("no room for the descriptor");
    }
    let bytes = serde_json::to_vec(message)?;
    sendmsg(channel, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::empty()).context("send")?;
    Ok(())
}

/// One message and the descriptor that came with it; `None` at the end of the channel.
fn receive<T: for<'a> Deserialize<'a>>(channel: impl AsFd) -> Result<(Option<T>, Option<OwnedFd>)> {
    let mut bytes = [0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let received =
        recvmsg(channel, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC).context("receive")?;
    let descriptor = ancillary.drain().find_map(|message| {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message { descriptors.next() } else { None }
    });
    if received.flags.contains(ReturnFlags::TRUNC) {
        bail!("message is longer than {MAX_MESSAGE} bytes");
    }
    let message = bytes.get(..received.bytes).filter(|message| !message.is_empty());
    Ok((message.map(serde_json::from_slice).transpose().context("decode")?, descriptor))
}
