//! A ruleset in nft's syntax, as `nft -f` reads it.

use std::fmt::{self, Display, Formatter};

use super::intervals::Interval;
use super::ruleset::{
    Base, Chain, Elements, Family, Hook, Is, Kind, Match, Protocol, Rule, Ruleset, Set, Side, State,
    Statement, TABLE, Table, Way,
};

impl Display for Ruleset {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.tables.iter().try_for_each(|table| writeln!(f, "{table}"))
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {TABLE} {{", self.family.name())?;
        for counter in &self.counters {
            writeln!(f, "\tcounter {} {{ }}", counter.name())?;
        }
        self.sets.iter().try_for_each(|set| writeln!(f, "{set}"))?;
        for chain in &self.chains {
            writeln!(f, "\tchain {} {{", chain.name)?;
            write_chain(f, chain, self.family)?;
            writeln!(f, "\t}}")?;
        }
        f.write_str("}")
    }
}

impl Family {
    /// The family's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }
}

impl Kind {
    /// The kind's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
            Self::Route => "route",
        }
    }
}

impl Elements {
    /// The name of their type.
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::Ports(_) => "inet_service",
            Self::V4(_) => "ipv4_addr",
            Self::V6(_) => "ipv6_addr",
            Self::Groups(_) => "gid",
        }
    }
}

impl Display for Set {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let flags = if matches!(self.elements, Elements::Groups(_)) { "" } else { " flags interval;" };
        let elements = match &self.elements {
            Elements::Ports(ports) => intervals(ports),
            Elements::V4(ranges) => intervals(ranges),
            Elements::V6(ranges) => intervals(ranges),
            Elements::Groups(groups) => groups.iter().map(u32::to_string).collect::<Vec<_>>().join(", "),
        };
        let kind = self.elements.type_name();
        write!(f, "\tset {} {{ type {kind};{flags} elements = {{ {elements} }} }}", self.name)
    }
}

fn intervals<T: Display + PartialEq>(intervals: &[Interval<T>]) -> String {
    let text = |interval: &Interval<T>| {
        if interval.first == interval.last {
            interval.first.to_string()
        } else {
            format!("{}-{}", interval.first, interval.last)
        }
    };
    intervals.iter().map(text).collect::<Vec<_>>().join(", ")
}

fn write_chain(f: &mut Formatter<'_>, chain: &Chain, family: Family) -> fmt::Result {
    if let Some(Base { kind, hook, priority }) = chain.base {
        let hook = match hook {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        };
        writeln!(f, "\t\ttype {} hook {hook} priority {priority}; policy accept;", kind.name())?;
    }
    chain.rules.iter().try_for_each(|rule| write_rule(f, rule, family))
}

fn write_rule(f: &mut Formatter<'_>, rule: &Rule, family: Family) -> fmt::Result {
    let matches = rule.matches.iter().map(|condition| match_text(condition, family));
    let words: Vec<String> = matches.chain(rule.statements.iter().map(statement_text)).collect();
    writeln!(f, "\t\t{}", words.join(" "))
}

fn match_text(condition: &Match, family: Family) -> String {
    let ip = family.name();
    match condition {
        Match::Loopback(Way::In) => "iif \"lo\"".to_owned(),
        Match::Loopback(Way::Out) => "oif \"lo\"".to_owned(),
        Match::Interface(Way::In, name) => format!("iifname \"{name}\""),
        Match::Interface(Way::Out, name) => format!("oifname \"{name}\""),
        Match::Protocol(protocol) => format!("meta l4proto {}", protocol.name()),
        Match::Address(side, is, range) => {
            format!("{ip} {}addr {}{}", side.letter(), is.text(), range.trunc())
        }
        Match::DestinationIn(set) => format!("{ip} daddr @{set}"),
        Match::Port(protocol, side, is, port) => {
            format!("{} {}port {}{port}", protocol.name(), side.letter(), is.text())
        }
        Match::PortIn(protocol, is, set) => format!("{} dport {}@{set}", protocol.name(), is.text()),
        Match::Uid(uid) => format!("meta skuid {uid}"),
        Match::Gid(gid) => format!("meta skgid {gid}"),
        Match::GidIn(set) => format!("meta skgid @{set}"),
        Match::Mark(mark) => format!("meta mark {mark}"),
        Match::ConnectionMark(mark) => format!("ct mark {mark}"),
        Match::State(State::New) => "ct state new".to_owned(),
        Match::State(State::Known) => "ct state established,related".to_owned(),
        Match::State(State::Invalid) => "ct state invalid".to_owned(),
    }
}

fn statement_text(statement: &Statement) -> String {
    match statement {
        Statement::Count(reason) => format!("counter name \"{}\"", reason.name()),
        Statement::Return => "return".to_owned(),
        Statement::Accept => "accept".to_owned(),
        Statement::Drop => "drop".to_owned(),
        Statement::Goto(chain) => format!("goto {chain}"),
        Statement::Redirect(port) => format!("redirect to :{port}"),
        Statement::Tproxy(port) => format!("tproxy to :{port}"),
        Statement::SetMark(mark) => format!("meta mark set {mark}"),
        Statement::SaveMark => "ct mark set meta mark".to_owned(),
        Statement::RestoreMark => "meta mark set ct mark".to_owned(),
        Statement::Zone(zone) => format!("ct zone set {zone}"),
    }
}

impl Protocol {
    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl Side {
    const fn letter(self) -> &'static str {
        match self {
            Self::Source => "s",
            Self::Destination => "d",
        }
    }
}

impl Is {
    const fn text(self) -> &'static str {
        match self {
            Self::So => "",
            Self::Not => "!= ",
        }
    }
}
