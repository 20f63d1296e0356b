//! The one wait of the commands that is for time and not for an event.

use std::time::Duration;

/// Waits.
#[expect(
    clippy::disallowed_methods,
    reason = "nothing tells a pod that it has been enrolled, nor anybody that a proxy has asked what it wanted to know"
)]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}
