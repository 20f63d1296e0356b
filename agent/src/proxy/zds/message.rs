//! ZDS on the wire: protobuf, one message for each packet. Pure.
//!
//! Owns: the messages, with the field numbers of Istio's `proto/zds.proto` (package `istio.workload.zds`), and how long one may be.
//! Never does: know which of them comes when. Called by: [`protocol`](super::protocol) for what a peer says, the connections for what it
//! is told.

use prost::Message;
use thiserror::Error;

use super::protocol::{Request, Workload};

/// The only version of ZDS, `Version.V1`.
const V1: i32 = 1;
/// What fits into the buffer that ztunnel reads a packet into; it breaks off for one that is longer. The same for its own.
pub const LONGEST: usize = 1024;

/// Longest that is kept of what ztunnel has against something.
const LONGEST_WORDS: usize = 400;

/// Why a packet is not what it should be.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum MessageError {
    /// It is no such message.
    #[error("it is no {expected} of ZDS: {problem}")]
    Unreadable {
        /// Which message was expected.
        expected: &'static str,
        /// What the decoder says.
        problem: String,
    },
    /// Of another version.
    #[error("it speaks version {0} of ZDS, this agent 1")]
    Version(i32),
    /// A message without content.
    #[error("it is an answer without an acknowledgement")]
    Empty,
    /// Who the pod is in the mesh is not known.
    #[error("its service account is not known")]
    NoServiceAccount,
    /// It does not fit.
    #[error("the message about it has {0} bytes, {LONGEST} is the most that ztunnel reads")]
    TooLong(usize),
}

