//! The messages between the CNI plugin and the agent.
//!
//! One request and one reply for each connection to `RUN_DIR/cni.sock`. A message is its length as a
//! 32-bit little-endian number and that many bytes of JSON. With an [`Verb::Add`] the request's first
//! byte carries the pod's netns as a file descriptor (`SCM_RIGHTS`): the agent may live in another mount
//! namespace, where the runtime's path means nothing, and a descriptor cannot be swapped underneath it.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

/// Version of these messages. The agent answers any other with [`Reply::Failed`].
pub const PROTOCOL_VERSION: u32 = 1;
/// Longest message in bytes; a GC request names every pod of the node.
pub const MAX_MESSAGE: usize = 1 << 20;
/// The socket's name below the run directory.
pub const SOCKET_NAME: &str = "cni.sock";

/// CNI error codes that we return; 0-99 belong to the specification, 100 and above are ours.
pub mod code {
    /// Spec 1: the network configuration's `cniVersion` is not one of ours.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// Spec 4: a `CNI_*` environment variable is missing or wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Spec 5: an input or output error, reading stdin for example.
    pub const IO: u32 = 5;
    /// Spec 6: the content could not be decoded.
    pub const DECODING: u32 = 6;
    /// Spec 7: the network configuration is wrong.
    pub const INVALID_CONFIG: u32 = 7;
    /// Spec 11: try again later; the runtime retries.
    pub const TRY_AGAIN: u32 = 11;
    /// Spec 50: the plugin cannot serve ADD at the moment (STATUS).
    pub const NOT_AVAILABLE: u32 = 50;
    /// The pod's annotations are wrong; details has all of them.
    pub const INVALID_ANNOTATIONS: u32 = 100;
    /// The kernel refused a part of the enrolment; nothing of it was left behind.
    pub const ENROLMENT_FAILED: u32 = 101;
    /// CHECK found that the pod's redirection is not whole.
    pub const NOT_ENROLLED: u32 = 102;
    /// Plugin and agent speak different versions of these messages.
    pub const PROTOCOL: u32 = 103;
}

/// What the plugin asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Request {
    /// [`PROTOCOL_VERSION`].
    pub version: u32,
    /// What is to be done.
    #[serde(flatten)]
    pub verb: Verb,
}

/// The CNI verbs that reach the agent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase")]
pub enum Verb {
    /// Enrol the pod, or find that it is to be passed. The netns comes as a descriptor.
    Add(Attachment),
    /// Forget the pod. Succeeds for one that was never known.
    Del(Attachment),
    /// Is the pod as ADD left it?
    Check(Attachment),
    /// Forget all pods of a network but these. Pods of other networks are none of its business: each
    /// network that chains the plugin has a GC of its own, which names its own attachments alone.
    Gc {
        /// `name` of the network configuration.
        network: String,
        /// The attachments of that network that are still in use.
        valid: Vec<ValidAttachment>,
    },
    /// Could an ADD succeed now?
    Status,
}

/// A pod's attachment, as the runtime names it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_NETNS as the runtime wrote it, for logs; empty when the netns is gone (DEL).
    pub netns: String,
    /// CNI_IFNAME.
    pub interface: String,
    /// `name` of the network configuration; DEL may lack it and is empty then.
    pub network: String,
    /// K8S_POD_NAMESPACE and K8S_POD_NAME of CNI_ARGS; DEL may lack it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodReference>,
}

/// The pod that an attachment belongs to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PodReference {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Pod uid, where the runtime tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// An attachment that GC must keep.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ValidAttachment {
    /// Container id.
    pub container_id: String,
    /// Interface name.
    pub interface: String,
}

/// What the agent answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "lowercase")]
pub enum Reply {
    /// Done: for ADD, the pod's traffic is redirected from now on.
    Done,
    /// ADD: the pod is not for the mesh and was left alone.
    Passed {
        /// Why, one of the agent's named reasons.
        reason: String,
    },
    /// It failed; nothing was left behind.
    Failed {
        /// One of [`code`].
        code: u32,
        /// One line: what failed and of which pod.
        msg: String,
        /// What to look at, or all errors of the pod.
        details: String,
    },
}

/// The bytes of one message, length included.
///
/// # Errors
/// `InvalidInput` for a message above [`MAX_MESSAGE`].
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    if length > MAX_MESSAGE {
        let text = format!("message of {length} bytes is longer than {MAX_MESSAGE}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let prefix = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    bytes.splice(..4, prefix);
    Ok(bytes)
}

/// The length that a message's first four bytes announce.
///
/// # Errors
/// `InvalidData` above [`MAX_MESSAGE`].
pub fn message_length(prefix: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_le_bytes(prefix);
    usize::try_from(length).ok().filter(|length| *length <= MAX_MESSAGE).ok_or_else(|| {
        let text = format!("message of {length} bytes is longer than {MAX_MESSAGE}");
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

/// Reads one message.
///
/// # Errors
/// Whatever the stream says, and `InvalidData` for a message that is too long or not what `T` is.
pub fn read_message<T: for<'a> Deserialize<'a>>(stream: &mut impl Read) -> io::Result<T> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix)?;
    let mut bytes = vec![0; message_length(prefix)?];
    stream.read_exact(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment {
            container_id: "c0ffee".into(),
            netns: "/var/run/netns/cni-1".into(),
            interface: "eth0".into(),
            network: "pods".into(),
            pod: Some(PodReference { namespace: "shop".into(), name: "cart".into(), uid: None }),
        }
    }

    #[test]
    fn the_wire_form_is_pinned() {
        let add = Request { version: PROTOCOL_VERSION, verb: Verb::Add(attachment()) };
        assert_eq!(
            serde_json::to_string(&add).unwrap(),
            r#"{"version":1,"verb":"add","containerId":"c0ffee","netns":"/var/run/netns/cni-1","interface":"eth0","network":"pods","pod":{"namespace":"shop","name":"cart"}}"#
        );
        let status = Request { version: PROTOCOL_VERSION, verb: Verb::Status };
        assert_eq!(serde_json::to_string(&status).unwrap(), r#"{"version":1,"verb":"status"}"#);
        let valid = vec![ValidAttachment { container_id: "a".into(), interface: "eth0".into() }];
        let gc = Request { version: PROTOCOL_VERSION, verb: Verb::Gc { network: "pods".into(), valid } };
        assert_eq!(
            serde_json::to_string(&gc).unwrap(),
            r#"{"version":1,"verb":"gc","network":"pods","valid":[{"containerId":"a","interface":"eth0"}]}"#
        );
        let failed = Reply::Failed { code: 11, msg: "m".into(), details: "d".into() };
        assert_eq!(
            serde_json::to_string(&failed).unwrap(),
            r#"{"result":"failed","code":11,"msg":"m","details":"d"}"#
        );
        assert_eq!(serde_json::to_string(&Reply::Done).unwrap(), r#"{"result":"done"}"#);
    }

    #[test]
    fn a_message_survives_the_wire() {
        let add = Request { version: PROTOCOL_VERSION, verb: Verb::Add(attachment()) };
        let bytes = encode(&add).unwrap();
        assert_eq!(read_message::<Request>(&mut bytes.as_slice()).unwrap(), add);
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_before_it_is_read() {
        let mut bytes = u32::MAX.to_le_bytes().to_vec();
        bytes.push(b'{');
        let error = read_message::<Request>(&mut bytes.as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
