//! Every access to a kernel context, bounded and aligned.
//!
//! Owns: the fields of `bpf_sock_addr`, `bpf_sock_ops`, `bpf_sockopt`, `bpf_sk_lookup` and `bpf_sock` as
//! functions. Offsets are those of `include/uapi/linux/bpf.h`, which never change.
//! Never does: interpret what it reads, beyond byte order.
//!
//! Fields are read and written by inline assembly with constant offsets: LLVM merges neighbouring
//! stores and computes addresses into the context, and the verifier refuses both ("dereference of
//! modified ctx ptr").

#![expect(unsafe_code, reason = "kernel contexts are raw pointers; this is the room where they are read")]

mod callbacks;
mod current;
mod message;
mod state;

use core::ffi::c_void;

use aya_ebpf::bindings::{bpf_sk_lookup, bpf_sock, bpf_sock_addr, bpf_sock_ops, bpf_sockopt};
use aya_ebpf::helpers::generated::{bpf_bind, bpf_get_netns_cookie};
use veer_common::address::{Address, Port};
use veer_common::maps::NetnsCookie;

pub use self::current::{current_cgroup, current_uid_gid, monotonic_ns};

/// `AF_INET`.
pub const AF_INET: u32 = 2;
/// `AF_INET6`.
pub const AF_INET6: u32 = 10;
/// `IPPROTO_TCP`; MPTCP's subflows say the same.
pub const IPPROTO_TCP: u32 = 6;
/// `IPPROTO_UDP`.
pub const IPPROTO_UDP: u32 = 17;
/// `IPPROTO_UDPLITE`.
pub const IPPROTO_UDPLITE: u32 = 136;

/// The offsets below, checked against the kernel's own header.
const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(bpf_sock_addr, user_port) == 24 && offset_of!(bpf_sock_addr, protocol) == 36);
    assert!(offset_of!(bpf_sock, protocol) == 12 && offset_of!(bpf_sock, src_ip4) == 24);
    assert!(offset_of!(bpf_sock, src_ip6) == 28 && offset_of!(bpf_sock, src_port) == 44);
    assert!(offset_of!(bpf_sock_ops, family) == 20 && offset_of!(bpf_sock_ops, remote_ip4) == 24);
    assert!(offset_of!(bpf_sock_ops, local_ip4) == 28 && offset_of!(bpf_sock_ops, remote_ip6) == 32);
    assert!(offset_of!(bpf_sock_ops, local_ip6) == 48 && offset_of!(bpf_sock_ops, remote_port) == 64);
    assert!(offset_of!(bpf_sock_ops, local_port) == 68);
    assert!(offset_of!(bpf_sock_ops, bpf_sock_ops_cb_flags) == 84);
    assert!(offset_of!(bpf_sock_ops, __bindgen_anon_2) == 184);
    assert!(offset_of!(bpf_sockopt, level) == 24 && offset_of!(bpf_sockopt, retval) == 36);
    assert!(offset_of!(bpf_sk_lookup, protocol) == 12 && offset_of!(bpf_sk_lookup, remote_ip6) == 20);
    assert!(offset_of!(bpf_sk_lookup, remote_port) == 36 && offset_of!(bpf_sk_lookup, local_ip4) == 40);
    assert!(offset_of!(bpf_sk_lookup, local_ip6) == 44 && offset_of!(bpf_sk_lookup, local_port) == 60);
    assert!(offset_of!(bpf_sk_lookup, ingress_ifindex) == 64);
};

/// Reads 4 bytes at `OFFSET` of a context.
#[inline(always)]
fn load<const OFFSET: i16>(context: *const c_void) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let value: u64;
        // SAFETY: callers pass a live context of the type whose field is at OFFSET; the verifier checks it.
        unsafe {
            core::arch::asm!("{v} = *(u32 *)({p} + {o})", v = out(reg) value, p = in(reg) context, o = const OFFSET);
        }
        value as u32
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        let _ = context;
        0
    }
}

