//! Messages to the kernel, and what it says to them.

use std::io;
use std::os::fd::AsFd;

use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};

use super::NftError;
use super::message::Messages;

/// `NLMSG_ERROR`.
const ERROR: u16 = 2;
/// `NLMSG_DONE`.
const DONE: u16 = 3;
/// `NLM_F_DUMP_INTR`: what was dumped changed meanwhile.
const INTERRUPTED: u16 = 0x10;
/// `NLM_F_CAPPED` and `NLM_F_ACK_TLVS`.
const CAPPED: u16 = 0x100;
const WITH_ATTRIBUTES: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`.
const MESSAGE: u16 = 1;
/// Bytes of a message's header, and of that of nfnetlink.
const HEADERS: usize = 20;
/// How much more than the messages the kernel accounts for them.
const OVERHEAD: usize = 1 << 16;
/// Least room for what is sent.
const LEAST_ROOM: usize = 1 << 18;

/// Sends a transaction. All of it is done, or nothing.
pub(super) fn commit(messages: &Messages) -> Result<(), NftError> {
    let failed = |attempt| move |source| NftError::Netlink { attempt, source };
    let socket = open(messages).map_err(failed("reach nf_tables"))?;
    socket.send(messages.bytes(), 0).map_err(failed("send a transaction"))?;
    // The kernel has worked it off when send() returns: it says nothing when all went well.
    loop {
        let datagram = match socket.recv_from_full() {
            Ok((datagram, _kernel)) => datagram,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(failed("hear of a transaction")(error)),
        };
        each_message(&datagram, |message| refusal(messages, &message).map_or(Ok(()), Err))?;
    }
}

/// Asks one question, and hands `answer` the attributes of each answer; ENOENT is none.
pub(super) fn ask(question: &Messages, mut answer: impl FnMut(&[u8])) -> Result<(), NftError> {
    const ATTEMPT: &str = "read nf_tables";
    let failed = |source| NftError::Netlink { attempt: ATTEMPT, source };
    let socket = open(question).map_err(failed)?;
    socket.send(question.bytes(), 0).map_err(failed)?;
    loop {
        let datagram = match socket.recv_from_full() {
            Ok((datagram, _kernel)) => datagram,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let mut done = false;
        each_message(&datagram, |message| {
            if message.flags() & INTERRUPTED != 0 {
                return Err(failed(io::ErrorKind::Interrupted.into()));
            }
            match message.message_type() {
                DONE => done = true,
                ERROR => {
                    return Err(failed(error_of(&message).unwrap_or_else(|| io::ErrorKind::Other.into())));
                }
                _ => answer(message.payload().get(HEADERS - 16..).unwrap_or_default()),
            }
            Ok(())
        })?;
        if done {
            return Ok(());
        }
    }
}

fn open(messages: &Messages) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    let _address = socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    // Kernels before 4.12 and 4.3 have neither: they say less, and all of it is understood.
    drop(socket.set_ext_ack(true));
    drop(socket.set_cap_ack(true));
    // A transaction is one datagram, whatever its length.
    let room = (messages.bytes().len() * 2 + OVERHEAD).max(LEAST_ROOM);
    setsockopt(&socket.as_fd(), sockopt::SndBufForce, &room)?;
    setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &LEAST_ROOM)?;
    Ok(socket)
}

/// What the kernel refuses, if this says so.
fn refusal(messages: &Messages, message: &NetlinkBuffer<&[u8]>) -> Option<NftError> {
    if message.message_type() != ERROR {
        return None;
    }
    let source = error_of(message)?;
    let part = messages.part(message.sequence_number()).to_owned();
    Some(NftError::Refused { part, source, said: said(message) })
}

/// The error that a message is about; none for an acknowledgement.
fn error_of(message: &NetlinkBuffer<&[u8]>) -> Option<io::Error> {
    let number = i32::from_ne_bytes(*message.payload().first_chunk()?);
    (number != 0).then(|| io::Error::from_raw_os_error(number.saturating_neg()))
}

/// What the kernel says in words. The attributes come behind the message that it is about, or its header.
fn said(message: &NetlinkBuffer<&[u8]>) -> Option<String> {
    if message.flags() & WITH_ATTRIBUTES == 0 {
        return None;
    }
    let about = message.payload().get(4..)?;
    let length = u32::from_ne_bytes(*about.first_chunk()?);
    let length = if message.flags() & CAPPED == 0 { usize::try_from(length).ok()? } else { 16 };
    let attributes = about.get(length.next_multiple_of(4)..)?;
    NlasIterator::new(attributes).flatten().find_map(|attribute| {
        let text = attribute.value().split(|byte| *byte == 0).next().unwrap_or_default();
        (attribute.kind() == MESSAGE).then(|| String::from_utf8_lossy(text).into_owned())
    })
}

fn each_message(
    datagram: &[u8],
    mut each: impl FnMut(NetlinkBuffer<&[u8]>) -> Result<(), NftError>,
) -> Result<(), NftError> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest).map_err(|error| NftError::Netlink {
            attempt: "understand nf_tables",
            source: io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
        })?;
        let length = message.length() as usize;
        each(message)?;
        rest = rest.get(length.next_multiple_of(4).max(4)..).unwrap_or_default();
    }
    Ok(())
}
