//! What the UDP hooks read and write beyond what the others do: the source of a message, and the
//! family of its socket.

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use veer_common::address::Address;

use super::{AF_INET6, Sock, SockAddr, load, store};

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(bpf_sock, family) == 4);
    assert!(offset_of!(bpf_sock_addr, msg_src_ip4) == 40);
    assert!(offset_of!(bpf_sock_addr, msg_src_ip6) == 44);
};

impl SockAddr {
    /// The source of a message that sendmsg4 sees: what the socket is bound to, or what the sender has asked
    /// for with `IP_PKTINFO`; 0.0.0.0 for neither.
    #[inline(always)]
    pub fn message_source_v4(self) -> Address {
        Address::v4(load::<40>(self.0.cast()).to_ne_bytes())
    }

    /// The same for sendmsg6.
    #[inline(always)]
    pub fn message_source_v6(self) -> Address {
        Address::from_words([
            load::<44>(self.0.cast()),
            load::<48>(self.0.cast()),
            load::<52>(self.0.cast()),
            load::<56>(self.0.cast()),
        ])
    }

    /// Sets the source of a message in sendmsg4. The kernel does not ask whose address it is.
    #[inline(always)]
    pub fn set_message_source_v4(self, address: &Address) {
        store::<40>(self.0.cast(), u32::from_ne_bytes(address.v4_octets()));
    }

    /// The same for sendmsg6.
    #[inline(always)]
    pub fn set_message_source_v6(self, address: &Address) {
        let [a, b, c, d] = address.words();
        store::<44>(self.0.cast(), a);
        store::<48>(self.0.cast(), b);
        store::<52>(self.0.cast(), c);
        store::<56>(self.0.cast(), d);
    }
}

impl Sock {
    /// Whether it is an `AF_INET6` socket, whatever the family of the address that it is used with.
    #[inline(always)]
    pub fn is_v6(self) -> bool {
        load::<4>(self.0.cast()) == AF_INET6
    }
}
