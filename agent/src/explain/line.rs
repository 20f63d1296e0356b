//! The connection in a line of `veer monitor`, in either of its forms.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use thiserror::Error;
use veer_common::address::{Address, Port};
use veer_common::event::NO_ID;
use veer_common::reason::Reason;
use veer_common::verdict::{Inbound, Outbound, Sender};

use super::Connection;
use crate::model::quoted::{Brief, Quoted};

/// What follows the ids of who has the proxy's and is not it, in a line for people.
pub const IMPOSTOR: &str = "/impostor";

/// A decision that `veer monitor` has shown.
#[derive(Clone, Debug)]
pub struct Shown {
    /// `namespace/name`.
    pub pod: String,
    /// What was decided on.
    pub connection: Connection,
    /// What the kernel said.
    pub reason: Reason,
}

/// Why a text is no line of `veer monitor`.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum LineError {
    /// Neither of the two forms.
    #[error(
        "{} is no line of `veer monitor`: a JSON object, or TIME POD DIRECTION [udp] [UID:GID[/impostor]] SOURCE -> DESTINATION \
         ACTION (REASON)",
        Quoted(.0)
    )]
    Form(String),
    /// JSON that lacks something.
    #[error("the line of `veer monitor --json` cannot be read: {}", Brief(.0))]
    Json(String),
    /// A part is not what it should be.
    #[error("{part} {} is not {accepted}", Quoted(.value))]
    Part {
        /// Which.
        part: &'static str,
        /// What it holds.
        value: String,
        /// What it takes.
        accepted: &'static str,
    },
    /// The pod was gone when the decision was shown.
    #[error("{} is no pod: it was gone when its decision was shown, and its lists with it", Brief(.pod))]
    PodGone {
        /// What stands there.
        pod: String,
    },
}

/// What both forms have.
#[derive(Deserialize)]
struct Parts {
    pod: String,
    direction: String,
    protocol: Option<String>,
    reason: String,
    uid: Option<u32>,
    gid: Option<u32>,
    #[serde(default)]
    impostor: bool,
    #[serde(default)]
    interface: u32,
    source: String,
    destination: String,
}

/// Reads a line.
///
/// # Errors
/// What is wrong with it.
pub fn read(line: &str) -> Result<Shown, LineError> {
    let line = line.trim();
    let parts: Parts = if line.starts_with('{') {
        serde_json::from_str(line).map_err(|error| LineError::Json(error.to_string()))?
    } else {
        for_people(line).ok_or_else(|| LineError::Form(line.to_owned()))?
    };
    if !parts.pod.contains('/') {
        return Err(LineError::PodGone { pod: parts.pod });
    }
    let reason = Reason::ALL.into_iter().find(|reason| reason.name() == parts.reason);
    let reason = reason.ok_or_else(|| wrong("reason", &parts.reason, "a reason of this release"))?;
    let connection = connection(&parts, reason)?;
    Ok(Shown { pod: parts.pod, connection, reason })
}

fn wrong(part: &'static str, value: &str, accepted: &'static str) -> LineError {
    LineError::Part { part, value: value.to_owned(), accepted }
}

/// Who has sent what arrived, which no line has, and its reason tells.
fn sender(reason: Reason) -> Sender {
    if reason == Reason::HandedOn {
        Sender::Proxy
    } else if reason == Reason::FromNode {
        Sender::Node
    } else {
        Sender::Client
    }
}