/// Reads 8 bytes at `OFFSET` of a context: the kernel's pointers to sockets and buffers.
#[inline(always)]
fn load_pointer<const OFFSET: i16>(context: *const c_void) -> *mut c_void {
    #[cfg(target_arch = "bpf")]
    {
        let value: *mut c_void;
        // SAFETY: as for `load`.
        unsafe {
            core::arch::asm!("{v} = *(u64 *)({p} + {o})", v = out(reg) value, p = in(reg) context, o = const OFFSET);
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        let _ = context;
        core::ptr::null_mut()
    }
}

/// Writes 4 bytes at `OFFSET` of a context.
#[inline(always)]
fn store<const OFFSET: i16>(context: *mut c_void, value: u32) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: as for `load`; the verifier refuses fields that may not be written.
    unsafe {
        core::arch::asm!("*(u32 *)({p} + {o}) = {v}", v = in(reg) u64::from(value), p = in(reg) context, o = const OFFSET);
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        let _ = (context, value);
    }
}

/// A macro, because const generics cannot add: four words from `$offset` as an address.
macro_rules! address_at {
    ($context:expr, $offset:literal) => {
        Address::from_words([
            load::<$offset>($context),
            load::<{ $offset + 4 }>($context),
            load::<{ $offset + 8 }>($context),
            load::<{ $offset + 12 }>($context),
        ])
    };
}

/// Context of the bind, connect, sendmsg, recvmsg and getpeername hooks.
#[derive(Clone, Copy)]
pub struct SockAddr(*mut bpf_sock_addr);

impl SockAddr {
    /// From the kernel's pointer.
    #[inline(always)]
    pub const fn new(context: *mut bpf_sock_addr) -> Self {
        Self(context)
    }

    /// The netns that the socket belongs to.
    #[inline(always)]
    pub fn netns_cookie(self) -> NetnsCookie {
        // SAFETY: the context is live for the whole program.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    /// IPPROTO_*.
    #[inline(always)]
    pub fn protocol(self) -> u32 {
        load::<36>(self.0.cast())
    }

    /// The socket, for storage.
    #[inline(always)]
    pub fn socket(self) -> *mut c_void {
        load_pointer::<64>(self.0.cast())
    }

    /// The address in the context of a v4 hook.
    #[inline(always)]
    pub fn address_v4(self) -> Address {
        Address::v4(load::<4>(self.0.cast()).to_ne_bytes())
    }

    /// The address in the context of a v6 hook.
    #[inline(always)]
    pub fn address_v6(self) -> Address {
        address_at!(self.0.cast(), 8)
    }

    /// The port in the context.
    #[inline(always)]
    pub fn port(self) -> Port {
        let [high, low, ..] = load::<24>(self.0.cast()).to_ne_bytes();
        Port([high, low])
    }

    /// Sets the address in the context of a v4 hook.
    #[inline(always)]
    pub fn set_address_v4(self, address: &Address) {
        store::<4>(self.0.cast(), u32::from_ne_bytes(address.v4_octets()));
    }

    /// Sets the address in the context of a v6 hook.
    #[inline(always)]
    pub fn set_address_v6(self, address: &Address) {
        let [a, b, c, d] = address.words();
        store::<8>(self.0.cast(), a);
        store::<12>(self.0.cast(), b);
        store::<16>(self.0.cast(), c);
        store::<20>(self.0.cast(), d);
    }

    /// Sets the port in the context.
    #[inline(always)]
    pub fn set_port(self, port: Port) {
        let [high, low] = port.0;
        store::<24>(self.0.cast(), u32::from_ne_bytes([high, low, 0, 0]));
    }

    /// Binds the socket to an address and any port; connect hooks only. `v6` is the socket's family, not
    /// the address's: an `AF_INET6` socket takes an IPv4 address in its mapped form.
    #[inline(always)]
    pub fn bind(self, address: &Address, v6: bool) -> bool {
        let result = if v6 {
            let [a, b, c, d] = address.words();
            let mut sockaddr = [AF_INET6, 0, a, b, c, d, 0];
            // SAFETY: a sockaddr_in6 of 28 bytes on our stack; the kernel copies it.
            unsafe { bpf_bind(self.0, sockaddr.as_mut_ptr().cast(), 28) }
        } else {
            let [_, _, _, v4] = address.words();
            let mut sockaddr = [AF_INET, v4, 0, 0];
            // SAFETY: a sockaddr_in of 16 bytes on our stack; the kernel copies it.
            unsafe { bpf_bind(self.0, sockaddr.as_mut_ptr().cast(), 16) }
        };
        result == 0
    }
}

/// A full socket that a context led to.
#[derive(Clone, Copy)]
pub struct Sock(*mut bpf_sock);

impl Sock {
    /// From a pointer that the verifier knows as a socket and not null.
    #[inline(always)]
    pub const fn new(socket: *mut c_void) -> Self {
        Self(socket.cast())
    }

