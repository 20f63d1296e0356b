//! A ruleset as one transaction.

use std::net::IpAddr;

use super::expression::{COUNTER, LIST_ELEMENT, expressions, family_number, octets, value_of};
use super::message::{APPEND, Attributes, CREATE, Head, Messages};
use super::read::Counted;
use crate::capture::nft::{Chain, Elements, Family, Interval, Ruleset, Set, TABLE, Table};

/// `NFT_MSG_*`.
mod new {
    pub(super) const TABLE: u16 = 0;
    pub(super) const CHAIN: u16 = 3;
    pub(super) const RULE: u16 = 6;
    pub(super) const SET: u16 = 9;
    pub(super) const ELEMENTS: u16 = 12;
    pub(super) const OBJECT: u16 = 18;
}

/// `NFT_MSG_DELTABLE`.
const DELETE_TABLE: u16 = 2;
/// `NFT_SET_INTERVAL`.
const INTERVAL: u32 = 4;
/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;
/// Elements of one message: an attribute has 65,535 bytes at the most.
const ELEMENTS_AT_ONCE: usize = 1000;

/// What brings `ruleset` into a netns, in place of whatever is there of ours, with the counts that were there.
pub(super) fn apply(ruleset: &Ruleset, counted: &[Counted]) -> Messages {
    let mut messages = Messages::begin();
    for family in [Family::Ip, Family::Ip6] {
        // A family that is not to have a table may have had one.
        let table = ruleset.tables.iter().find(|table| table.family == family);
        let had_one = counted.iter().any(|counted| counted.family == family);
        if table.is_some() || had_one {
            delete(&mut messages, family);
        }
        if let Some(table) = table {
            add_table(&mut messages, table, counted);
        }
    }
    messages.end()
}

/// What takes our tables of these families away.
pub(super) fn remove(families: &[Family]) -> Messages {
    let mut messages = Messages::begin();
    for family in families {
        delete(&mut messages, *family);
    }
    messages.end()
}

/// A table that is not there cannot be deleted, so it is made first.
fn delete(messages: &mut Messages, family: Family) {
    let name = Attributes::new().text(1, TABLE);
    let part = |what: &str| format!("{what} table {} {TABLE}", family.name());
    let head = |kind, flags| Head { kind, flags, family: family_number(family) };
    messages.add(head(new::TABLE, CREATE), part("the making of"), &name);
    messages.add(head(DELETE_TABLE, 0), part("the removal of"), &name);
}

fn add_table(messages: &mut Messages, table: &Table, counted: &[Counted]) {
    let family = table.family;
    let part = |what: &str| format!("{what} of table {} {TABLE}", family.name());
    let head = |kind, flags| Head { kind, flags: flags | CREATE, family: family_number(family) };
    let own_name = || Attributes::new().text(1, TABLE);
    messages.add(head(new::TABLE, 0), format!("table {} {TABLE}", family.name()), &own_name());
    for reason in &table.counters {
        let before = counted.iter().find(|counted| counted.family == family && counted.name == reason.name());
        let (packets, bytes) = before.map_or((0, 0), |counted| (counted.packets, counted.bytes));
        let value = Attributes::new().bytes(1, &bytes.to_be_bytes()).bytes(2, &packets.to_be_bytes());
        let counter = own_name().text(2, reason.name()).number(3, COUNTER).nested(4, &value);
        messages.add(head(new::OBJECT, 0), part(&format!("counter {}", reason.name())), &counter);
    }
    let id =
        |name: &str| table.sets.iter().position(|set| set.name == name).map_or(0, |index| number(index + 1));
    for set in &table.sets {
        let what = part(&format!("set {}", set.name));
        messages.add(head(new::SET, 0), what.clone(), &set_attributes(set, id(set.name)));
        let elements = elements(&set.elements);
        for chunk in elements.chunks(ELEMENTS_AT_ONCE) {
            let list =
                chunk.iter().fold(Attributes::new(), |list, element| list.nested(LIST_ELEMENT, element));
            let attributes = own_name().text(2, set.name).nested(3, &list).number(4, id(set.name));
            messages.add(head(new::ELEMENTS, 0), what.clone(), &attributes);
        }
    }
    for chain in &table.chains {
        messages.add(head(new::CHAIN, 0), part(&format!("chain {}", chain.name)), &chain_attributes(chain));
    }
    for chain in &table.chains {
        for (index, rule) in chain.rules.iter().enumerate() {
            let what = part(&format!("rule {} in chain {}", index + 1, chain.name));
            let expressions = expressions(rule, family, &id);
            let attributes = own_name().text(2, chain.name).nested(4, &expressions);
            messages.add(head(new::RULE, APPEND), what, &attributes);
        }
    }
}

