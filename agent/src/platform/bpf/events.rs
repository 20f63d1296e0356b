//! The ring buffer of decisions, as a stream.
//!
//! Owns: reading it. It has one reader position in the kernel, so the agent is the one reader and hands
//! copies to whoever watches. Never does: read while nobody watches; then nothing is written either.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use veer_common::event::Event;
use zerocopy::FromBytes;

use super::BpfError;
use super::maps::open_events;
use super::pins::Pins;

/// The stream of decisions.
pub struct Events {
    ring: AsyncFd<Ring>,
}

struct Ring(RingBuf<MapData>);

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Events {
    /// Opens the ring buffer; needs a runtime.
    ///
    /// # Errors
    /// If it is not there.
    #[expect(unsafe_code, reason = "tokio cannot see that the ring keeps its descriptor")]
    pub fn open(pins: &Pins) -> Result<Self, BpfError> {
        let ring = Ring(open_events(pins)?);
        let path = pins.map(veer_common::maps::name::EVENTS);
        // SAFETY: the ring owns its descriptor and neither replaces nor closes it while it lives here.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| BpfError::Pin { attempt: "wait on", path, source: error.into() })?;
        Ok(Self { ring })
    }

    /// Waits until there are events and takes all of them, in order.
    ///
    /// # Errors
    /// As the system says.
    pub async fn next(&mut self) -> io::Result<Vec<Event>> {
        loop {
            let mut ready = self.ring.readable_mut().await?;
            let ring = ready.get_inner_mut();
            let mut events = Vec::new();
            while let Some(item) = ring.0.next() {
                // Another length would be another ABI, whose pins are elsewhere.
                events.extend(Event::read_from_bytes(&item).ok());
            }
            ready.clear_ready();
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}
