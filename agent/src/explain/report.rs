//! What `veer explain` prints, as a value: JSON as it stands, and the text made from it ([`super::text`]).

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;
use veer_common::event::NO_ID;
use veer_common::reason::{Action, Reason};

use super::causes::{Cause, Manifest, PodFacts};
use super::{Connection, Explanation, Ground};
use crate::model::{IdSpace, Origin, Setting};

/// The answer on one connection.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// `namespace/name`.
    pub pod: String,
    /// Whether the pod is enrolled: what is not is left alone.
    pub enrolled: bool,
    /// What was asked about.
    pub connection: Asked,
    /// What it speaks.
    pub protocol: Protocol,
    /// What is done with it.
    pub action: &'static str,
    /// The proxy's port, if it goes there.
    pub port: Option<u16>,
    /// Why, by name.
    pub reason: String,
    /// Why, as a sentence.
    pub sentence: String,
    /// The rule that matched.
    pub rule: Option<&'static str>,
    /// What the rule compared.
    pub compared: Option<String>,
    /// What gave the pod the rule.
    pub because: Vec<Because>,
    /// The rules that were looked at before, none of which matched.
    pub before: Vec<Before>,
    /// What the kernel said, where a line of `veer monitor` was asked about.
    pub observed: Option<&'static str>,
    /// What else is to be known.
    pub notes: Vec<String>,
}

/// What a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams, of which DNS alone may be captured.
    Udp,
}

/// A connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "direction", rename_all = "lowercase")]
pub enum Asked {
    /// A process of the pod opens it.
    Outbound {
        /// Its uid.
        uid: u32,
        /// Its gid.
        gid: u32,
        /// Whether these are the proxy's, and it is in another container; absent if not.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        impostor: bool,
        /// Whether the socket has the mark of ztunnel's; absent if not.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        marked: bool,
        /// What the socket is bound to.
        #[serde(skip_serializing_if = "Option::is_none")]
        source: Option<IpAddr>,
        /// What is dialled.
        destination: SocketAddr,
    },
    /// It arrives in the pod's netns.
    Inbound {
        /// The client.
        source: IpAddr,
        /// What is dialled.
        destination: SocketAddr,
    },
}

/// Something that gave the pod a rule.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Because {
    /// The setting, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setting: Option<Setting>,
    /// What said so, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// All of it in words.
    pub text: String,
}

/// A rule that did not match.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Before {
    /// Its name.
    pub rule: &'static str,
    /// Why it did not match.
    pub compared: String,
}

/// What was asked: a connection that might be, or one that was.
#[derive(Clone, Debug)]
pub struct Question {
    /// `namespace/name`.
    pub pod: String,
    /// The connection.
    pub connection: Connection,
    /// What it speaks.
    pub protocol: Protocol,
    /// Whose numbers the uids and gids of the pod are.
    pub ids: IdSpace,
    /// What the kernel said, for one that was.
    pub observed: Option<Reason>,
    /// What was taken for granted, because it was not asked.
    pub assumed: Option<String>,
}

impl Report {
    /// On a connection of an enrolled pod. `facts` is what the agent says, or why it says nothing.
    pub fn on_enrolled(
        question: &Question,
        explanation: &Explanation,
        facts: Result<&PodFacts, &str>,
    ) -> Self {
        let mut notes: Vec<String> = question.assumed.iter().cloned().collect();
        notes.extend(question.observed.and_then(|observed| observation(observed, explanation.reason)));
        match facts {
            Ok(facts) => {
                let has_ids = !matches!(question.connection, Connection::Inbound(_));
                notes.extend((has_ids && facts.has_own_users()).then(|| own_users(question.ids)));
                let asks = facts.asks_for_proxy();
                notes.extend(asks.map(|label| format!("the pod's proxy is the node's, by {label}")));
                notes.extend(facts.notes());
            }
            Err(problem) => notes.push(format!("only the agent knows the causes, and {problem}")),
        }
        let before =
            |looked: &super::LookedAt| Before { rule: looked.rule.name(), compared: looked.compared.clone() };
        Self {
            pod: question.pod.clone(),
            enrolled: true,
            connection: Asked::new(&question.connection),
            protocol: question.protocol,
            action: explanation.reason.action().name(),
            port: explanation.port,
            reason: explanation.reason.name().to_owned(),
            sentence: explanation.matched.rule.sentence().to_owned(),
            rule: Some(explanation.matched.rule.name()),
            compared: Some(explanation.matched.compared.clone()),
            because: explanation.grounds.iter().map(|ground| because(ground, facts.ok())).collect(),
            before: explanation.before.iter().map(before).collect(),
            observed: question.observed.map(Reason::name),
            notes,
        }
    }

    /// On UDP that arrives in an enrolled pod: no rule is looked at.
    pub fn on_arriving_udp(question: &Question) -> Self {
        Self {
            pod: question.pod.clone(),
            enrolled: true,
            connection: Asked::new(&question.connection),
            protocol: question.protocol,
            action: Reason::NotTcp.action().name(),
            port: None,
            reason: Reason::NotTcp.name().to_owned(),
            sentence: "of what arrives, only TCP is brought to the proxy".to_owned(),
            rule: None,
            compared: None,
            because: Vec::new(),
            before: Vec::new(),
            observed: None,
            notes: Vec::new(),
        }
    }