    /// The pointer, for storage.
    #[inline(always)]
    pub const fn pointer(self) -> *mut c_void {
        self.0.cast()
    }

    /// The netns that the socket belongs to; sock_create only.
    #[inline(always)]
    pub fn netns_cookie(self) -> NetnsCookie {
        // SAFETY: the context is live for the whole program.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    /// `SO_BINDTODEVICE`: the interface's index, 0 for none.
    #[inline(always)]
    pub fn bound_device(self) -> u32 {
        load::<0>(self.0.cast())
    }

    /// IPPROTO_*.
    #[inline(always)]
    pub fn protocol(self) -> u32 {
        load::<12>(self.0.cast())
    }

    /// The address that an `AF_INET` socket is bound to; 0.0.0.0 for none.
    #[inline(always)]
    pub fn source_v4(self) -> Address {
        Address::v4(load::<24>(self.0.cast()).to_ne_bytes())
    }

    /// The address that an `AF_INET6` socket is bound to; :: for none.
    #[inline(always)]
    pub fn source_v6(self) -> Address {
        address_at!(self.0.cast(), 28)
    }

    /// The port that the socket is bound to; 0 for none.
    #[inline(always)]
    pub fn source_port(self) -> Port {
        // The one port in `bpf_sock` that is in host order.
        Port::new((load::<44>(self.0.cast()) & 0xffff) as u16)
    }
}

/// Context of the sockops program.
#[derive(Clone, Copy)]
pub struct SockOps(*mut bpf_sock_ops);

impl SockOps {
    /// From the kernel's pointer.
    #[inline(always)]
    pub const fn new(context: *mut bpf_sock_ops) -> Self {
        Self(context)
    }

    /// The pointer, for the helpers that take the whole context.
    #[inline(always)]
    pub const fn pointer(self) -> *mut bpf_sock_ops {
        self.0
    }

    /// `BPF_SOCK_OPS_*`.
    #[inline(always)]
    pub fn op(self) -> u32 {
        load::<0>(self.0.cast())
    }

    /// The first argument of an op: the old state for `STATE_CB`.
    #[inline(always)]
    pub fn old_state(self) -> u32 {
        load::<4>(self.0.cast())
    }

    /// The second argument of an op: the new state for `STATE_CB`.
    #[inline(always)]
    pub fn new_state(self) -> u32 {
        load::<8>(self.0.cast())
    }

    /// The socket, for storage; null where the op has none.
    #[inline(always)]
    pub fn socket(self) -> *mut c_void {
        load_pointer::<184>(self.0.cast())
    }

    /// Whether the socket is an `AF_INET6` one.
    #[inline(always)]
    pub fn is_v6(self) -> bool {
        load::<20>(self.0.cast()) == AF_INET6
    }

    /// The local address.
    #[inline(always)]
    pub fn local(self) -> Address {
        // On a v6 socket local_ip4 reads as 127.0.0.6: the family comes first.
        if load::<20>(self.0.cast()) == AF_INET {
            Address::v4(load::<28>(self.0.cast()).to_ne_bytes())
        } else {
            address_at!(self.0.cast(), 48)
        }
    }

    /// The peer's address.
    #[inline(always)]
    pub fn remote(self) -> Address {
        if load::<20>(self.0.cast()) == AF_INET {
            Address::v4(load::<24>(self.0.cast()).to_ne_bytes())
        } else {
            address_at!(self.0.cast(), 32)
        }
    }

    /// The local port: host order in the context.
    #[inline(always)]
    pub fn local_port(self) -> Port {
        Port::new((load::<68>(self.0.cast()) & 0xffff) as u16)
    }