/// What ztunnel says first.
#[derive(Clone, PartialEq, Eq, Message)]
struct ZdsHello {
    #[prost(int32, tag = "1")]
    version: i32,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct WorkloadInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    service_account: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct AddWorkload {
    #[prost(string, tag = "1")]
    uid: String,
    #[prost(message, optional, tag = "2")]
    workload_info: Option<WorkloadInfo>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct KeepWorkload {
    #[prost(string, tag = "1")]
    uid: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct DelWorkload {
    #[prost(string, tag = "2")]
    uid: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct SnapshotSent {}

#[derive(Clone, PartialEq, Eq, Message)]
struct WorkloadRequest {
    #[prost(oneof = "RequestPayload", tags = "1, 2, 3, 5")]
    payload: Option<RequestPayload>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
enum RequestPayload {
    #[prost(message, tag = "1")]
    Add(AddWorkload),
    #[prost(message, tag = "2")]
    Del(DelWorkload),
    #[prost(message, tag = "3")]
    SnapshotSent(SnapshotSent),
    #[prost(message, tag = "5")]
    Keep(KeepWorkload),
}

#[derive(Clone, PartialEq, Eq, Message)]
struct Ack {
    #[prost(string, tag = "1")]
    error: String,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct WorkloadResponse {
    #[prost(oneof = "ResponsePayload", tags = "1")]
    payload: Option<ResponsePayload>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
enum ResponsePayload {
    #[prost(message, tag = "1")]
    Ack(Ack),
}

/// The packet for a request.
///
/// # Errors
/// If ztunnel could not read it.
pub fn packet(request: &Request) -> Result<Vec<u8>, MessageError> {
    let payload = match request {
        Request::Add(Workload { uid, namespace, name, service_account, .. }) => {
            let service_account = service_account.clone().ok_or(MessageError::NoServiceAccount)?;
            RequestPayload::Add(AddWorkload {
                uid: uid.clone(),
                workload_info: Some(WorkloadInfo {
                    name: name.clone(),
                    namespace: namespace.clone(),
                    service_account,
                }),
            })
        }
        Request::Keep(Workload { uid, .. }) => RequestPayload::Keep(KeepWorkload { uid: uid.clone() }),
        Request::Del(uid) => RequestPayload::Del(DelWorkload { uid: uid.clone() }),
        Request::SnapshotSent => RequestPayload::SnapshotSent(SnapshotSent {}),
    };
    let packet = WorkloadRequest { payload: Some(payload) }.encode_to_vec();
    if packet.len() > LONGEST { Err(MessageError::TooLong(packet.len())) } else { Ok(packet) }
}

/// Reads what ztunnel says first.
///
/// # Errors
/// If it is something else.
pub fn read_hello(packet: &[u8]) -> Result<(), MessageError> {
    match ZdsHello::decode(packet).map_err(unreadable("hello"))?.version {
        V1 => Ok(()),
        version => Err(MessageError::Version(version)),
    }
}

/// Reads an answer: what ztunnel has against the request, in its words; nothing if it is done.
///
/// # Errors
/// If it is something else.
pub fn read_answer(packet: &[u8]) -> Result<Option<String>, MessageError> {
    let response = WorkloadResponse::decode(packet).map_err(unreadable("answer"))?;
    let ResponsePayload::Ack(Ack { error }) = response.payload.ok_or(MessageError::Empty)?;
    // It goes into logs and onto terminals.
    let mut words = error.replace(char::is_control, " ");
    words.truncate(words.floor_char_boundary(LONGEST_WORDS));
    Ok((!words.is_empty()).then_some(words))
}

fn unreadable(expected: &'static str) -> impl Fn(prost::DecodeError) -> MessageError {
    move |error| MessageError::Unreadable { expected, problem: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::netns::NetnsId;

    fn workload(name: &str) -> Workload {
        Workload {
            uid: "u-1".to_owned(),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            service_account: Some("seller".to_owned()),
            netns_path: "/run/netns/x".to_owned(),
            netns: NetnsId { device: 4, inode: 5 },
        }
    }

    /// Written by hand from the field numbers of `zds.proto`.
    #[test]
    fn requests_have_the_bytes_that_istio_defines() {
        let add = b"\x0a\x1b\x0a\x03u-1\x12\x14\x0a\x04cart\x12\x04shop\x1a\x06seller";
        assert_eq!(packet(&Request::Add(workload("cart"))).as_deref(), Ok(add.as_slice()));
        assert_eq!(packet(&Request::Del("u-1".to_owned())).as_deref(), Ok(b"\x12\x05\x12\x03u-1".as_slice()));
        assert_eq!(packet(&Request::SnapshotSent).as_deref(), Ok(b"\x1a\x00".as_slice()));
        assert_eq!(
            packet(&Request::Keep(workload("cart"))).as_deref(),
            Ok(b"\x2a\x05\x0a\x03u-1".as_slice())
        );
    }

    #[test]
    fn names_of_the_longest_kind_fit_and_what_does_not_is_not_sent() {
        let longest = Workload { service_account: Some("s".repeat(253)), ..workload(&"n".repeat(253)) };
        assert!(packet(&Request::Add(longest)).is_ok());
        let error = packet(&Request::Add(workload(&"n".repeat(1000)))).unwrap_err();
        assert!(matches!(error, MessageError::TooLong(1000..)), "{error}");
        let unknown = Workload { service_account: None, ..workload("cart") };
        assert_eq!(packet(&Request::Add(unknown)), Err(MessageError::NoServiceAccount));
    }

    #[test]
    fn a_hello_is_of_version_one() {
        assert_eq!(read_hello(b"\x08\x01"), Ok(()));
        // A field that a later version may add is passed over.
        assert_eq!(read_hello(b"\x08\x01\x12\x01x"), Ok(()));
        assert_eq!(read_hello(b""), Err(MessageError::Version(0)));
        assert_eq!(read_hello(b"\x08\x02"), Err(MessageError::Version(2)));
        // An answer.
        assert!(matches!(read_hello(b"\x0a\x00"), Err(MessageError::Unreadable { expected: "hello", .. })));
    }

    #[test]
    fn an_answer_is_done_or_says_why_not() {
        assert_eq!(read_answer(b"\x0a\x00"), Ok(None));
        assert_eq!(read_answer(b"\x0a\x05\x0a\x03n\no"), Ok(Some("n o".to_owned())));
        assert_eq!(read_answer(b""), Err(MessageError::Empty));
        // A hello.
        assert!(matches!(read_answer(b"\x08\x01"), Err(MessageError::Unreadable { expected: "answer", .. })));
    }
}