fn connection(parts: &Parts, reason: Reason) -> Result<Connection, LineError> {
    let destination: SocketAddr = parts.destination.parse().or(Err(wrong(
        "destination",
        &parts.destination,
        "IP:PORT or [IP]:PORT",
    )))?;
    let source = source(&parts.source, destination.ip())?;
    let port = Port::new(destination.port());
    let destination = Address::from(destination.ip());
    match parts.direction.as_str() {
        "inbound" => Ok(Connection::Inbound(Inbound {
            remote: source,
            local: destination,
            port,
            interface: parts.interface,
            sender: sender(reason),
        })),
        "outbound" => {
            let uid = parts.uid.unwrap_or(NO_ID);
            let gid = parts.gid.unwrap_or(NO_ID);
            let (is_impostor, interface) = (parts.impostor, parts.interface);
            // What no line has, and its reason tells.
            let (is_before_proxy, is_marked) = (reason == Reason::BeforeProxy, reason == Reason::ProxyMark);
            let outbound = Outbound {
                uid,
                gid,
                is_impostor,
                is_before_proxy,
                is_marked,
                source,
                destination,
                port,
                interface,
            };
            match parts.protocol.as_deref() {
                None | Some("tcp") => Ok(Connection::Outbound(outbound)),
                Some("udp") => Ok(Connection::Datagram(outbound)),
                Some(other) => Err(wrong("protocol", other, "tcp or udp")),
            }
        }
        other => Err(wrong("direction", other, "inbound or outbound")),
    }
}

/// An address, with or without a port; `-` is what a socket has that is not bound.
fn source(text: &str, destination: IpAddr) -> Result<Address, LineError> {
    if text == "-" {
        let v4 = Address::from(destination).is_v4();
        return Ok(if v4 { Address::v4([0; 4]) } else { Address::UNSPECIFIED });
    }
    let ip = text.parse::<SocketAddr>().map(|socket| socket.ip()).or_else(|_no_port| text.parse());
    ip.map(Address::from).or(Err(wrong("source", text, "an IP, with or without a port")))
}

