//! The wall clock, for what people read: when a pod was enrolled, when a decision was made, how old a file is.
//!
//! It jumps: somebody sets it, or time synchronization does. So nothing waits by it, and nothing is decided by it that
//! a jump could break; for that there is [`std::time::Instant`]. Owns: all reading of it, which is a law. Called by: all that
//! shows a time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// Now, where a moment is kept to be told of later.
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// Seconds since the epoch; 0 before it.
pub(crate) fn seconds() -> u64 {
    since_epoch().as_secs()
}

/// Time since the epoch; none before it.
pub(crate) fn since_epoch() -> Duration {
    now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The time since the epoch of a moment that the kernel has stamped with CLOCK_MONOTONIC, in nanoseconds.
pub(crate) fn of_monotonic(nanoseconds: u64) -> Duration {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    let age = now.saturating_sub(Duration::from_nanos(nanoseconds));
    since_epoch().saturating_sub(age)
}

/// How long ago something was; `None` for what is to come, as after a jump back.
pub(crate) fn age_of(time: SystemTime) -> Option<Duration> {
    now().duration_since(time).ok()
}
