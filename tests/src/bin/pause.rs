//! `pause`: holds a pod's namespaces, and reaps what its containers leave, as the first process of each pod does.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

fn main() -> anyhow::Result<()> {
    let awaited = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM]);
    // Blocked, or one that comes before the wait would be lost, or end us.
    awaited.thread_block()?;
    while awaited.wait()? == Signal::SIGCHLD {
        // One signal may stand for several children. None left is an error, too.
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status != WaitStatus::StillAlive) {
        }
    }
    Ok(())
}
