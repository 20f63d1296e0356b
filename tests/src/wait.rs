//! Waiting for the world, always with a limit: the one place that sleeps.

use std::fmt::Debug;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

/// How long to wait for something that takes milliseconds on an idle machine.
pub const LIMIT: Duration = Duration::from_secs(20);

const PAUSE: Duration = Duration::from_millis(2);

/// A limit, as long as this machine needs it: an emulated one is up to fifty times slower than a real one, and says
/// so by `VEER_SLOWNESS`, a factor.
pub fn scaled(limit: Duration) -> Duration {
    static SLOWNESS: OnceLock<u32> = OnceLock::new();
    let told = || std::env::var("VEER_SLOWNESS").ok()?.parse().ok();
    limit * *SLOWNESS.get_or_init(|| told().unwrap_or(1))
}

/// Waits until `condition` holds, for at most `limit`, [`scaled`].
///
/// # Errors
/// When `limit` has passed; `what` says what was waited for.
pub fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    until_some(what, limit, || condition().then_some(()))
}

/// Waits until `attempt` has a value.
///
/// # Errors
/// When `limit` has passed; `what` says what was waited for.
pub fn until_some<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + scaled(limit);
    loop {
        if let Some(value) = attempt() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {:?} for {what}", scaled(limit));
        }
        #[expect(clippy::disallowed_methods, reason = "the bounded wait that everything else uses")]
        thread::sleep(scaled(PAUSE));
    }
}

/// Waits until `attempt` succeeds.
///
/// # Errors
/// When `limit` has passed: the last error, and what was waited for.
pub fn until_ok<T, E: Debug>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T> {
    let mut last = None;
    until_some(what, limit, || attempt().map_err(|error| last = Some(error)).ok())
        .map_err(|late| anyhow!("{late}; the last attempt said {last:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_in_vain_names_what_was_waited_for() {
        let error = until("rain", Duration::from_millis(5), || false).unwrap_err();
        assert_eq!(error.to_string(), "waited 5ms for rain");
        let error = until_ok("rain", Duration::from_millis(5), || Err::<(), _>("dry")).unwrap_err();
        assert!(error.to_string().contains("\"dry\""), "{error}");
    }

    #[test]
    fn a_condition_that_holds_later_is_seen() {
        let mut attempts = 0;
        let value = until_some("the third attempt", LIMIT, || {
            attempts += 1;
            (attempts == 3).then_some(attempts)
        });
        assert_eq!(value.unwrap(), 3);
    }
}
