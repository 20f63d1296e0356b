//! How many listeners are registered, of which nobody keeps account: programs put them in, and the kernel takes them out
//! with their sockets.
//!
//! Owns: counting them when somebody asks, by the map's keys alone. Never does: hold up the node's thread: it has a
//! descriptor of its own. Called by: `admin`, when it is scraped.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use veer_common::maps::{ListenerKey, MAX_LISTENERS};

use super::maps::Maps;
use super::sys;

/// The map, for counting.
#[derive(Debug)]
pub struct Registered(OwnedFd);

impl Registered {
    /// # Errors
    /// If there is no descriptor left.
    pub fn of(maps: &Maps) -> io::Result<Self> {
        maps.listeners_fd().try_clone_to_owned().map(Self)
    }

    /// How many there are now: a question to the kernel for each of them, and never more than for a full map twice.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn count(&self) -> io::Result<u64> {
        let mut first = None;
        let mut key = [0; size_of::<ListenerKey>()];
        let mut count = 0;
        for step in 0..=MAX_LISTENERS.saturating_mul(2) {
            if !sys::next_key(self.0.as_fd(), step != 0, &mut key)? {
                break;
            }
            // After a listener that has gone since, the kernel begins anew.
            if *first.get_or_insert(key) == key {
                count = 0;
            }
            count += 1;
        }
        Ok(count)
    }
}
