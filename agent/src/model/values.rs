//! The values that annotations are made of, as types that cannot be wrong.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A TCP or UDP port. Zero is one, too: Istio takes it in lists, where it never matches anything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Port(u16);

/// A network interface's name as Istio takes it: at most 15 bytes, a letter first, then letters,
/// digits, `_`, `.` and `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

impl Port {
    /// From a number.
    pub const fn new(port: u16) -> Self {
        Self(port)
    }

    /// As a number.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// From decimal digits alone: no sign, no space, nothing that only some parsers take.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits { text.parse().ok().map(Self) } else { None }
    }
}

impl From<Port> for veer_common::address::Port {
    fn from(port: Port) -> Self {
        Self::new(port.0)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl InterfaceName {
    /// Longest name that the kernel takes.
    pub const MAX_BYTES: usize = 15;

    /// A name, if it is one.
    pub fn parse(text: &str) -> Option<Self> {
        let first_is_letter = text.starts_with(|c: char| c.is_ascii_alphabetic());
        let all_allowed =
            text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
        let valid = first_is_letter && all_allowed && text.len() <= Self::MAX_BYTES;
        valid.then(|| Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is no interface name"))
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_digits_up_to_65535() {
        for (text, port) in [("0", 0), ("1", 1), ("15001", 15001), ("65535", 65535), ("0080", 80)] {
            assert_eq!(Port::parse(text), Some(Port::new(port)), "{text}");
        }
        for text in ["", " 80", "+80", "-1", "65536", "8_0", "0x50", "80a", "*", "٨٠", "99999999999999999999"]
        {
            assert_eq!(Port::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_interface_name_is_short_and_begins_with_a_letter() {
        for text in ["eth0", "a", "Net1.100", "tun-0_x", "abcdefghijklmno"] {
            assert_eq!(InterfaceName::parse(text).unwrap().as_str(), text);
        }
        for text in ["", "0eth", "-eth", "_x", ".x", "eth 0", "eth/0", "eth0;", "abcdefghijklmnop", "éth0"] {
            assert_eq!(InterfaceName::parse(text), None, "{text}");
        }
    }
}
