//! Why a connection goes where it goes: the kernel's verdict with its trace, in words.
//!
//! Owns: the explanation of one connection from what the kernel holds of a pod ([`explain()`]), what on the
//! pod or the node gave the rule ([`causes`]), the connection in a line of `veer monitor` (`line`), and the
//! text of it all ([`text`]). Never does: I/O, or decide: the verdict is `veer_common`'s, run on the entries of
//! the maps as the kernel runs it. Called by: `veer explain`, the control socket and tests.
//!
//! A new [`Rule`] needs a line in `compared` (what is compared, and how it came out) and in `grounds`.

mod ambient;
pub mod causes;
mod compared;
mod grounds;
mod interfaces;
pub mod line;
mod lists;
pub mod report;
pub mod text;

use veer_common::maps::{NetnsCookie, PodPolicy};
use veer_common::reason::{Action, Reason};
use veer_common::rule::{Rule, Trace};
use veer_common::verdict::{self, Inbound, Outbound};

use self::compared::Facts;
pub use self::grounds::Ground;
use self::lists::Lists;
use crate::capture::{MapEntries, MapRules};

/// A connection, or a datagram, as the verdict sees it.
#[derive(Clone, Copy, Debug)]
pub enum Connection {
    /// A process of the pod opens it.
    Outbound(Outbound),
    /// A process of the pod sends it by UDP.
    Datagram(Outbound),
    /// It arrives in the pod's netns.
    Inbound(Inbound),
}

/// Why a connection goes where it goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// The verdict.
    pub reason: Reason,
    /// The proxy's port, if it goes to the proxy.
    pub port: Option<u16>,
    /// The rule that gave it.
    pub matched: LookedAt,
    /// What gave the pod that rule, the most telling first.
    pub grounds: Vec<Ground>,
    /// The rules that were looked at before and did not match, in their order.
    pub before: Vec<LookedAt>,
}

/// A rule, and how it came out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LookedAt {
    /// The rule.
    pub rule: Rule,
    /// What was compared, as a statement that is true of the connection.
    pub compared: String,
}

/// Explains a connection of a pod from what the maps hold of it.
pub fn explain(cookie: NetnsCookie, entries: &MapEntries, connection: &Connection) -> Explanation {
    let rules = MapRules::new(cookie, entries);
    let policy = &entries.policy;
    let mut trail = Trail::default();
    let reason = match connection {
        Connection::Outbound(outbound) => verdict::trace_outbound(policy, &rules, outbound, &mut trail),
        Connection::Datagram(sent) => verdict::trace_datagram(policy, &rules, sent, &mut trail),
        Connection::Inbound(inbound) => verdict::trace_inbound(policy, &rules, inbound, &mut trail),
    };
    let facts = Facts { policy, lists: Lists::new(cookie, entries), connection };
    let looked_at =
        |rule: Rule, matched: bool| LookedAt { rule, compared: compared::compared(rule, matched, &facts) };
    // The last rule of each of the three always matches.
    let rule = trail.matched.unwrap_or(match connection {
        Connection::Outbound(_) => Rule::NotIncluded,
        Connection::Datagram(_) => Rule::Ipv6NotCaptured,
        Connection::Inbound(_) => Rule::NotIncludedInbound,
    });
    Explanation {
        reason,
        port: proxy_port(policy, reason),
        matched: looked_at(rule, true),
        grounds: grounds::grounds(rule, &facts),
        before: trail.before.into_iter().map(|rule| looked_at(rule, false)).collect(),
    }
}

/// Where the proxy gets what has this reason.
pub fn proxy_port(policy: &PodPolicy, reason: Reason) -> Option<u16> {
    match reason.action() {
        Action::ToOutbound => Some(policy.outbound_port.get()),
        Action::ToInbound => Some(policy.inbound_port.get()),
        Action::ToDns => Some(policy.dns_port.get()),
        Action::Direct | Action::Drop => None,
    }
}

/// The rules as they were looked at.
#[derive(Default)]
struct Trail {
    before: Vec<Rule>,
    matched: Option<Rule>,
}

impl Trace for Trail {
    fn looked_at(&mut self, rule: Rule, matched: bool) -> bool {
        if matched {
            self.matched = Some(rule);
        } else {
            self.before.push(rule);
        }
        matched
    }
}

#[cfg(test)]
mod tests;
