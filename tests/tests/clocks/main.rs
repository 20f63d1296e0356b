//! Clocks: what the agent and the plugin wait for does not depend on the wall clock.
//!
//! The tests set the machine's. So they are there in a machine of their own alone (`cargo xtask vm --only clocks`), which
//! is built with the feature `own-machine`. What the clocks of the boot do, a time namespace shows in the fault suite.

#![cfg_attr(
    feature = "own-machine",
    expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")
)]

#[cfg(feature = "own-machine")]
mod jumps;