    /// The peer's port: network order in the upper half of the field.
    #[inline(always)]
    pub fn remote_port(self) -> Port {
        Port::new((u32::from_be(load::<64>(self.0.cast())) & 0xffff) as u16)
    }
}

/// Context of the getsockopt program.
#[derive(Clone, Copy)]
pub struct SockOpt(*mut bpf_sockopt);

impl SockOpt {
    /// From the kernel's pointer.
    #[inline(always)]
    pub const fn new(context: *mut bpf_sockopt) -> Self {
        Self(context)
    }

    /// `SOL_*`.
    #[inline(always)]
    pub fn level(self) -> u32 {
        load::<24>(self.0.cast())
    }

    /// The option's number within its level.
    #[inline(always)]
    pub fn option(self) -> u32 {
        load::<28>(self.0.cast())
    }

    /// Length of the caller's buffer.
    #[inline(always)]
    pub fn length(self) -> u32 {
        load::<32>(self.0.cast())
    }

    /// Sets the length of the answer.
    #[inline(always)]
    pub fn set_length(self, length: u32) {
        store::<32>(self.0.cast(), length);
    }

    /// Makes the call succeed whatever the kernel itself found.
    #[inline(always)]
    pub fn succeed(self) {
        store::<36>(self.0.cast(), 0);
    }

    /// The socket, for storage.
    #[inline(always)]
    pub fn socket(self) -> *mut c_void {
        load_pointer::<0>(self.0.cast())
    }

    /// Writes an answer of `N` words, if the buffer holds it.
    #[inline(always)]
    pub fn write<const N: usize>(self, words: &[u32; N]) -> bool {
        let start = load_pointer::<8>(self.0.cast()).cast::<u32>();
        let end = load_pointer::<16>(self.0.cast()).cast::<u32>();
        // The verifier wants exactly this form: the end of what is written against the buffer's end.
        if start.wrapping_add(N) > end {
            return false;
        }
        let mut index = 0;
        while index < N {
            let Some(word) = words.get(index) else { return false };
            // SAFETY: index < N, and N words lie before the buffer's end.
            unsafe { start.wrapping_add(index).write_unaligned(*word) };
            index += 1;
        }
        true
    }
}

/// Context of the sk_lookup program.
#[derive(Clone, Copy)]
pub struct SkLookup(*mut bpf_sk_lookup);

impl SkLookup {
    /// From the kernel's pointer.
    #[inline(always)]
    pub const fn new(context: *mut bpf_sk_lookup) -> Self {
        Self(context)
    }

    /// The pointer, for sk_assign.
    #[inline(always)]
    pub const fn pointer(self) -> *mut c_void {
        self.0.cast()
    }

    /// IPPROTO_*.
    #[inline(always)]
    pub fn protocol(self) -> u32 {
        load::<12>(self.0.cast())
    }

    /// Whether the connection is one of IPv6.
    #[inline(always)]
    pub fn is_v6(self) -> bool {
        load::<8>(self.0.cast()) == AF_INET6
    }

    /// 0, as the verifier does not know: a family is a small number.
    #[inline(always)]
    pub fn computed_zero(self) -> u32 {
        load::<8>(self.0.cast()) >> 16
    }

    /// The address that was dialled.
    #[inline(always)]
    pub fn local(self) -> Address {
        if load::<8>(self.0.cast()) == AF_INET {
            Address::v4(load::<40>(self.0.cast()).to_ne_bytes())
        } else {
            address_at!(self.0.cast(), 44)
        }
    }

    /// The client's address.
    #[inline(always)]
    pub fn remote(self) -> Address {
        if load::<8>(self.0.cast()) == AF_INET {
            Address::v4(load::<16>(self.0.cast()).to_ne_bytes())
        } else {
            address_at!(self.0.cast(), 20)
        }
    }

    /// The port that was dialled: host order in the context.
    #[inline(always)]
    pub fn local_port(self) -> Port {
        Port::new((load::<60>(self.0.cast()) & 0xffff) as u16)
    }

    /// Index of the interface that it arrived on (Linux 5.17: an older verifier refuses who reads it). For what
    /// comes from within the pod it is that of the interface that owns the address.
    #[inline(always)]
    pub fn interface(self) -> u32 {
        load::<64>(self.0.cast())
    }

    /// The client's port: network order, two bytes and two of padding.
    #[inline(always)]
    pub fn remote_port(self) -> Port {
        let [high, low, ..] = load::<36>(self.0.cast()).to_ne_bytes();
        Port([high, low])
    }
}
