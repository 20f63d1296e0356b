//! Writing an entry, and what it means when the kernel does not take it.
//!
//! Owns: what is the map's end, and the patience for what is of a moment. Called by: `maps` and its rooms, for all that grows.

use std::time::Duration;

use aya::maps::MapError;
use nix::errno::Errno;

use super::is;
use crate::pause::pause;
use crate::platform::bpf::BpfError;

/// A map that is not allocated beforehand has a few elements in hand (three of `PORTS`' 8 KiB), and gets others by an interrupt
/// to its own processor, without waiting for memory. Until that comes, late where a hypervisor is busy, or as long as
/// page cache has left no pages side by side, it has none and says ENOMEM (`unit_alloc`,
/// <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/memalloc.c>); the kernel makes room meanwhile.
const MOMENT: Duration = Duration::from_millis(1);
/// How often it is waited, twice as long each time: half a second, with a pod's ADD.
const MOMENTS: u32 = 9;

/// Writes an entry of a map that has room for so many.
///
/// # Errors
/// `Full`, or as the kernel says.
pub(super) fn inserted(
    map: &'static str,
    capacity: u32,
    insert: impl FnMut() -> Result<(), MapError>,
) -> Result<(), BpfError> {
    patiently(insert, pause).map_err(|source| {
        if [Errno::E2BIG, Errno::ENOSPC].into_iter().any(|errno| is(&source, errno)) {
            BpfError::Full { map, capacity }
        } else {
            BpfError::Map { attempt: "write to", map, source }
        }
    })
}

fn patiently(
    mut insert: impl FnMut() -> Result<(), MapError>,
    mut wait: impl FnMut(Duration),
) -> Result<(), MapError> {
    for doubled in 0..MOMENTS {
        match insert() {
            Err(error) if is(&error, Errno::ENOMEM) => wait(MOMENT * (1 << doubled)),
            outcome => return outcome,
        }
    }
    insert()
}

#[cfg(test)]
mod tests {
    use std::io;

    use aya::sys::SyscallError;

    use super::*;

    fn refused(errno: Errno) -> Result<(), MapError> {
        let io_error = io::Error::from_raw_os_error(errno as i32);
        Err(SyscallError { call: "bpf_map_update_elem", io_error }.into())
    }

    /// What becomes of it, and how often it was waited, if the kernel says this so many times and takes it then.
    fn after(errno: Errno, times: u32) -> (Option<Errno>, u32) {
        let (mut left, mut waited) = (times, 0);
        let insert = || match left.checked_sub(1) {
            Some(fewer) => {
                left = fewer;
                refused(errno)
            }
            None => Ok(()),
        };
        let outcome = patiently(insert, |_time| waited += 1);
        (outcome.err().map(|error| if is(&error, errno) { errno } else { Errno::UnknownErrno }), waited)
    }

    #[test]
    fn want_of_memory_is_waited_out_and_nothing_else_is_and_not_for_ever() {
        assert_eq!(after(Errno::ENOMEM, 3), (None, 3));
        assert_eq!(after(Errno::ENOMEM, u32::MAX), (Some(Errno::ENOMEM), MOMENTS));
        assert_eq!(after(Errno::E2BIG, 1), (Some(Errno::E2BIG), 0));
        assert_eq!(after(Errno::EPERM, 1), (Some(Errno::EPERM), 0));
    }
}
