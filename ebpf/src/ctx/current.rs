//! What the kernel tells without a context: who the current process is, and the time.

use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_get_current_uid_gid, bpf_ktime_get_ns};

/// Uid and gid of the current process, as the initial user namespace counts.
#[inline(always)]
pub fn current_uid_gid() -> (u32, u32) {
    // SAFETY: the helper takes no arguments.
    let both = unsafe { bpf_get_current_uid_gid() };
    ((both & 0xffff_ffff) as u32, (both >> 32) as u32)
}

/// Id of the cgroup (v2) that the current process is in. For sock_create and the sock_addr hooks since 5.7;
/// sockops has it only since 6.12.
#[inline(always)]
pub fn current_cgroup() -> u64 {
    // SAFETY: the helper takes no arguments.
    unsafe { bpf_get_current_cgroup_id() }
}

/// Nanoseconds of CLOCK_MONOTONIC.
#[inline(always)]
pub fn monotonic_ns() -> u64 {
    // SAFETY: the helper takes no arguments.
    unsafe { bpf_ktime_get_ns() }
}
