//! The one wait that is for time and not for an event: of the commands, and for the kernel's memory.

use std::time::Duration;

/// Waits.
#[expect(
    clippy::disallowed_methods,
    reason = "nothing tells a pod that it has been enrolled, nor anybody that a proxy has asked what it wanted to know, or \
              that a map has memory again"
)]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}
