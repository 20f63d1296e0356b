//! nf_tables of the netns that the calling thread is in: a ruleset goes in and out whole, by netlink.
//!
//! Owns: the messages of nf_tables ([`apply`], [`remove`]), what the kernel says to them ([`NftError`]), and reading
//! back ([`counters`], [`present`], [`chains`]). Never does: decide on a rule; `capture::nft` does. Never starts a
//! process. Called by: `enrol`, `probe` and the commands, on the netns thread.
//!
//! The form of the messages, and every number without a name here, is the kernel's
//! (`include/uapi/linux/netfilter/nf_tables.h`); no maintained crate has it without C or a copyleft licence.

mod encode;
mod expression;
mod message;
mod read;
mod transaction;

use std::io;

use crate::capture::nft::{Family, Ruleset};

pub use self::read::{Counted, by_reason, chains, counters, present};

/// Why nf_tables is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The kernel refuses a part of a transaction, and so all of it.
    #[error("nftables: the kernel refuses {part}: {source}{}{}", in_words(.said.as_deref()), way_out(.source))]
    Refused {
        /// Which part.
        part: String,
        /// Why.
        source: io::Error,
        /// What it says in words, if it does.
        said: Option<String>,
    },
    /// The kernel cannot be asked.
    #[error("nftables: {attempt}: {source}{}", way_out(.source))]
    Netlink {
        /// What was tried.
        attempt: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Brings a ruleset into the netns in one transaction, in place of whatever is there of ours. Counts stay.
///
/// # Errors
/// Whatever the kernel refuses; then nothing has changed.
pub fn apply(ruleset: &Ruleset) -> Result<(), NftError> {
    transaction::commit(&encode::apply(ruleset, &counters()?))
}

/// Takes our tables away; none is fine.
///
/// # Errors
/// As the kernel says.
pub fn remove() -> Result<(), NftError> {
    let families = present()?;
    if families.is_empty() { Ok(()) } else { transaction::commit(&encode::remove(&families)) }
}

/// Whether the kernel has the tables that a ruleset consists of, and no other of ours.
///
/// # Errors
/// As the kernel says.
pub fn has_tables_of(ruleset: &Ruleset) -> Result<bool, NftError> {
    let wanted: Vec<Family> = ruleset.tables.iter().map(|table| table.family).collect();
    Ok(present()? == wanted)
}

fn in_words(said: Option<&str>) -> String {
    said.map_or_else(String::new, |said| format!(" ({said})"))
}

/// What an errno of nf_tables means to whoever runs the node.
fn way_out(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
            "; does the kernel have nf_tables with nat, redirect and connection tracking for the family \
             (CONFIG_NF_TABLES, NFT_NAT, NFT_REDIR, NFT_CT; NFT_TPROXY from 4.19 for TPROXY pods), and may it load modules?"
        }
        Some(libc::EBUSY) => {
            "; before Linux 4.18 iptables and nftables cannot both do NAT in a netns: is there an istio-init?"
        }
        Some(libc::EPERM) => "; it takes CAP_NET_ADMIN in the pod's netns",
        _ => "",
    }
}