    /// On a connection of a pod that is not enrolled; `None` if nobody knows such a pod.
    pub fn on_other(question: &Question, facts: &PodFacts) -> Option<Self> {
        let (reason, sentence, because) = match &facts.manifest {
            Manifest::Passed { reason, sentence } => (reason.clone(), sentence.clone(), Vec::new()),
            Manifest::Invalid { errors } => {
                ("invalid-annotations".to_owned(), "its ADD is refused until its manifest is right".to_owned(), errors.clone())
            }
            Manifest::Captured { .. } => (
                "not-enrolled".to_owned(),
                "its manifest asks for capture, and no ADD of it has succeeded on this node".to_owned(),
                vec!["the agent's log tells of an ADD that failed; a pod that is older than the agent is to be made anew".to_owned()],
            ),
            Manifest::Unreadable { problem } => {
                ("not-enrolled".to_owned(), "why cannot be told".to_owned(), vec![problem.clone()])
            }
            Manifest::Unknown => return None,
        };
        let because = because.into_iter().map(|text| Because { setting: None, origin: None, text });
        Some(Self {
            pod: question.pod.clone(),
            enrolled: false,
            connection: Asked::new(&question.connection),
            protocol: question.protocol,
            action: Action::Direct.name(),
            port: None,
            reason,
            sentence,
            rule: None,
            compared: None,
            because: because.collect(),
            before: Vec::new(),
            observed: question.observed.map(Reason::name),
            notes: vec!["the pod is not enrolled: veer does nothing to its connections".to_owned()],
        })
    }
}

impl Asked {
    fn new(connection: &Connection) -> Self {
        match connection {
            Connection::Outbound(outbound) | Connection::Datagram(outbound) => Self::Outbound {
                uid: outbound.uid,
                gid: outbound.gid,
                impostor: outbound.is_impostor,
                marked: outbound.is_marked,
                source: (!outbound.source.is_unspecified()).then(|| outbound.source.into()),
                destination: SocketAddr::new(outbound.destination.into(), outbound.port.get()),
            },
            Connection::Inbound(inbound) => Self::Inbound {
                source: inbound.remote.into(),
                destination: SocketAddr::new(inbound.local.into(), inbound.port.get()),
            },
        }
    }

    /// Who opens it, and whether it only looks like the proxy, unless that is unknown.
    pub fn identity(&self) -> Option<(u32, u32, bool)> {
        match self {
            Self::Outbound { uid, gid, impostor, .. } if *uid != NO_ID => Some((*uid, *gid, *impostor)),
            Self::Outbound { .. } | Self::Inbound { .. } => None,
        }
    }
}

/// On the ids of a pod with a user namespace of its own.
fn own_users(ids: IdSpace) -> String {
    let whose = match ids {
        IdSpace::Node => "the node's, which --as takes, too; those in its manifest are the pod's",
        IdSpace::Pod => "the pod's, as in its manifest; rules of nftables count so, and --as takes them, too",
    };
    format!("the pod has a user namespace of its own (spec.hostUsers false): uids and gids here are {whose}")
}

fn because(ground: &Ground, facts: Option<&PodFacts>) -> Because {
    let plain = |text: String| Because { setting: None, origin: None, text };
    match ground {
        Ground::OwnAddress(address) => plain(format!("{address} is an address of the pod's netns")),
        Ground::Always(text) | Ground::Netns(text) => plain((*text).to_owned()),
        Ground::Setting(setting) => {
            let cause = facts.map_or_else(
                || Cause::Unknown("what the manifest said".to_owned()),
                |facts| facts.cause(*setting),
            );
            let (origin, text) = match cause {
                Cause::Origin(origin) => (Some(origin.clone()), origin.to_string()),
                Cause::Unknown(why) => (None, format!("cause unknown ({}): {why}", setting.place())),
            };
            Because { setting: Some(*setting), origin, text }
        }
    }
}

/// What is to be said where the kernel gave another reason than the verdict does.
fn observation(observed: Reason, explained: Reason) -> Option<String> {
    if observed == explained {
        return None;
    }
    let name = observed.name();
    Some(match refusal(observed) {
        Some(why) => format!("this connection was refused all the same ({name}): {why}"),
        None => format!("the kernel said {name} then; what it holds of the pod has changed in between"),
    })
}

/// Why the datapath refuses what the verdict sends to the proxy.
fn refusal(reason: Reason) -> Option<&'static str> {
    let rows = [
        (Reason::NoMemory, "the kernel had no memory for the connection's record"),
        (Reason::NoListener, "nobody listened on the proxy's port"),
        (Reason::ProxyBacklog, "too many of the pod's connections waited for the proxy"),
    ];
    rows.into_iter().find_map(|(refused, why)| (refused == reason).then_some(why))
}
