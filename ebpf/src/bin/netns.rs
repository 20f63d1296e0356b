//! The object for a pod's netns: inbound.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(unsafe_code, reason = "a global that the loader sets, and the licence: symbols the loader finds")]
#![expect(clippy::needless_pass_by_value, reason = "aya's macros hand contexts over by value")]

use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use veer_ebpf::ctx::SkLookup;
use veer_ebpf::sk_lookup::{self, Answer};

/// The netns cookie of the pod that this instance is for; the loader writes it.
#[unsafe(no_mangle)]
static NETNS_COOKIE: u64 = 0;

/// The inbound verdict.
#[sk_lookup]
fn veer_inbound(context: SkLookupContext) -> u32 {
    // SAFETY: a global of ours; volatile, because the compiler would take the 0 above for its value.
    let cookie = unsafe { core::ptr::read_volatile(&raw const NETNS_COOKIE) };
    match sk_lookup::sk_lookup(SkLookup::new(context.lookup), cookie) {
        Answer::Drop => 0,
        Answer::Pass => 1,
    }
}

/// The kernel gives its GPL helpers to GPL-compatible objects only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
