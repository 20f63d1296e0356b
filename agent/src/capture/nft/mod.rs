//! A pod's capture as rules of nftables: what istio-init programs with iptables, in its order.
//!
//! Owns: the [`Ruleset`], which is data; how a [`Capture`](crate::model::Capture) becomes one ([`Ruleset::of`]);
//! and the text of it in nft's own syntax (`Display`), for tests and for people. Never does: I/O;
//! `platform::nft` brings it into a netns. Called by: enrolment.
//!
//! Two tables `veer`, of the families ip and ip6, and not one of inet, whose NAT needs Linux 5.2. Nothing here is
//! younger than 4.14, but for `tproxy` (4.19), which TPROXY pods alone need. Chains of type nat are walked for the
//! first packet of a connection, so a counter there counts connections.

mod intervals;
mod rules;
mod ruleset;
mod text;

pub use self::intervals::Interval;
pub use self::ruleset::{
    Base, Chain, Elements, Family, Hook, Is, Kind, Match, Protocol, Rule, Ruleset, Set, Side, State,
    Statement, TABLE, Table, Way, route,
};

#[cfg(test)]
mod tests;
