//! What the node's Envoys use: of their cgroup, or of the processes themselves where the kernel counts for no such cgroup.

use std::fs;
use std::path::Path;

/// Memory and time.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Usage {
    /// Bytes.
    pub memory: u64,
    /// Seconds of CPU.
    pub cpu_s: f64,
}

impl Usage {
    /// Of all in the cgroup, where the controllers are there (`memory.current`, `cpu.stat`); else of these processes: what is
    /// resident (`/proc/PID/statm`, in pages) and their time (`/proc/PID/stat`, in ticks).
    pub fn of(cgroup: Option<&Path>, pids: &[u32]) -> Self {
        let read = |name: &str| fs::read_to_string(cgroup?.join(name)).ok();
        let of_all = |of: fn(u32) -> Option<f64>| -> f64 { pids.iter().copied().filter_map(of).sum() };
        let memory = read("memory.current").and_then(|text| text.trim().parse().ok());
        let cpu = read("cpu.stat").and_then(|text| usage_usec(&text));
        Self {
            memory: memory.unwrap_or_else(|| whole(of_all(resident))),
            cpu_s: cpu.unwrap_or_else(|| of_all(cpu_seconds)),
        }
    }
}

/// `usage_usec 4711`, which a cgroup has with and without the controller.
fn usage_usec(stat: &str) -> Option<f64> {
    let micros = stat.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    micros.trim().parse::<f64>().ok().map(|micros| micros / 1e6)
}

fn resident(pid: u32) -> Option<f64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: f64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * f64::from(u32::try_from(rustix::param::page_size()).ok()?))
}

fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let per_second = f64::from(u32::try_from(rustix::param::clock_ticks_per_second()).ok()?);
    Some((user + system) / per_second)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bytes of memory: positive, and below 2^53"
)]
const fn whole(bytes: f64) -> u64 {
    bytes as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_cgroup_is_in_its_statistics() {
        assert_eq!(usage_usec("usage_usec 2500000\nuser_usec 1\nsystem_usec 2\n"), Some(2.5));
        assert_eq!(usage_usec("nr_periods 0\n"), None);
    }

    #[test]
    fn a_process_has_memory_and_time() {
        let own = std::process::id();
        assert!(resident(own).unwrap() > 100_000.0);
        assert!(cpu_seconds(own).is_some());
    }
}
