//! The datapath: gathers facts from the kernel's hooks, asks the shared verdict, acts on it.
//!
//! Owns: one module for each hook family ([`bind`], [`connect`], [`datagram`], [`handoff`], [`listen`], [`getsockopt`],
//! [`getpeername`], [`setsockopt`], [`sock_create`], [`sk_lookup`]), which container is the proxy's ([`proxy`]), the
//! maps behind accessors ([`maps`]), and every access to a kernel context ([`ctx`]).
//! Never does: decide. What goes where is `veer_common::verdict`; a test on a laptop runs the same code.
//! Called by: the entry points in `bin/`, which the kernel calls. Nothing runs for a packet of
//! an established connection, only for a socket, a connection, a system call or the lookup of a listener.

#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod ambient;
pub mod bind;
pub mod connect;
pub mod count;
pub mod ctx;
pub mod datagram;
pub mod getpeername;
pub mod getsockopt;
pub mod handoff;
pub mod listen;
pub mod maps;
pub mod proxy;
pub mod rules;
pub mod setsockopt;
pub mod sk_lookup;
pub mod sock_create;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that this is never reached: a program that could panic does not load.
    loop {}
}
