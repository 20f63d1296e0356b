//! The object for a pod's netns: says which pod it is, and jumps to the inbound program of the node.
//!
//! It is loaded for each pod, so it is next to nothing: the verifier takes 60 ms for the inbound program with
//! its loop over the listeners, and a pod's start waits for this one.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(unsafe_code, reason = "a global that the loader sets, and the licence: symbols the loader finds")]
#![expect(clippy::needless_pass_by_value, reason = "aya's macros hand contexts over by value")]

use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use veer_common::interface::Arrival;
use veer_ebpf::ctx::{IPPROTO_TCP, SkLookup};
use veer_ebpf::maps;

/// The netns cookie of the pod that this instance is for; the loader writes it.
#[unsafe(no_mangle)]
static NETNS_COOKIE: u64 = 0;

/// Not 0 in an instance for a pod whose annotations name interfaces. In any other the verifier, who knows the
/// constant, removes what kernels before 5.17 do not have before it looks at it.
#[unsafe(no_mangle)]
static READS_INTERFACE: u32 = 0;

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;

/// Names the pod and the interface, and jumps.
#[sk_lookup]
fn veer_netns(context: SkLookupContext) -> u32 {
    let lookup = SkLookup::new(context.lookup);
    if lookup.protocol() != IPPROTO_TCP {
        return SK_PASS;
    }
    // SAFETY: a global of ours; volatile, because the compiler would take the 0 above for its value.
    let cookie = unsafe { core::ptr::read_volatile(&raw const NETNS_COOKIE) };
    // SAFETY: as for the cookie.
    let reads_interface = unsafe { core::ptr::read_volatile(&raw const READS_INTERFACE) };
    let interface = if reads_interface != 0 { lookup.interface() } else { 0 };
    if maps::set_arrival(&Arrival { cookie, interface, _reserved: 0 }) {
        maps::jump_to_inbound(&context, lookup.computed_zero());
    }
    // Only reached without a program to jump to. The pod is enrolled: nothing goes past its proxy.
    SK_DROP
}

/// The kernel gives its GPL helpers to GPL-compatible objects only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
