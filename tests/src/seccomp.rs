//! seccomp(2), as far as bpf(2) goes: every call of it that a process makes is put before somebody else.
//!
//! Owns: the filter, and the two ioctls of `SECCOMP_RET_USER_NOTIF` (seccomp_unotify(2)). Never does: decide what
//! becomes of a call, which is [`bpf_gate`](crate::bpf_gate)'s.

#![expect(unsafe_code, reason = "no crate has a safe wrapper for seccomp's user notification")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;

/// Offset of the system call's number in `struct seccomp_data`, which the filter's program reads.
const NUMBER: u32 = 0;

/// A call of bpf(2) that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    id: u64,
    /// What of bpf(2) it wants: its first argument.
    pub(crate) command: u64,
    /// The thread that calls.
    pub(crate) caller: Pid,
}

/// What a call is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// The kernel carries it out.
    Go,
    /// It fails.
    Fail(Errno),
}

/// From here on, every bpf(2) of this process and of what it executes waits until whoever has the descriptor
/// answers. The descriptor is closed on exec.
pub fn put_bpf_before_listener() -> io::Result<OwnedFd> {
    let instruction = |code: u32, jf: u8, k: u32| {
        // The kernel's constants are wider than its own structure.
        libc::sock_filter { code: u16::try_from(code).unwrap_or_default(), jt: 0, jf, k }
    };
    let bpf = u32::try_from(libc::SYS_bpf).map_err(io::Error::other)?;
    let mut program = [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, NUMBER),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, bpf),
        instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_USER_NOTIF),
        instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: `program` points to as many instructions as it says, live for the call; the kernel copies them.
    let listener = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) };
    let listener = i32::try_from(listener).map_err(io::Error::other)?;
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}

/// The next call, which must be there.
///
/// # Errors
/// ENOENT when its caller was killed in between.
pub(crate) fn receive(listener: BorrowedFd<'_>) -> io::Result<Call> {
    // SAFETY: a structure of numbers alone, for which zeros are a value.
    let mut notification: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    let request = libc::SECCOMP_IOCTL_NOTIF_RECV;
    // SAFETY: the kernel writes a `seccomp_notif`, and that is what it is given.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw mut notification) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let caller = Pid::from_raw(notification.pid.cast_signed());
    Ok(Call { id: notification.id, command: notification.data.args[0], caller })
}

/// Answers a call.
///
/// # Errors
/// ENOENT when its caller was killed in between.
pub(crate) fn answer(listener: BorrowedFd<'_>, call: Call, answer: Answer) -> io::Result<()> {
    let go = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).map_err(io::Error::other)?;
    let (error, flags) = match answer {
        Answer::Go => (0, go),
        Answer::Fail(errno) => (-(errno as i32), 0),
    };
    let mut response = libc::seccomp_notif_resp { id: call.id, val: 0, error, flags };
    let request = libc::SECCOMP_IOCTL_NOTIF_SEND;
    // SAFETY: the kernel reads a `seccomp_notif_resp`, and that is what it is given.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), request, &raw mut response) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
