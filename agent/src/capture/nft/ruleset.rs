//! What a ruleset consists of.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use veer_common::reason::Reason;

use super::intervals::Interval;
use crate::model::InterfaceName;

/// The name of our tables.
pub const TABLE: &str = "veer";

/// The way of marked packets in a TPROXY pod, as Istio has it: what is marked is delivered locally.
pub mod route {
    /// The mark; Envoy sets it, too, on what it sends with its client's address.
    pub const MARK: u32 = 1337;
    /// The routing table that marked packets are looked up in.
    pub const TABLE: u8 = 133;
}

/// Everything that a pod's netns is given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ruleset {
    /// One table, or two where IPv6 is captured.
    pub tables: Vec<Table>,
    /// Whether marked packets need their [`route`].
    pub marks: bool,
}

impl Ruleset {
    /// What open connections need of it, and no more: without a NAT chain in a netns, or without a rule that needs
    /// connection tracking, the kernel stops translating the addresses of connections that it has redirected (seen
    /// on Linux 6.18; `nf_nat_unregister_fn` and `nf_ct_netns_put`). Such a rule is the only one left there. A proxy
    /// that shows its app the client's address (TPROXY) gets the app's answers by their mark alone: what carries marks
    /// from connection to packet and back stays, and so does the way of marked packets.
    #[must_use]
    pub fn drained(&self) -> Self {
        let tracks = || Rule { matches: vec![Match::State(State::New)], statements: vec![Statement::Accept] };
        let carries_mark = |rule: &&Rule| {
            rule.statements.iter().any(|done| matches!(done, Statement::SaveMark | Statement::RestoreMark))
        };
        let rules = |chain: &Chain| match chain.base?.kind {
            Kind::Nat => Some(vec![tracks()]),
            Kind::Filter | Kind::Route => {
                let marking: Vec<_> = chain.rules.iter().filter(carries_mark).cloned().collect();
                (!marking.is_empty()).then_some(marking)
            }
        };
        let drained = |table: &Table| Table {
            family: table.family,
            counters: Vec::new(),
            sets: Vec::new(),
            chains: table
                .chains
                .iter()
                .filter_map(|chain| Some(Chain { rules: rules(chain)?, ..chain.clone() }))
                .collect(),
        };
        Self { tables: self.tables.iter().map(drained).collect(), marks: self.marks }
    }
}

/// A table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its counters, which have the reasons' names.
    pub counters: Vec<Reason>,
    /// Its sets.
    pub sets: Vec<Set>,
    /// Its chains.
    pub chains: Vec<Chain>,
}

/// What a table is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

/// A set with a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// What is in it: never nothing.
    pub elements: Elements,
}

/// What is in a set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Elements {
    /// Ports.
    Ports(Vec<Interval<u16>>),
    /// IPv4 addresses.
    V4(Vec<Interval<Ipv4Addr>>),
    /// IPv6 addresses.
    V6(Vec<Interval<Ipv6Addr>>),
    /// Groups.
    Groups(BTreeSet<u32>),
}

/// A chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Where it hangs; `None` for one that others go to.
    pub base: Option<Base>,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// Where a chain hangs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Base {
    /// Of what kind it is.
    pub kind: Kind,
    /// Which packets it sees.
    pub hook: Hook,
    /// When, among others of the hook.
    pub priority: i32,
}

/// A kind of base chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// May redirect; sees the first packet of each connection.
    Nat,
    /// Sees every packet.
    Filter,
    /// As filter, and a packet whose mark changes is routed anew.
    Route,
}

/// A hook of the IP families; the number is the kernel's (`enum nf_inet_hooks`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Hook {
    /// What arrives.
    Prerouting = 0,
    /// What arrives and is for here.
    Input = 1,
    /// What is sent from here.
    Output = 3,
    /// What leaves.
    Postrouting = 4,
}

/// A rule: where all of it matches, it does all of what it says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// What must hold.
    pub matches: Vec<Match>,
    /// What is done.
    pub statements: Vec<Statement>,
}

/// Arriving or leaving.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// The interface that a packet came by.
    In,
    /// The interface that it goes by.
    Out,
}

/// Source or destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// Whether a match is meant as it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Is {
    /// It must be so.
    So,
    /// It must not be so.
    Not,
}

/// A protocol above IP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// States of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Its first packet.
    New,
    /// A later one, or one that belongs to it.
    Known,
    /// Of none.
    Invalid,
}

/// Something that must hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Match {
    /// The interface is `lo`.
    Loopback(Way),
    /// The interface has this name.
    Interface(Way, InterfaceName),
    /// What is spoken above IP.
    Protocol(Protocol),
    /// An address is in a range.
    Address(Side, Is, IpNet),
    /// The destination is in a set.
    DestinationIn(&'static str),
    /// A port of a protocol.
    Port(Protocol, Side, Is, u16),
    /// The destination port is in a set.
    PortIn(Protocol, Is, &'static str),
    /// The uid of the socket's creator.
    Uid(u32),
    /// The primary gid of the socket's creator.
    Gid(u32),
    /// That gid is in a set.
    GidIn(&'static str),
    /// The packet's mark.
    Mark(u32),
    /// The connection's mark.
    ConnectionMark(u32),
    /// The connection's state.
    State(State),
}

/// Something that is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Statement {
    /// Counts.
    Count(Reason),
    /// Ends this chain.
    Return,
    /// Ends all chains of the hook and kind.
    Accept,
    /// Ends the packet.
    Drop,
    /// Goes on in another chain, and does not come back.
    Goto(&'static str),
    /// Sends the connection to a port of the pod's own.
    Redirect(u16),
    /// Hands the packet to the listener on this port, as it is. Without one, the rule does not match.
    Tproxy(u16),
    /// Marks the packet.
    SetMark(u32),
    /// Marks the connection as the packet is.
    SaveMark,
    /// Marks the packet as the connection is.
    RestoreMark,
    /// Puts the connection into a zone of its own.
    Zone(u16),
}
