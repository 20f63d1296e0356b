//! Matches and statements as expressions of nf_tables: small steps that load, compare and act on registers.

use std::net::IpAddr;

use ipnet::IpNet;

use super::message::Attributes;
use crate::capture::nft::{Family, Is, Match, Protocol, Rule, Side, State, Statement, Way};

/// `NFTA_LIST_ELEM`.
pub(super) const LIST_ELEMENT: u16 = 1;
/// `NFT_REG_1`, 16 bytes.
const REGISTER: u32 = 1;
/// `NFT_REG_VERDICT`.
const VERDICT: u32 = 0;
/// `NFT_OBJECT_COUNTER`.
pub(super) const COUNTER: u32 = 1;
/// `LOOPBACK_IFINDEX` (`include/net/flow.h`): the first interface of every netns is lo.
const LOOPBACK: u32 = 1;
/// Bytes of an interface's name.
const NAME: usize = 16;

/// `enum nft_meta_keys`.
mod meta {
    pub(super) const MARK: u32 = 3;
    pub(super) const INTERFACE: [u32; 2] = [4, 5];
    pub(super) const INTERFACE_NAME: [u32; 2] = [6, 7];
    pub(super) const UID: u32 = 10;
    pub(super) const GID: u32 = 11;
    pub(super) const PROTOCOL: u32 = 16;
}

/// `enum nft_ct_keys`, and the bits of a state (`NF_CT_STATE_BIT`).
mod ct {
    pub(super) const STATE: u32 = 0;
    pub(super) const MARK: u32 = 3;
    pub(super) const ZONE: u32 = 17;
    pub(super) const INVALID: u32 = 1;
    pub(super) const ESTABLISHED: u32 = 2;
    pub(super) const RELATED: u32 = 4;
    pub(super) const NEW: u32 = 8;
}

/// `enum nft_payload_bases`.
#[derive(Clone, Copy)]
enum Header {
    Network = 1,
    Transport = 2,
}

/// The expressions of a rule, as its attribute holds them. `set_id` tells a set of this transaction by its name.
pub(super) fn expressions(rule: &Rule, family: Family, set_id: &dyn Fn(&str) -> u32) -> Attributes {
    let mut list = List { family, set_id, attributes: Attributes::new(), protocol: None };
    rule.matches.iter().for_each(|condition| list.condition(condition));
    rule.statements.iter().for_each(|statement| list.statement(*statement));
    list.attributes
}

struct List<'a> {
    family: Family,
    set_id: &'a dyn Fn(&str) -> u32,
    attributes: Attributes,
    /// What the packet is known to speak: ports mean nothing without.
    protocol: Option<Protocol>,
}

