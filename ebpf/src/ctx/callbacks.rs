//! Which callbacks a sockops program asks for.

use aya_ebpf::helpers::generated::bpf_sock_ops_cb_flags_set;

use super::{SockOps, load};

/// `BPF_SOCK_OPS_STATE_CB_FLAG`
const STATE_CB_FLAG: u32 = 1 << 2;

impl SockOps {
    /// Asks for `STATE_CB`, and keeps what others have asked for.
    #[inline(always)]
    pub fn watch_state(self) {
        self.set_flags(load::<84>(self.0.cast()) | STATE_CB_FLAG);
    }

    /// Does not ask for it any more: what a listener has asked for, the sockets that it accepts inherit.
    #[inline(always)]
    pub fn watch_state_no_more(self) {
        self.set_flags(load::<84>(self.0.cast()) & !STATE_CB_FLAG);
    }

    #[inline(always)]
    fn set_flags(self, flags: u32) {
        // SAFETY: the context is live; the flags are of the kernel's own set. It cannot fail for a full
        // socket, and without the callback only a hand-off entry outlives its aborted connection.
        let _ = unsafe { bpf_sock_ops_cb_flags_set(self.0, flags.cast_signed()) };
    }
}
