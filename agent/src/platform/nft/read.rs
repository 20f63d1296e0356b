//! What is in the kernel of ours.

use std::io;

use netlink_packet_core::NlasIterator;
use veer_common::maps::Counters;
use veer_common::reason::{COUNTERS, Reason};

use super::NftError;
use super::expression::{COUNTER, family_number};
use super::message::{Attributes, DUMP, Head, Messages};
use super::transaction;
use crate::capture::nft::{Family, TABLE};
use crate::doctor::facts::Chain;

/// `NFT_MSG_GETTABLE` and `NFT_MSG_GETOBJ`.
const GET_TABLE: u16 = 1;
const GET_OBJECT: u16 = 19;
/// `NFT_MSG_GETCHAIN`.
const GET_CHAIN: u16 = 4;

/// A counter as it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counted {
    /// The family of its table.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// What it has counted.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What was counted in both families, by the reasons whose names the counters have.
pub fn by_reason(counted: &[Counted]) -> Counters {
    let mut sums = [0; COUNTERS];
    for reason in Reason::ALL {
        let of_reason = counted.iter().filter(|counted| counted.name == reason.name());
        if let Some(sum) = sums.get_mut(reason as usize) {
            *sum = of_reason.map(|counted| counted.packets).sum();
        }
    }
    Counters(sums)
}

/// The families that have a table of ours.
///
/// # Errors
/// As the kernel says.
pub fn present() -> Result<Vec<Family>, NftError> {
    let mut found = Vec::new();
    for family in [Family::Ip, Family::Ip6] {
        let head = Head { kind: GET_TABLE, flags: DUMP, family: family_number(family) };
        let mut is_there = false;
        transaction::ask(&Messages::question(head, &Attributes::new()), |answer| {
            is_there |= text(answer, 1).as_deref() == Some(TABLE);
        })?;
        if is_there {
            found.push(family);
        }
    }
    Ok(found)
}

/// Our counters.
///
/// # Errors
/// As the kernel says.
pub fn counters() -> Result<Vec<Counted>, NftError> {
    let mut counters = Vec::new();
    for family in [Family::Ip, Family::Ip6] {
        let head = Head { kind: GET_OBJECT, flags: DUMP, family: family_number(family) };
        let of_ours = Attributes::new().text(1, TABLE).number(3, COUNTER);
        transaction::ask(&Messages::question(head, &of_ours), |answer| {
            // Kernels before 4.14 answer with those of other tables, too.
            if text(answer, 1).as_deref() == Some(TABLE) {
                counters.extend(counted(answer, family));
            }
        })?;
    }
    Ok(counters)
}

/// The chains of all tables of all families, whoever made them: iptables that writes nf_tables, too. A kernel
/// without nf_tables has none.
///
/// # Errors
/// As the kernel says.
pub fn chains() -> Result<Vec<Chain>, NftError> {
    /// `NFPROTO_UNSPEC`: of all families.
    const ALL: u8 = 0;
    let head = Head { kind: GET_CHAIN, flags: DUMP, family: ALL };
    let mut chains = Vec::new();
    let asked = transaction::ask(&Messages::question(head, &Attributes::new()), |answer| {
        let names = text(answer, 1).zip(text(answer, 3));
        chains.extend(names.map(|(table, name)| Chain { table, name }));
    });
    match asked {
        Err(NftError::Netlink { source, .. }) if is_absent(&source) => Ok(Vec::new()),
        other => other.map(|()| chains),
    }
}

/// EOPNOTSUPP and EINVAL come from nfnetlink without nf_tables, EPROTONOSUPPORT from a kernel without nfnetlink.
fn is_absent(error: &io::Error) -> bool {
    let absent = [libc::EOPNOTSUPP, libc::EINVAL, libc::EPROTONOSUPPORT];
    absent.into_iter().any(|errno| error.raw_os_error() == Some(errno))
}

fn counted(answer: &[u8], family: Family) -> Option<Counted> {
    let value = attribute(answer, 4)?;
    let number = |kind| Some(u64::from_be_bytes(*attribute(value, kind)?.first_chunk()?));
    Some(Counted { family, name: text(answer, 2)?, bytes: number(1)?, packets: number(2)? })
}

fn attribute(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut rest = attributes;
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute.ok()?;
        let length = 4 + attribute.value_length();
        if attribute.kind() == kind {
            return rest.get(4..length);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

fn text(attributes: &[u8], kind: u16) -> Option<String> {
    let text = attribute(attributes, kind)?.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}