fn chain_attributes(chain: &Chain) -> Attributes {
    let named = Attributes::new().text(1, TABLE).text(3, chain.name);
    let Some(base) = chain.base else { return named };
    let hook = Attributes::new().number(1, base.hook as u32).bytes(2, &base.priority.to_be_bytes());
    // Policy accept.
    named.nested(4, &hook).number(5, 1).text(7, base.kind.name())
}

fn set_attributes(set: &Set, id: u32) -> Attributes {
    // The numbers of the types are those of the nft program, which shows them by their names; to the kernel they
    // mean nothing.
    let (kind, length, flags) = match set.elements {
        Elements::Ports(_) => (13, 2, INTERVAL),
        Elements::V4(_) => (7, 4, INTERVAL),
        Elements::V6(_) => (8, 16, INTERVAL),
        Elements::Groups(_) => (25, 4, 0),
    };
    let attributes = Attributes::new()
        .text(1, TABLE)
        .text(2, set.name)
        .number(3, flags)
        .number(4, kind)
        .number(5, length)
        .number(10, id);
    if flags & INTERVAL != 0 {
        return attributes;
    }
    // To the nft program, too: the keys are in the host's order.
    let [a, b, c, d] = 1_u32.to_ne_bytes();
    attributes.bytes(13, &[0, 4, a, b, c, d])
}

fn elements(elements: &Elements) -> Vec<Attributes> {
    match elements {
        Elements::Ports(ports) => {
            ports.iter().flat_map(|ports| ends(ports, |p| p.to_be_bytes().into())).collect()
        }
        Elements::V4(ranges) => {
            ranges.iter().flat_map(|range| ends(range, |v4| octets(IpAddr::V4(v4)))).collect()
        }
        Elements::V6(ranges) => {
            ranges.iter().flat_map(|range| ends(range, |v6| octets(IpAddr::V6(v6)))).collect()
        }
        Elements::Groups(groups) => groups.iter().map(|group| element(&group.to_ne_bytes(), None)).collect(),
    }
}

/// An interval is where it begins and where it ends, which is the first that is not in it; one that goes on for
/// ever has no end.
fn ends<T: Copy>(interval: &Interval<T>, bytes: impl Fn(T) -> Vec<u8>) -> Vec<Attributes> {
    let mut ends = vec![element(&bytes(interval.first), None)];
    ends.extend(after(bytes(interval.last)).map(|end| element(&end, Some(INTERVAL_END))));
    ends
}

/// The number that follows, of as many bytes in network order.
fn after(mut number: Vec<u8>) -> Option<Vec<u8>> {
    for byte in number.iter_mut().rev() {
        let (next, carried) = byte.overflowing_add(1);
        *byte = next;
        if !carried {
            return Some(number);
        }
    }
    None
}

fn element(key: &[u8], flags: Option<u32>) -> Attributes {
    let key = Attributes::new().nested(1, &value_of(key));
    match flags {
        Some(flags) => key.number(3, flags),
        None => key,
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_ends_before_the_number_after_its_last() {
        assert_eq!(after(vec![0, 255]), Some(vec![1, 0]));
        assert_eq!(after(vec![10, 255, 255, 255]), Some(vec![11, 0, 0, 0]));
        assert_eq!(after(vec![255; 16]), None);
    }
}
