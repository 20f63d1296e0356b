//! bpf(2), for what aya has no way to.
//!
//! Owns: the one call. Never does: know a command. Used by: the load balancer that stands for others' programs
//! ([`socket_lb`](crate::socket_lb)), and the count of what the kernel holds ([`objects`](crate::objects)).

#![expect(unsafe_code, reason = "bpf(2) takes pointers; this is the room where they are made")]

use std::ffi::c_int;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Calls bpf(2); gives back what the kernel says.
pub(crate) fn call<T>(command: c_int, attribute: &mut T) -> io::Result<c_int> {
    let attribute: *mut T = attribute;
    // SAFETY: `attribute` points to a live structure of the size given, laid out as the command wants it,
    // and every pointer inside of it is live for the call.
    let result = unsafe { nix::libc::syscall(nix::libc::SYS_bpf, command, attribute, size_of::<T>()) };
    let result = c_int::try_from(result).map_err(io::Error::other)?;
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Calls bpf(2) for a command that gives back a descriptor.
pub(crate) fn open<T>(command: c_int, attribute: &mut T) -> io::Result<OwnedFd> {
    let fd = call(command, attribute)?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
