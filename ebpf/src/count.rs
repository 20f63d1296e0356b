//! Counters and events: what the datapath tells about itself.

#![expect(unsafe_code, reason = "an atomic add on a map value goes through a raw pointer")]

use veer_common::address::{Address, Port};
use veer_common::event::{Event, NO_ID, PROXY_QUIET_NS};
use veer_common::maps::{MAX_HAND_OFFS_OF_POD, NetnsCookie};
use veer_common::reason::{COUNTERS, Fault, HAND_OFFS_NOW, PROXY_TOLD, Reason};

use crate::{ctx, maps};

/// The facts of a decision that an event carries.
#[derive(Clone, Copy)]
pub struct Facts {
    /// `IPPROTO_TCP` or `IPPROTO_UDP`.
    pub protocol: u32,
    /// Creator's uid, or `NO_ID`.
    pub uid: u32,
    /// Creator's gid, or `NO_ID`.
    pub gid: u32,
    /// Whether these are the proxy's, and the creator is not.
    pub is_impostor: bool,
    /// Where it comes from.
    pub source: Address,
    /// The port it comes from.
    pub source_port: Port,
    /// Where it was dialled to.
    pub destination: Address,
    /// The dialled port.
    pub port: Port,
    /// The interface that it arrived on, or that the socket is tied to; 0 for none.
    pub interface: u32,
}

/// Counts a decision, and reports it if somebody watches. A function of its own in the object, too: its
/// stack counts only while it runs, and all frames together have 512 bytes.
#[inline(never)]
pub fn decision(cookie: NetnsCookie, reason: Reason, facts: &Facts) {
    add(cookie, reason as usize, 1);
    if !maps::watched() {
        return;
    }
    let Some(mut event) = maps::event() else {
        fault(cookie, Fault::EventLost);
        return;
    };
    event.write(Event {
        monotonic_ns: ctx::monotonic_ns(),
        cookie,
        reason: reason as u32,
        uid: facts.uid,
        gid: facts.gid,
        protocol: facts.protocol,
        source: facts.source,
        destination: facts.destination,
        source_port: facts.source_port,
        port: facts.port,
        is_impostor: u32::from(facts.is_impostor),
        interface: facts.interface,
        _reserved: 0,
    });
    event.submit(0);
}

/// Notes that a redirected connection is on its way to the proxy (1), or not any more (-1).
#[inline(always)]
pub fn hand_off(cookie: NetnsCookie, change: i64) {
    add(cookie, HAND_OFFS_NOW, change);
}

/// Whether so many connections wait for the pod's proxy that no further one may.
#[inline(always)]
pub fn proxy_is_behind(cookie: NetnsCookie) -> bool {
    let Some(counters) = maps::counters(cookie) else { return false };
    // SAFETY: the index is below the array's length.
    let counter = unsafe { counters.cast::<i64>().add(HAND_OFFS_NOW) };
    // SAFETY: an aligned 8-byte value; volatile, because other CPUs change it.
    let now = unsafe { counter.read_volatile() };
    now >= MAX_HAND_OFFS_OF_POD
}

/// Counts a fault.
#[inline(always)]
pub fn fault(cookie: NetnsCookie, fault: Fault) {
    add(cookie, fault as usize, 1);
}

/// Notes when a listener of the proxy's began ([`PROXY_BEGAN`](veer_common::event::PROXY_BEGAN)) or ceased to listen, and
/// wakes the agent, whether anybody watches or not, but not at once again: it happens as often as a proxy starts, or as
/// a pod likes. A function of its own, as [`decision`] is.
#[inline(never)]
pub fn proxy_changed(cookie: NetnsCookie, what: u32, port: Port) {
    let now = ctx::monotonic_ns();
    let Some(counters) = maps::counters(cookie) else { return };
    let index = what as usize;
    if index >= COUNTERS {
        return;
    }
    // SAFETY: the index is below the array's length.
    let moment = unsafe { counters.cast::<u64>().add(index) };
    // SAFETY: an aligned u64; volatile, because other CPUs write it, too, and any of them is right.
    unsafe { moment.write_volatile(now) };
    // SAFETY: the index is below the array's length.
    let told = unsafe { counters.cast::<u64>().add(PROXY_TOLD) };
    // SAFETY: as above.
    let before = unsafe { told.read_volatile() };
    if now.wrapping_sub(before) < PROXY_QUIET_NS {
        return;
    }
    let Some(mut event) = maps::event() else {
        fault(cookie, Fault::EventLost);
        return;
    };
    // SAFETY: as above.
    unsafe { told.write_volatile(now) };
    event.write(Event {
        monotonic_ns: now,
        cookie,
        reason: what,
        uid: NO_ID,
        gid: NO_ID,
        protocol: ctx::IPPROTO_TCP,
        source: Address::UNSPECIFIED,
        destination: Address::UNSPECIFIED,
        source_port: Port::NONE,
        port,
        is_impostor: 0,
        interface: 0,
        _reserved: 0,
    });
    event.submit(0);
}

#[inline(always)]
fn add(cookie: NetnsCookie, index: usize, change: i64) {
    let Some(counters) = maps::counters(cookie) else { return };
    if index >= COUNTERS {
        return;
    }
    // SAFETY: the index is below the array's length.
    let counter = unsafe { counters.cast::<u64>().add(index) };
    add_atomically(counter, change);
}

/// As an instruction: Rust has no atomics for this target, and a fetching add, which
/// the intrinsic would be, exists on kernels from 5.12 only.
#[inline(always)]
pub(crate) fn add_atomically(counter: *mut u64, change: i64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: an aligned u64 inside of a map value, which all programs only add to.
    unsafe {
        core::arch::asm!("lock *(u64 *)({p} + 0) += {c}", p = in(reg) counter, c = in(reg) change);
    }
    #[cfg(not(target_arch = "bpf"))]
    let _ = (counter, change);
}