impl List<'_> {
    fn push(&mut self, name: &str, details: &Attributes) {
        let expression = Attributes::new().text(1, name).nested(2, details);
        let attributes = std::mem::take(&mut self.attributes);
        self.attributes = attributes.nested(LIST_ELEMENT, &expression);
    }

    fn condition(&mut self, condition: &Match) {
        match condition {
            Match::Loopback(way) => {
                self.meta(way.of(meta::INTERFACE));
                self.compare(Is::So, &LOOPBACK.to_ne_bytes());
            }
            Match::Interface(way, name) => {
                self.meta(way.of(meta::INTERFACE_NAME));
                let mut bytes = name.as_str().as_bytes().to_vec();
                bytes.resize(NAME, 0);
                self.compare(Is::So, &bytes);
            }
            Match::Protocol(protocol) => self.speaks(*protocol),
            Match::Address(side, is, range) => self.address(*side, *is, range),
            Match::DestinationIn(set) => {
                self.load_address(Side::Destination);
                self.lookup(Is::So, set);
            }
            Match::Port(protocol, side, is, port) => {
                self.load_port(*protocol, *side);
                self.compare(*is, &port.to_be_bytes());
            }
            Match::PortIn(protocol, is, set) => {
                self.load_port(*protocol, Side::Destination);
                self.lookup(*is, set);
            }
            Match::Uid(uid) => {
                self.meta(meta::UID);
                self.compare(Is::So, &uid.to_ne_bytes());
            }
            Match::Gid(gid) => {
                self.meta(meta::GID);
                self.compare(Is::So, &gid.to_ne_bytes());
            }
            Match::GidIn(set) => {
                self.meta(meta::GID);
                self.lookup(Is::So, set);
            }
            Match::Mark(mark) => {
                self.meta(meta::MARK);
                self.compare(Is::So, &mark.to_ne_bytes());
            }
            Match::ConnectionMark(mark) => {
                self.ct(ct::MARK);
                self.compare(Is::So, &mark.to_ne_bytes());
            }
            Match::State(state) => {
                let bits = match state {
                    State::New => ct::NEW,
                    State::Known => ct::ESTABLISHED | ct::RELATED,
                    State::Invalid => ct::INVALID,
                };
                self.ct(ct::STATE);
                self.mask(&bits.to_ne_bytes());
                self.compare(Is::Not, &[0; 4]);
            }
        }
    }

    fn statement(&mut self, statement: Statement) {
        match statement {
            Statement::Count(reason) => {
                let counter = Attributes::new().number(1, COUNTER).text(2, reason.name());
                self.push("objref", &counter);
            }
            Statement::Return => self.verdict(-5, None),
            Statement::Accept => self.verdict(1, None),
            Statement::Drop => self.verdict(0, None),
            Statement::Goto(chain) => self.verdict(-4, Some(chain)),
            Statement::Redirect(port) => {
                self.set_register(&port.to_be_bytes());
                // `NF_NAT_RANGE_PROTO_SPECIFIED`.
                self.push("redir", &Attributes::new().number(1, REGISTER).number(3, 2));
            }
            Statement::Tproxy(port) => {
                self.set_register(&port.to_be_bytes());
                let family = u32::from(family_number(self.family));
                self.push("tproxy", &Attributes::new().number(1, family).number(3, REGISTER));
            }
            Statement::SetMark(mark) => {
                self.set_register(&mark.to_ne_bytes());
                self.push("meta", &Attributes::new().number(2, meta::MARK).number(3, REGISTER));
            }
            Statement::SaveMark => {
                self.meta(meta::MARK);
                self.push("ct", &Attributes::new().number(2, ct::MARK).number(4, REGISTER));
            }
            Statement::RestoreMark => {
                self.ct(ct::MARK);
                self.push("meta", &Attributes::new().number(2, meta::MARK).number(3, REGISTER));
            }
            Statement::Zone(zone) => {
                self.set_register(&zone.to_ne_bytes());
                self.push("ct", &Attributes::new().number(2, ct::ZONE).number(4, REGISTER));
            }
        }
    }

    /// Loads a fact of the packet.
    fn meta(&mut self, key: u32) {
        self.push("meta", &Attributes::new().number(1, REGISTER).number(2, key));
    }

    /// Loads a fact of the connection.
    fn ct(&mut self, key: u32) {
        self.push("ct", &Attributes::new().number(1, REGISTER).number(2, key));
    }

    fn compare(&mut self, is: Is, value: &[u8]) {
        let operation = match is {
            Is::So => 0,
            Is::Not => 1,
        };
        let compared = Attributes::new().number(1, REGISTER).number(2, operation).nested(3, &value_of(value));
        self.push("cmp", &compared);
    }

    /// Keeps the bits of `mask` alone.
    fn mask(&mut self, mask: &[u8]) {
        let length = u32::try_from(mask.len()).unwrap_or_default();
        let masked = Attributes::new()
            .number(1, REGISTER)
            .number(2, REGISTER)
            .number(3, length)
            .nested(4, &value_of(mask))
            .nested(5, &value_of(&vec![0; mask.len()]));
        self.push("bitwise", &masked);
    }

    fn speaks(&mut self, protocol: Protocol) {
        if self.protocol != Some(protocol) {
            self.meta(meta::PROTOCOL);
            let number = match protocol {
                Protocol::Tcp => libc::IPPROTO_TCP,
                Protocol::Udp => libc::IPPROTO_UDP,
            };
            self.compare(Is::So, &[u8::try_from(number).unwrap_or_default()]);
            self.protocol = Some(protocol);
        }
    }

    fn load_port(&mut self, protocol: Protocol, side: Side) {
        self.speaks(protocol);
        let offset = match side {
            Side::Source => 0,
            Side::Destination => 2,
        };
        self.payload(Header::Transport, offset, 2);
    }

    fn load_address(&mut self, side: Side) {
        let (offset, length) = match (self.family, side) {
            (Family::Ip, Side::Source) => (12, 4),
            (Family::Ip, Side::Destination) => (16, 4),
            (Family::Ip6, Side::Source) => (8, 16),
            (Family::Ip6, Side::Destination) => (24, 16),
        };
        self.payload(Header::Network, offset, length);
    }

    fn payload(&mut self, header: Header, offset: u32, length: u32) {
        let loaded = Attributes::new()
            .number(1, REGISTER)
            .number(2, header as u32)
            .number(3, offset)
            .number(4, length);
        self.push("payload", &loaded);
    }

    fn address(&mut self, side: Side, is: Is, range: &IpNet) {
        self.load_address(side);
        if range.prefix_len() < range.max_prefix_len() {
            self.mask(&octets(range.netmask()));
        }
        self.compare(is, &octets(range.network()));
    }

    fn lookup(&mut self, is: Is, set: &str) {
        let looked_up = Attributes::new().text(1, set).number(2, REGISTER).number(4, (self.set_id)(set));
        // `NFT_LOOKUP_F_INV`, since 4.7.
        let looked_up = if is == Is::Not { looked_up.number(5, 1) } else { looked_up };
        self.push("lookup", &looked_up);
    }

    fn set_register(&mut self, value: &[u8]) {
        self.push("immediate", &Attributes::new().number(1, REGISTER).nested(2, &value_of(value)));
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) {
        let mut verdict = Attributes::new().bytes(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            verdict = verdict.text(2, chain);
        }
        let verdict = Attributes::new().nested(2, &verdict);
        self.push("immediate", &Attributes::new().number(1, VERDICT).nested(2, &verdict));
    }
}

impl Way {
    const fn of(self, [arriving, leaving]: [u32; 2]) -> u32 {
        match self {
            Self::In => arriving,
            Self::Out => leaving,
        }
    }
}

/// `NFTA_DATA_VALUE`.
pub(super) fn value_of(value: &[u8]) -> Attributes {
    Attributes::new().bytes(1, value)
}

/// An address as it is on the wire.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().into(),
        IpAddr::V6(v6) => v6.octets().into(),
    }
}

/// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
pub(super) const fn family_number(family: Family) -> u8 {
    match family {
        Family::Ip => 2,
        Family::Ip6 => 10,
    }
}
