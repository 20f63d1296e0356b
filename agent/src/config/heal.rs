//! How what is lost or was missed is found again.
//!
//! Owns: the accepted forms. Never does: stop at the first error. Called by: `config`.

use std::path::PathBuf;
use std::time::Duration;

use super::{ABSOLUTE, ConfigError, Setting};
use crate::cli::HealFlags;

const CNI_CACHE: Setting = Setting("--cni-cache", "VEER_CNI_CACHE", ABSOLUTE);
const INTERVAL: Setting =
    Setting("--reconcile-interval", "VEER_RECONCILE_INTERVAL", "a number of seconds, 1-86400");

/// How what is lost or was missed is found again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealConfig {
    /// Where the runtime keeps what it knows of attachments.
    pub cni_cache: PathBuf,
    /// Time between full passes.
    pub interval: Duration,
}

/// Parses the flags.
pub(super) fn parse(flags: &HealFlags, errors: &mut Vec<ConfigError>) -> HealConfig {
    let cni_cache = PathBuf::from(&flags.cni_cache);
    if !cni_cache.is_absolute() {
        errors.push(CNI_CACHE.invalid(&flags.cni_cache));
    }
    let seconds =
        flags.reconcile_interval.trim().parse().ok().filter(|seconds| (1..=86_400).contains(seconds));
    if seconds.is_none() {
        errors.push(INTERVAL.invalid(&flags.reconcile_interval));
    }
    HealConfig { cni_cache, interval: Duration::from_secs(seconds.unwrap_or(1)) }
}
