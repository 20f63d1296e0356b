//! rtnetlink and sock_diag of the netns that the calling thread is in: addresses, and who listens.
//!
//! Owns: the netlink crates, which change with each release and stay in this room. Never does: change
//! anything but one address of `lo` and a netns' number ([`changes`]). Called by: `enrol`, on the netns thread.

#![expect(clippy::wildcard_enum_match_arm, reason = "netlink's enums grow with the kernel")]

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::Nla as _;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::protocols::{NETLINK_ROUTE, NETLINK_SOCK_DIAG};
use netlink_sys::{Socket, SocketAddr};
use nix::net::if_::if_nameindex;
use veer_common::address::{Address, Port};

use crate::capture::InterfaceAddress;

pub mod changes;
pub mod links;
pub mod marks;

/// Most datagrams of one dump: the kernel fills at least a page with each.
const MOST_DATAGRAMS: usize = 65_536;

/// A listening TCP socket.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Listener {
    /// Inode number, as in `/proc/PID/fd`.
    pub inode: u64,
    /// Socket cookie (`SO_COOKIE`): tells the socket from a later one with the same inode.
    pub cookie: u64,
    /// The port.
    pub port: Port,
    /// The address that it is bound to; unspecified for any.
    pub bound: IpAddr,
    /// Who owns the socket.
    pub uid: u32,
    /// Id of the cgroup (v2) that its creator was in; `None` before Linux 5.9.
    pub cgroup: Option<u64>,
}

/// All addresses of the netns.
///
/// # Errors
/// As the kernel says.
pub fn addresses() -> io::Result<Vec<InterfaceAddress>> {
    // The names alone: of all that the kernel tells of an interface, libc parses nothing else.
    let names: HashMap<u32, String> = if_nameindex()?
        .iter()
        .map(|interface| (interface.index(), interface.name().to_string_lossy().into_owned()))
        .collect();
    let addresses = dump(NETLINK_ROUTE, RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    Ok(addresses
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewAddress(message) => {
                let interface = names.get(&message.header.index).cloned().unwrap_or_default();
                interface_address(&message, interface)
            }
            _ => None,
        })
        .collect())
}

fn interface_address(message: &AddressMessage, interface: String) -> Option<InterfaceAddress> {
    let mut address: Option<IpAddr> = None;
    let mut local: Option<IpAddr> = None;
    let mut flags = u32::from(message.header.flags.bits());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(value) => address = Some(*value),
            AddressAttribute::Local(value) => local = Some(*value),
            AddressAttribute::Flags(value) => flags = value.bits(),
            _ => {}
        }
    }
    // On a point-to-point link the first is the peer's.
    let address = local.or(address)?;
    Some(InterfaceAddress { interface, address, scope: u8::from(message.header.scope), flags })
}

/// How many connections wait to be accepted by the sockets that listen on one of the ports.
///
/// # Errors
/// As for [`listeners`].
pub fn not_accepted(ports: &[Port]) -> io::Result<u32> {
    let mut waiting = 0_u32;
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        for message in dump(NETLINK_SOCK_DIAG, SockDiagMessage::InetRequest(listening(family, socket_id)))? {
            if let SockDiagMessage::InetResponse(response) = message
                && ports.contains(&Port::new(response.header.socket_id.source_port))
            {
                // Of a socket that listens: the length of its queue (`tcp_diag_get_info`).
                waiting = waiting.saturating_add(response.header.recv_queue);
            }
        }
    }
    Ok(waiting)
}

const fn listening(family: u8, socket_id: SocketId) -> InetRequest {
    InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::LISTEN,
        socket_id,
    }
}

/// The sockets that listen on one of the ports.
///
/// # Errors
/// As the kernel says; ENOENT where it has no `inet_diag`.
pub fn listeners(ports: &[Port]) -> io::Result<Vec<Listener>> {
    let mut found = Vec::new();
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let request = listening(family, socket_id);
        dump_each(NETLINK_SOCK_DIAG, SockDiagMessage::InetRequest(request), |message| {
            if let SockDiagMessage::InetResponse(response) = message {
                found.extend(listener(&response).filter(|listener| ports.contains(&listener.port)));
            }
        })?;
    }
    Ok(found)
}

/// A listener, unless nobody is ever redirected to where it is bound: an app may have as many as loopback has addresses.
fn listener(response: &InetResponse) -> Option<Listener> {
    let id = &response.header.socket_id;
    let (port, bound) = (Port::new(id.source_port), id.source_address);
    if bound.to_canonical().is_loopback() && !Address::from(bound).is_localhost() {
        return None;
    }
    let cookie = u64::from_ne_bytes(id.cookie);
    let (inode, uid) = (u64::from(response.header.inode), response.header.uid);
    let cgroup = response.nlas.iter().find_map(cgroup_id);
    Some(Listener { inode, cookie, port, bound, uid, cgroup })
}

/// The number that `INET_DIAG_CGROUP_ID` holds, which the crate does not know (linux/inet_diag.h).
fn cgroup_id(attribute: &Nla) -> Option<u64> {
    const INET_DIAG_CGROUP_ID: u16 = 21;
    let Nla::Other(other) = attribute else { return None };
    let mut value = [0; size_of::<u64>()];
    if other.kind() != INET_DIAG_CGROUP_ID || other.value_len() != value.len() {
        return None;
    }
    other.emit_value(&mut value);
    Some(u64::from_ne_bytes(value))
}

