//! What state a socket is in, and its mark.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_setsockopt;

use super::{Sock, SockAddr, load};

/// `TCP_ESTABLISHED`, which is also what a connected UDP socket is in.
const ESTABLISHED: u32 = 1;
/// `TCP_LISTEN`.
const LISTEN: u32 = 10;

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(bpf_sock, mark) == 16 && offset_of!(bpf_sock, state) == 72);
};

impl Sock {
    /// `SO_MARK`.
    #[inline(always)]
    pub fn mark(self) -> u32 {
        load::<16>(self.pointer())
    }

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

impl SockAddr {
    /// Sets `SO_MARK`; connect hooks only (Linux 5.8).
    #[inline(always)]
    pub fn set_mark(self, mark: u32) -> bool {
        let mut value = mark;
        let value = core::ptr::from_mut(&mut value).cast();
        // SAFETY: the context is live, the value is four bytes on our stack; the kernel copies it.
        unsafe { bpf_setsockopt(self.0.cast(), SOL_SOCKET, SO_MARK, value, 4) == 0 }
    }
}

/// `SOL_SOCKET` and `SO_MARK`, as most architectures number them (`include/uapi/asm-generic/socket.h`).
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
