//! What state a socket is in.

use aya_ebpf::bindings::bpf_sock;

use super::{Sock, load};

/// `TCP_ESTABLISHED`, which is also what a connected UDP socket is in.
const ESTABLISHED: u32 = 1;
/// `TCP_LISTEN`.
const LISTEN: u32 = 10;

const _: () = assert!(core::mem::offset_of!(bpf_sock, state) == 72);

impl Sock {
    /// Whether a UDP socket is connected.
    #[inline(always)]
    pub fn is_connected(self) -> bool {
        load::<72>(self.0.cast()) == ESTABLISHED
    }

    /// Whether it listens. A listener after shutdown() does not, and keeps its place in a map until it is closed.
    #[inline(always)]
    pub fn is_listening(self) -> bool {
        load::<72>(self.0.cast()) == LISTEN
    }
}
