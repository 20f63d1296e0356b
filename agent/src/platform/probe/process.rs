//! The process that looks, and settings of the kernel.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use crate::doctor::facts::{KernelSettings, Process};

/// Who looks.
///
/// # Errors
/// As `/proc` says.
pub fn process() -> io::Result<Process> {
    let status = fs::read_to_string("/proc/thread-self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    let unreadable = || io::Error::new(io::ErrorKind::InvalidData, "/proc/thread-self/status has no CapEff");
    Ok(Process {
        uid: nix::unistd::geteuid().as_raw(),
        capabilities: capabilities.ok_or_else(unreadable)?,
        locked_memory: getrlimit(Resource::Memlock).current,
    })
}

/// Release and machine.
pub fn kernel() -> String {
    let name = rustix::system::uname();
    format!("{} {}", name.release().to_string_lossy(), name.machine().to_string_lossy())
}

/// The settings.
pub fn settings() -> KernelSettings {
    KernelSettings {
        jit: setting("/proc/sys/net/core/bpf_jit_enable"),
        lockdown: setting("/sys/kernel/security/lockdown").and_then(|modes| chosen(&modes)),
        ipv6: Path::new("/proc/net/if_inet6").exists()
            && setting("/sys/module/ipv6/parameters/disable").as_deref() != Some("1"),
    }
}

fn setting(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// `none [integrity] confidentiality`
fn chosen(modes: &str) -> Option<String> {
    Some(modes.split_once('[')?.1.split_once(']')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_of_lockdown_is_the_one_in_brackets() {
        assert_eq!(chosen("none [integrity] confidentiality").as_deref(), Some("integrity"));
        assert_eq!(chosen("none"), None);
    }
}
