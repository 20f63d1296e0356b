//! nf_tables of the netns that the calling thread is in: which chains there are, and whether it could redirect.
//!
//! Owns: the few messages of nfnetlink for that, from `include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h`. Never
//! does: write a table into a netns that anybody is in. Called by: `probe`.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};

use super::dump;
use crate::doctor::facts::Chain;

/// `NFNL_SUBSYS_NFTABLES`.
const NFTABLES: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`.
const BATCH: [u16; 2] = [0x10, 0x11];
/// `NFT_MSG_NEWTABLE`, `_NEWCHAIN`, `_GETCHAIN`, `_NEWRULE`.
const NEW_TABLE: u16 = NFTABLES << 8;
const NEW_CHAIN: u16 = NFTABLES << 8 | 3;
const GET_CHAIN: u16 = NFTABLES << 8 | 4;
const NEW_RULE: u16 = NFTABLES << 8 | 6;
/// `NLA_F_NESTED`; the type is in the bits below it and the one for the byte order.
const NESTED: u16 = 1 << 15;
const TYPE_BITS: u16 = 0x3fff;
/// `NFPROTO_UNSPEC`: all families.
const ALL_FAMILIES: u8 = 0;

/// A family of tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// `NFPROTO_IPV4`
    Ip = 2,
    /// `NFPROTO_IPV6`
    Ip6 = 10,
}

impl Family {
    /// As `nft` names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }
}

/// A message: `struct nfgenmsg` and attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Message {
    kind: u16,
    payload: Vec<u8>,
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.payload.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.payload);
    }
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self { kind: header.message_type, payload: payload.to_owned() })
    }
}

impl From<Message> for NetlinkPayload<Message> {
    fn from(message: Message) -> Self {
        Self::InnerMessage(message)
    }
}

impl Message {
    /// `res_id` is in network byte order; it names the subsystem of a batch.
    fn new(kind: u16, family: u8, res_id: u16, attributes: &[u8]) -> Self {
        let [high, low] = res_id.to_be_bytes();
        Self { kind, payload: [&[family, 0, high, low], attributes].concat() }
    }
}

/// An attribute, padded to 4 bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

fn nested(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NESTED, &attributes.concat())
}

/// The attributes of a message; a broken one ends them.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & TYPE_BITS;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// All chains of all families; those of iptables are among them where it writes nf_tables.
///
/// # Errors
/// As the kernel says. One without nf_tables has no chain, and that is no error.
pub fn chains() -> io::Result<Vec<Chain>> {
    let request = Message::new(GET_CHAIN, ALL_FAMILIES, 0, &[]);
    let answers = match dump(NETLINK_NETFILTER, request) {
        Ok(answers) => answers,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(answers.iter().filter_map(chain).collect())
}

/// EOPNOTSUPP from nfnetlink without nf_tables, EPROTONOSUPPORT from a kernel without nfnetlink.
fn is_absent(error: &io::Error) -> bool {
    [libc::EOPNOTSUPP, libc::EPROTONOSUPPORT].into_iter().any(|errno| error.raw_os_error() == Some(errno))
}

fn chain(message: &Message) -> Option<Chain> {
    /// `NFTA_CHAIN_TABLE`, `NFTA_CHAIN_NAME`.
    const NAMES: [u16; 2] = [1, 3];
    let name = |kind: u16| {
        let (_, value) = attributes(message.payload.get(4..)?).find(|(found, _)| *found == kind)?;
        Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned())
    };
    let [table, chain] = NAMES;
    Some(Chain { table: name(table)?, name: name(chain)? })
}

/// Makes a table with a nat chain for what is sent, and a rule that redirects by uid: what a redirection by
/// nf_tables needs. In a netns that nobody is in, and that is thrown away with it.
///
/// # Errors
/// As the kernel says.
pub fn try_redirection(family: Family) -> io::Result<()> {
    const TABLE: &str = "veer-doctor";
    const CHAIN: &str = "output";
    /// `NF_INET_LOCAL_OUT`; `NF_IP_PRI_NAT_DST` is -100.
    const LOCAL_OUT: u32 = 3;
    let hook = [attribute(1, &LOCAL_OUT.to_be_bytes()), attribute(2, &(-100_i32).to_be_bytes())];
    let chain = [text(1, TABLE), text(3, CHAIN), nested(4, &hook), text(7, "nat")].concat();
    // `NFT_META_SKUID` into `NFT_REG_1`, then a redirection to the port that was dialled.
    let uid = [attribute(1, &1_u32.to_be_bytes()), attribute(2, &10_u32.to_be_bytes())];
    let expressions = [expression("meta", &uid), expression("redir", &[])];
    let rule = [text(1, TABLE), text(2, CHAIN), nested(4, &expressions)].concat();
    let family = family as u8;
    transact(&[
        Message::new(NEW_TABLE, family, 0, &text(1, TABLE)),
        Message::new(NEW_CHAIN, family, 0, &chain),
        Message::new(NEW_RULE, family, 0, &rule),
    ])
}

/// `NFTA_LIST_ELEM` with `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA`.
fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    nested(1, &[text(1, name), nested(2, data)])
}

/// Sends a batch, which becomes true as a whole or not at all, and waits for the answer to each message.
fn transact(messages: &[Message]) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    let _address: SocketAddr = socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // The kernel answers while it is asked; should one not, nobody waits for ever.
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(Duration::from_secs(5).as_secs().cast_signed()))?;
    let [begin, end] = BATCH.map(|kind| packet(&Message::new(kind, 0, NFTABLES, &[]), 0, 0));
    let mut batch = begin;
    for (number, message) in (1..).zip(messages) {
        batch.extend(packet(message, NLM_F_ACK | NLM_F_CREATE, number));
    }
    batch.extend(end);
    socket.send(&batch, 0)?;
    let mut answers = 0;
    while answers < messages.len() {
        let (datagram, _kernel) = socket.recv_from_full()?;
        answers += acknowledged(&datagram)?;
    }
    Ok(())
}

fn packet(message: &Message, flags: u16, number: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = number;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message.clone()));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// How many messages a datagram says yes to.
fn acknowledged(datagram: &[u8]) -> io::Result<usize> {
    let (mut rest, mut count) = (datagram, 0);
    while !rest.is_empty() {
        let message = NetlinkMessage::<Message>::deserialize(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        if let NetlinkPayload::Error(error) = &message.payload {
            match error.code {
                None => count += 1,
                Some(_) => return Err(error.to_io()),
            }
        }
        let length = (message.header.length as usize).next_multiple_of(4).max(4);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let bytes = [text(1, "nat"), nested(4, &[attribute(2, &[7])]), text(3, "OUTPUT")].concat();
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(1, &b"nat\0"[..]), (4, &[5, 0, 2, 0, 7, 0, 0, 0][..]), (3, &b"OUTPUT\0"[..])]);
        let message = Message::new(GET_CHAIN, 0, 0, &bytes);
        assert_eq!(chain(&message), Some(Chain { table: "nat".to_owned(), name: "OUTPUT".to_owned() }));
    }

    #[test]
    fn a_broken_attribute_ends_them() {
        for bytes in [&[0_u8, 0, 1, 0][..], &[200, 0, 1, 0, 1], &[4], &[3, 0, 1, 0]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }
}
