//! Netlink messages and their attributes, as bytes.
//!
//! Owns: lengths, alignment and byte order. Numbers in a message's header and in an attribute's are in the host's
//! order, those that attributes of nf_tables hold in the network's.

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN`.
const BATCH_BEGIN: u16 = 0x10;
/// `NFNL_MSG_BATCH_END`.
const BATCH_END: u16 = 0x11;
/// Bytes of a message's header.
const HEADER: usize = 16;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `NLM_F_REQUEST`: every message is one.
const REQUEST: u16 = 1;
/// `NLM_F_DUMP`.
pub(super) const DUMP: u16 = 0x300;
/// `NLM_F_CREATE`.
pub(super) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub(super) const APPEND: u16 = 0x800;

/// Messages one behind the other.
#[derive(Debug, Default)]
pub(super) struct Messages {
    bytes: Vec<u8>,
    /// What each of them is about; its index is its sequence number.
    parts: Vec<String>,
}

/// The head of a message of nf_tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    /// What is to be done: `NFT_MSG_*`.
    pub(super) kind: u16,
    /// `NLM_F_*`.
    pub(super) flags: u16,
    /// `NFPROTO_*`.
    pub(super) family: u8,
}

impl Messages {
    /// The begin of a transaction.
    pub(super) fn begin() -> Self {
        let mut messages = Self::default();
        messages.boundary(BATCH_BEGIN, "the transaction");
        messages
    }

    /// One question.
    pub(super) fn question(head: Head, attributes: &Attributes) -> Self {
        let mut messages = Self::default();
        messages.add(head, String::new(), attributes);
        messages
    }

    /// Adds a message about `part`.
    pub(super) fn add(&mut self, head: Head, part: String, attributes: &Attributes) {
        self.push(SUBSYSTEM << 8 | head.kind, head.flags, [head.family, 0, 0, 0], part, &attributes.0);
    }

    /// The end of a transaction.
    pub(super) fn end(mut self) -> Self {
        self.boundary(BATCH_END, "the end of the transaction");
        self
    }

    /// All of it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the message with this number is about.
    pub(super) fn part(&self, sequence: u32) -> &str {
        let index = usize::try_from(sequence).unwrap_or(usize::MAX);
        self.parts.get(index).map_or("what it was not asked", String::as_str)
    }

    fn boundary(&mut self, kind: u16, part: &str) {
        let [high, low] = SUBSYSTEM.to_be_bytes();
        self.push(kind, 0, [0, 0, high, low], part.to_owned(), &[]);
    }

    fn push(&mut self, kind: u16, flags: u16, family: [u8; 4], part: String, attributes: &[u8]) {
        let length = u32::try_from(HEADER + family.len() + attributes.len()).unwrap_or(u32::MAX);
        let sequence = u32::try_from(self.parts.len()).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | REQUEST).to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(family);
        self.bytes.extend(attributes);
        self.parts.push(part);
    }
}

/// Attributes, of a message or within another one. All of it is aligned.
#[derive(Clone, Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    /// None.
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// With these bytes.
    pub(super) fn bytes(self, kind: u16, value: &[u8]) -> Self {
        self.raw(kind, value)
    }

    /// With a number.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.raw(kind, &value.to_be_bytes())
    }

    /// With a text, as C has it.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.raw(kind, &bytes)
    }

    /// With others inside.
    pub(super) fn nested(self, kind: u16, inside: &Self) -> Self {
        self.raw(kind | NESTED, &inside.0)
    }

    fn raw(mut self, kind: u16, value: &[u8]) -> Self {
        // Whoever makes a list that may be long cuts it up before.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_aligned_and_lengths_are_not() {
        let inside = Attributes::new().text(1, "lo").number(2, 0x0102_0304);
        let Attributes(bytes) = Attributes::new().nested(4, &inside);
        let mut expected = Vec::new();
        for part in [20_u16, 0x8004, 7, 1] {
            expected.extend(part.to_ne_bytes());
        }
        expected.extend(b"lo\0\0");
        expected.extend(8_u16.to_ne_bytes());
        expected.extend(2_u16.to_ne_bytes());
        expected.extend([1, 2, 3, 4]);
        assert_eq!(bytes, expected);
    }
}