/// Gives `lo` the address ::6, from which a proxy dials its app over IPv6; istio-init does the same. For
/// IPv4 there is nothing to do: all of 127/8 is there. An address that is there already is fine.
///
/// # Errors
/// As the kernel says.
pub fn add_passthrough_address() -> io::Result<()> {
    let request = RouteNetlinkMessage::NewAddress(passthrough_address());
    match change(request, NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Takes it away again; one that is gone is fine.
///
/// # Errors
/// As the kernel says.
pub fn remove_passthrough_address() -> io::Result<()> {
    match change(RouteNetlinkMessage::DelAddress(passthrough_address()), 0) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(()),
        other => other,
    }
}

/// Whether `lo` has it.
///
/// # Errors
/// As the kernel says.
pub fn has_passthrough_address() -> io::Result<bool> {
    let passthrough = IpAddr::from(Address::PASSTHROUGH_V6);
    Ok(addresses()?.iter().any(|there| there.interface == "lo" && there.address == passthrough))
}

/// How many TCP sockets with a connection have a local address and port that are `wanted`.
///
/// # Errors
/// As the kernel says; ENOENT where it has no `inet_diag`.
pub fn connections(wanted: impl Fn(IpAddr, u16) -> bool) -> io::Result<usize> {
    let mut count = 0;
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all() - StateFlags::LISTEN - StateFlags::CLOSE - StateFlags::TIME_WAIT,
            socket_id,
        };
        for message in dump(NETLINK_SOCK_DIAG, SockDiagMessage::InetRequest(request))? {
            if let SockDiagMessage::InetResponse(response) = message {
                let socket = response.header.socket_id;
                count += usize::from(wanted(socket.source_address, socket.source_port));
            }
        }
    }
    Ok(count)
}

/// How many connections there are from ::6: they do not outlive it.
///
/// # Errors
/// As [`connections`].
pub fn connections_from_passthrough_address() -> io::Result<usize> {
    let passthrough = IpAddr::from(Address::PASSTHROUGH_V6);
    connections(|address, _port| address == passthrough)
}

fn passthrough_address() -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.prefix_len = 128;
    // The first interface of every netns is lo (`LOOPBACK_IFINDEX`, include/net/flow.h).
    message.header.index = 1;
    let address = IpAddr::from(Address::PASSTHROUGH_V6);
    message.attributes = vec![
        AddressAttribute::Address(address),
        AddressAttribute::Local(address),
        // On lo there is nobody to find it taken.
        AddressAttribute::Flags(AddressFlags::Nodad),
    ];
    message
}

/// Sends a request that the kernel answers with yes or no.
fn change(request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let socket = send(NETLINK_ROUTE, request, NLM_F_REQUEST | NLM_F_ACK | flags)?;
    let (datagram, _kernel) = socket.recv_from_full()?;
    // An acknowledgement is an error message with the number 0.
    match read_datagram::<RouteNetlinkMessage>(&datagram, &mut drop) {
        Err(error) if error.raw_os_error() == Some(0) => Ok(()),
        other => other.map(drop),
    }
}

/// Sends a dump request and collects the answers.
fn dump<M>(protocol: isize, request: M) -> io::Result<Vec<M>>
where
    M: NetlinkSerializable + NetlinkDeserializable,
    NetlinkPayload<M>: From<M>,
{
    let mut answers = Vec::new();
    dump_each(protocol, request, |answer| answers.push(answer))?;
    Ok(answers)
}

/// The same for answers that may be many, of which few are kept.
fn dump_each<M>(protocol: isize, request: M, mut take: impl FnMut(M)) -> io::Result<()>
where
    M: NetlinkSerializable + NetlinkDeserializable,
    NetlinkPayload<M>: From<M>,
{
    let socket = send(protocol, request, NLM_F_REQUEST | NLM_F_DUMP)?;
    for _ in 0..MOST_DATAGRAMS {
        let (datagram, _kernel) = socket.recv_from_full()?;
        if read_datagram(&datagram, &mut take)? {
            return Ok(());
        }
    }
    Err(io::Error::other("the kernel does not end its answer"))
}

/// Sends one request on a socket of its own.
fn send<M>(protocol: isize, request: M, flags: u16) -> io::Result<Socket>
where
    M: NetlinkSerializable,
    NetlinkPayload<M>: From<M>,
{
    let mut socket = Socket::new(protocol)?;
    let _address: SocketAddr = socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(request));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    Ok(socket)
}

/// Reads the messages of a datagram; true when the last one was there.
fn read_datagram<M: NetlinkDeserializable>(datagram: &[u8], take: &mut impl FnMut(M)) -> io::Result<bool> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkMessage::<M>::deserialize(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        let length = message.header.length as usize;
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::InnerMessage(answer) => take(answer),
            _ => {}
        }
        // Messages are aligned to 4 bytes, a length of 0 would never end.
        let next = length.next_multiple_of(4).max(4);
        rest = rest.get(next..).unwrap_or_default();
    }
    Ok(false)
}
