//! One virtual machine: QEMU's command line, and its life until it ends or its time is up.
//!
//! Owns: the process and its two logs. Emulated (TCG): slower than KVM by far, but the same on every machine; a
//! nested KVM often exists and then fails on the kernels of distributions.
//! Never does: reach the machine's disks or network; the guest has neither. Called by: `vm`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::report::{News, Report};
use crate::exec;

/// Memory of the guest: the archive, unpacked, is half a gigabyte, and each Envoy takes 60 MB.
const MEMORY: &str = "3G";
const PROCESSORS: &str = "2";
/// All that a kernel says is kept: the segmentation fault of a program is one line of it.
const PARAMETERS: &str = "console=ttyS1 loglevel=7 panic=-1 oops=panic";
/// A kernel that says one of these is not well, whatever the tests say.
const SPLATS: [&str; 6] =
    ["BUG: ", "WARNING: ", "Call Trace:", "Kernel panic", "Oops: ", "general protection fault"];

/// What to boot.
pub(super) struct Machine {
    pub(super) qemu: PathBuf,
    pub(super) kernel: PathBuf,
    pub(super) archive: PathBuf,
    /// Where the logs go.
    pub(super) logs: PathBuf,
    /// Further parameters of the kernel.
    pub(super) parameters: String,
}

impl Machine {
    /// Boots it and hears what it tells until it has ended, or until `limit`.
    pub(super) fn run(&self, limit: Duration, mut news: impl FnMut(&Report, News)) -> Result<Report> {
        let log = self.logs.join("tests.log");
        let mut lines = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let errors = self.logs.join("qemu.log");
        let errors = File::create(&errors).with_context(|| format!("create {}", errors.display()))?;
        let mut report = Report::default();
        let mut lost = None;
        let ended = exec::follow(&mut self.command(), errors, limit, |line| {
            if let Err(error) = writeln!(lines, "{}", line.trim_end()) {
                lost.get_or_insert(error);
            }
            if let Some(what) = report.take(line) {
                news(&report, what);
            }
        })?;
        if let Some(error) = lost {
            return Err(error).with_context(|| format!("write {}", log.display()));
        }
        match ended {
            Some(status) if status.success() => {}
            Some(status) => report.error = Some(format!("QEMU ended with {status}: {}", self.last_words())),
            None => report.error = Some(format!("ended after {} s: its time was up", limit.as_secs())),
        }
        Ok(report)
    }

    /// Two serial lines: the first process's, which is our stdout, and the kernel's.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.qemu);
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "q35"]);
        command.args(["-m", MEMORY, "-smp", PROCESSORS]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        let mut console = OsString::from("file:");
        console.push(self.console());
        command.args(["-serial", "stdio", "-serial"]).arg(console);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.archive);
        command.args(["-append", &format!("{PARAMETERS} {}", self.parameters)]);
        command
    }

    fn console(&self) -> PathBuf {
        self.logs.join("console.log")
    }

    fn last_words(&self) -> String {
        let said = fs::read_to_string(self.logs.join("qemu.log")).unwrap_or_default();
        said.trim().lines().last().unwrap_or("it said nothing").to_owned()
    }

    /// What the kernel complained of.
    pub(super) fn splats(&self) -> Vec<String> {
        splats(&read_lossy(&self.console()))
    }
}

/// The first lines of complaints, at most three.
fn splats(console: &str) -> Vec<String> {
    let is_splat = |line: &&str| SPLATS.iter().any(|splat| line.contains(splat));
    console.lines().filter(is_splat).take(3).map(|line| format!("the kernel says {}", line.trim())).collect()
}

fn read_lossy(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_complaint_is_found_and_its_chatter_is_not() {
        let console = "[    1.0] Loading modules\n[   33.9] WARNING: CPU: 0 PID: 1 at net/core/sock.c\n[] Call Trace:\n";
        assert_eq!(
            splats(console),
            [
                "the kernel says [   33.9] WARNING: CPU: 0 PID: 1 at net/core/sock.c",
                "the kernel says [] Call Trace:"
            ]
        );
        assert!(splats("[   33.98] reboot: Power down\n").is_empty());
    }

    #[test]
    fn the_guest_has_no_network_and_no_disk() {
        let machine = Machine {
            qemu: "qemu".into(),
            kernel: "/k".into(),
            archive: "/a".into(),
            logs: "/l".into(),
            parameters: String::new(),
        };
        let line = exec::shell_line(&machine.command());
        assert!(line.contains(" -nodefaults ") && line.contains(" -no-reboot "), "{line}");
        for word in ["-drive", "-hda", "-net", "-nic", "-device", "-virtfs"] {
            assert!(!line.contains(word), "{line}");
        }
    }
}
