//! bpf(2), for what aya has no way to.
//!
//! Owns: the one call. Never does: know a command, but for the sabotage that aya would not do. Used by: the load balancer that stands for others' programs
//! ([`socket_lb`](crate::socket_lb)), and the count of what the kernel holds ([`objects`](crate::objects)).

#![expect(unsafe_code, reason = "bpf(2) takes pointers; this is the room where they are made")]

use std::ffi::{CString, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Calls bpf(2); gives back what the kernel says.
pub(crate) fn call<T>(command: c_int, attribute: &mut T) -> io::Result<c_int> {
    let attribute: *mut T = attribute;
    // SAFETY: `attribute` points to a live structure of the size given, laid out as the command wants it,
    // and every pointer inside of it is live for the call.
    let result = unsafe { nix::libc::syscall(nix::libc::SYS_bpf, command, attribute, size_of::<T>()) };
    let result = c_int::try_from(result).map_err(io::Error::other)?;
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Detaches what a pinned link holds.
pub(crate) fn detach(pin: &Path) -> io::Result<()> {
    const OBJ_GET: c_int = 7;
    const LINK_DETACH: c_int = 34;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut pinned = Pinned { path: path.as_ptr().expose_provenance() as u64, fd: 0, flags: 0 };
    let link = open(OBJ_GET, &mut pinned)?;
    call(LINK_DETACH, &mut number(link.as_fd())?).map(drop)
}

/// Gives an object a name on a bpffs.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    const OBJ_PIN: c_int = 6;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut pinned = Pinned { path: path.as_ptr().expose_provenance() as u64, fd: number(object)?, flags: 0 };
    call(OBJ_PIN, &mut pinned).map(drop)
}

/// Puts a socket into a sockhash whose values are 8 bytes, where the key is free.
pub(crate) fn insert_socket(map: BorrowedFd<'_>, key: &[u8], socket: BorrowedFd<'_>) -> io::Result<()> {
    const MAP_UPDATE_ELEM: c_int = 2;
    const NOEXIST: u64 = 1;
    /// What `BPF_MAP_UPDATE_ELEM` takes.
    #[repr(C)]
    struct Element {
        map: u32,
        _padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let value = u64::from(number(socket)?);
    let mut element = Element {
        map: number(map)?,
        _padding: 0,
        key: key.as_ptr().expose_provenance() as u64,
        value: (&raw const value).expose_provenance() as u64,
        flags: NOEXIST,
    };
    call(MAP_UPDATE_ELEM, &mut element).map(drop)
}

fn number(fd: BorrowedFd<'_>) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)
}

/// What `BPF_OBJ_GET` and `BPF_OBJ_PIN` take.
#[repr(C)]
struct Pinned {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Calls bpf(2) for a command that gives back a descriptor.
pub(crate) fn open<T>(command: c_int, attribute: &mut T) -> io::Result<OwnedFd> {
    let fd = call(command, attribute)?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
