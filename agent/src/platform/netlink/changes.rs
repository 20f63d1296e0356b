//! Changes of the pods' addresses, interfaces and routes, as the kernel reports them.
//!
//! Owns: one rtnetlink socket in the agent's own netns that hears of every netns with an id there
//! (`NETLINK_LISTEN_ALL_NSID`), and the giving of such ids. An id keeps no netns alive, which a socket inside of it
//! would. Never does: read what changed; whoever hears of a change looks at the netns anew, so that nothing
//! depends on the order or the number of reports. Called by: `enrol`.

use std::collections::BTreeSet;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_packet_core::NLM_F_REQUEST;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use super::{change, read_datagram, send};

/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV6_IFADDR`, `RTNLGRP_IPV6_ROUTE`:
/// `include/uapi/linux/rtnetlink.h`. An interface that goes takes its IPv4 routes with it without a report on them.
const GROUPS: [u32; 5] = [1, 5, 7, 9, 11];
/// `SOL_NETLINK` and `NETLINK_LISTEN_ALL_NSID`, which is also the type of the control message with the id.
const CONTROL: (i32, i32) = (270, 8);
/// Reports that are taken at once; the rest waits its turn.
const MOST_AT_ONCE: usize = 4096;

/// What a netns is called in the agent's own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NetnsNumber(i32);

/// Whose addresses may have changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Changed {
    /// Those of these namespaces, and, or, of the agent's own.
    Some {
        /// Those with a number.
        numbered: BTreeSet<NetnsNumber>,
        /// Whether the agent's own is among them.
        own: bool,
    },
    /// Anybody's: the kernel had more to report than the socket holds.
    Unknown,
}

/// The stream of changes.
#[derive(Debug)]
pub struct AddressChanges {
    socket: Socket,
}

impl AddressChanges {
    /// Starts to listen; what happens from here on is kept for [`follow`](Self::follow).
    ///
    /// # Errors
    /// As the kernel says: EPERM without `CAP_NET_BROADCAST`.
    pub fn listen() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        let _address = socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        socket.set_listen_all_namespaces(true)?;
        GROUPS.into_iter().try_for_each(|group| socket.add_membership(group))?;
        Ok(Self { socket })
    }

    /// The changes as they come; needs a runtime.
    ///
    /// # Errors
    /// As the system says.
    pub fn follow(self) -> io::Result<FollowedChanges> {
        // Of the datagram socket only the waiting is used, which asks for no family.
        let socket = std::os::unix::net::UnixDatagram::from(self.socket.as_fd().try_clone_to_owned()?);
        Ok(FollowedChanges { socket: UnixDatagram::from_std(socket)? })
    }
}

/// [`AddressChanges`] that a task waits for.
#[derive(Debug)]
pub struct FollowedChanges {
    socket: UnixDatagram,
}

impl FollowedChanges {
    /// Waits until the addresses of some netns changed. Takes all reports that are there, so that many changes
    /// of one netns are one.
    ///
    /// A socket that was full tells it once (ENOBUFS), and drops in silence what comes until it is empty
    /// (`netlink_overrun`): whoever looked before that would miss some.
    ///
    /// # Errors
    /// As the system says.
    pub async fn next(&self) -> io::Result<Changed> {
        let mut numbers = BTreeSet::new();
        let (mut own, mut was_full) = (false, false);
        loop {
            self.socket.readable().await?;
            let mut is_empty = false;
            for _ in 0..MOST_AT_ONCE {
                match self.socket.try_io(Interest::READABLE, || receive(self.socket.as_fd())) {
                    // Without a number it is the agent's own netns.
                    Ok(Some(number)) => drop(numbers.insert(number)),
                    Ok(None) => own = true,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        is_empty = true;
                        break;
                    }
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => was_full = true,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            if was_full && is_empty {
                return Ok(Changed::Unknown);
            }
            if !was_full && (own || !numbers.is_empty()) {
                return Ok(Changed::Some { numbered: numbers, own });
            }
        }
    }
}

/// Takes one report: which netns it is about.
fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<NetnsNumber>> {
    // The report itself is not read, and what does not fit is dropped by the kernel.
    let mut report = [0; 16];
    let mut control = cmsg_space!(i32);
    let mut parts = [IoSliceMut::new(&mut report)];
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    Ok(received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Unknown(unknown)
            if (unknown.cmsg_header.cmsg_level, unknown.cmsg_header.cmsg_type) == CONTROL =>
        {
            let bytes = unknown.data_bytes.first_chunk()?;
            Some(NetnsNumber(i32::from_ne_bytes(*bytes)))
        }
        _ => None,
    }))
}

/// The number of a netns in the agent's own, given now if it had none: a veth pair between the two brings one,
/// other devices do not. It goes with the netns, and may be given again then.
///
/// # Errors
/// As the kernel says.
pub fn number_of(netns: BorrowedFd<'_>) -> io::Result<NetnsNumber> {
    let file = u32::try_from(netns.as_raw_fd()).map_err(io::Error::other)?;
    let mut message = NsidMessage::default();
    message.attributes = vec![NsidAttribute::Fd(file), NsidAttribute::Id(-1)];
    match change(RouteNetlinkMessage::NewNsId(message.clone()), 0) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    message.attributes.truncate(1);
    let socket = send(NETLINK_ROUTE, RouteNetlinkMessage::GetNsId(message), NLM_F_REQUEST)?;
    let (datagram, _kernel) = socket.recv_from_full()?;
    let mut answers = Vec::new();
    read_datagram(&datagram, &mut |answer| answers.push(answer))?;
    let number = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewNsId(message) => {
            message.attributes.into_iter().find_map(|attribute| match attribute {
                NsidAttribute::Id(number) if number >= 0 => Some(NetnsNumber(number)),
                _ => None,
            })
        }
        _ => None,
    });
    number.ok_or_else(|| io::Error::other("the kernel gave it no number"))
}