fn for_people(line: &str) -> Option<Parts> {
    let words: Vec<&str> = line.split_whitespace().collect();
    // What was shown of a pod that is gone is "netns COOKIE".
    let (pod, rest) = match words.as_slice() {
        [_time, "netns", cookie, rest @ ..] => (format!("netns {cookie}"), rest),
        [_time, pod, rest @ ..] => ((*pod).to_owned(), rest),
        _ => return None,
    };
    let (direction, protocol, rest) = match rest {
        [direction, "udp", rest @ ..] => (direction, Some("udp".to_owned()), rest),
        [direction, rest @ ..] => (direction, None, rest),
        [] => return None,
    };
    let (who, source, destination, reason) = match rest {
        [who, source, "->", destination, _action, reason] => {
            (Some(who.split_once(':')?), source, destination, reason)
        }
        [source, "->", destination, _action, reason] => (None, source, destination, reason),
        _ => return None,
    };
    let id = |text: &str| text.parse().ok();
    let honest = |(uid, gid)| (uid, gid, false);
    let who =
        who.map(|(uid, gid)| gid.strip_suffix(IMPOSTOR).map_or(honest((uid, gid)), |gid| (uid, gid, true)));
    // As `render` of `veer monitor` has it: the interface's index behind the source.
    let (source, interface) = match source.split_once('%') {
        Some((source, index)) => (source, index.parse().ok()?),
        None => (*source, 0),
    };
    Some(Parts {
        pod,
        direction: (*direction).to_owned(),
        protocol,
        reason: reason.strip_prefix('(')?.strip_suffix(')')?.to_owned(),
        uid: who.and_then(|(uid, ..)| id(uid)),
        gid: who.and_then(|(_, gid, _)| id(gid)),
        impostor: who.is_some_and(|(.., impostor)| impostor),
        interface,
        source: source.to_owned(),
        destination: (*destination).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_line_are_read_alike() {
        let json = r#"{"time_ms": 1, "pod": "shop/cart", "direction": "outbound", "action": "direct",
            "reason": "proxy", "uid": 1337, "gid": 1337, "source": "10.1.0.2:5", "destination": "[fd00::1]:80"}"#;
        let text = "12:00:01.123Z shop/cart outbound 1337:1337 10.1.0.2:5 -> [fd00::1]:80 direct (proxy)";
        for line in [json, text] {
            let shown = read(line).unwrap();
            assert_eq!((shown.pod.as_str(), shown.reason), ("shop/cart", Reason::Proxy));
            let Connection::Outbound(outbound) = shown.connection else { panic!("{shown:?}") };
            assert_eq!((outbound.uid, outbound.gid, outbound.port.get()), (1337, 1337, 80));
            assert_eq!(IpAddr::from(outbound.source).to_string(), "10.1.0.2");
            assert_eq!(IpAddr::from(outbound.destination).to_string(), "fd00::1");
        }
    }

    #[test]
    fn an_inbound_line_has_no_identity_and_an_unbound_socket_no_source() {
        let line = "12:00:01.123Z a/b inbound 10.1.0.2:5 -> 10.1.0.3:80 to-inbound (all-inbound)";
        assert!(matches!(read(line).unwrap().connection, Connection::Inbound(inbound)
            if inbound.port.get() == 80 && IpAddr::from(inbound.remote).to_string() == "10.1.0.2"));
        let line = "12:00:01.123Z a/b outbound 0:0 - -> 10.1.0.3:80 to-outbound (all-outbound)";
        assert!(matches!(read(line).unwrap().connection, Connection::Outbound(outbound)
            if outbound.source.is_unspecified()));
    }

    #[test]
    fn an_impostor_is_told_from_the_proxy_in_both_forms() {
        let json = |more: &str| {
            format!(
                r#"{{"time_ms": 1, "pod": "a/b", "direction": "outbound", "action": "to-outbound", "reason":
                "all-outbound", "uid": 1337, "gid": 1337{more}, "source": "-", "destination": "10.1.0.3:80"}}"#
            )
        };
        let text = |more: &str| format!("t a/b outbound 1337:1337{more} - -> 10.1.0.3:80 direct (proxy)");
        let rows = [
            (json(r#", "impostor": true"#), true),
            (text("/impostor"), true),
            (json(""), false),
            (text(""), false),
        ];
        for (line, impostor) in rows {
            let Connection::Outbound(outbound) = read(&line).unwrap().connection else { panic!("{line}") };
            assert_eq!((outbound.uid, outbound.gid, outbound.is_impostor), (1337, 1337, impostor), "{line}");
        }
    }

    #[test]
    fn a_line_of_udp_is_read_as_a_datagram() {
        let json = r#"{"time_ms": 1, "pod": "a/b", "direction": "outbound", "protocol": "udp", "action": "to-dns",
            "reason": "dns", "uid": 0, "gid": 0, "source": "0.0.0.0:4711", "destination": "10.96.0.10:53"}"#;
        let text = "12:00:01.123Z a/b outbound udp 0:0 0.0.0.0:4711 -> 10.96.0.10:53 to-dns (dns)";
        for line in [json, text] {
            let shown = read(line).unwrap();
            assert!(
                matches!(shown.connection, Connection::Datagram(sent) if sent.port.get() == 53),
                "{shown:?}"
            );
            assert_eq!(shown.reason, Reason::Dns);
        }
    }

    #[test]
    fn what_is_wrong_with_a_line_is_named() {
        let rows = [
            ("", "\"\" is no line of `veer monitor`"),
            ("watching; Ctrl-C ends it", "is no line of `veer monitor`"),
            ("{}", "cannot be read: missing field `pod`"),
            ("t netns 7 outbound 0:0 - -> 10.1.0.3:80 direct (proxy)", "netns 7 is no pod"),
            ("t a/b outbound 0:0 - -> 10.1.0.3 direct (proxy)", "destination \"10.1.0.3\" is not IP:PORT"),
            ("t a/b outbound 0:0 x -> 10.1.0.3:1 direct (proxy)", "source \"x\" is not an IP"),
            ("t a/b sideways 0:0 - -> 10.1.0.3:1 direct (proxy)", "direction \"sideways\" is not"),
            (
                r#"{"pod": "a/b", "direction": "outbound", "protocol": "sctp", "reason": "dns", "source": "::", "destination": "[::1]:53"}"#,
                "protocol \"sctp\" is not tcp or udp",
            ),
            ("t a/b outbound 0:0 - -> 10.1.0.3:1 direct (magic)", "reason \"magic\" is not a reason"),
        ];
        for (line, expected) in rows {
            let error = read(line).unwrap_err().to_string();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
