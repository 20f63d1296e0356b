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
/// All that can be emulated, but for what a processor calls fast strings: a kernel fills and copies memory with
/// `rep stosb` and `rep movsb` then, which the emulator does byte by byte. Half of the verifier's time was that.
const CPU: &str = "max,-erms,-fsrm";
/// All that a kernel says is kept: the segmentation fault of a program is one line of it.
/// The machine's time stamp counters are one and the same, which a kernel cannot know of an AMD processor without being
/// told: it would ask an emulated HPET for the time, as often as it sends a packet. Namespaces come and go by
/// the hundred here, and each waits for RCU. What guards against faults of processors guards nothing here, and is a
/// quarter of all the time.
const PARAMETERS: &str = "console=ttyS1 loglevel=7 panic=-1 oops=panic tsc=reliable clocksource=tsc \
                          rcupdate.rcu_expedited=1 mitigations=off";
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
    /// Boots it and hears what it tells until it has ended. It is ended when for as long as `patience` has at each of
    /// its news no further one has come.
    pub(super) fn run(
        &self,
        patience: impl Fn(&Report) -> Duration,
        mut news: impl FnMut(&Report, News),
    ) -> Result<Report> {
        let log = self.logs.join("tests.log");
        let mut lines = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let errors = self.logs.join("qemu.log");
        let errors = File::create(&errors).with_context(|| format!("create {}", errors.display()))?;
        let mut report = Report::default();
        let mut lost = None;
        let ended = exec::follow(&mut self.command(), errors, patience(&report), |line| {
            if let Err(error) = writeln!(lines, "{}", line.trim_end()) {
                lost.get_or_insert(error);
            }
            let what = report.take(line)?;
            news(&report, what);
            Some(patience(&report))
        })?;
        if let Some(error) = lost {
            return Err(error).with_context(|| format!("write {}", log.display()));
        }
        match ended {
            Some(status) if status.success() => {}
            Some(status) => report.error = Some(format!("QEMU ended with {status}: {}", self.last_words())),
            None => {
                let silent = patience(&report).as_secs();
                report.error = Some(format!("it was ended: no news of it for {silent} s"));
            }
        }
        Ok(report)
    }

    /// Two serial lines: the first process's, which is our stdout, and the kernel's.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.qemu);
        command.args(["-accel", "tcg,thread=multi", "-cpu", CPU, "-machine", "q35"]);
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

    /// A machine whose QEMU is a shell script. A shell writes it: as long as this process, or what another test has just
    /// forked off it, has it open, it cannot be executed.
    fn machine(directory: &Path, script: &str) -> Machine {
        let qemu = directory.join("qemu");
        let mut write = Command::new("sh");
        write.args(["-c", r#"printf '#!/bin/sh\n%s\n' "$0" > "$1" && chmod 755 "$1""#, script]).arg(&qemu);
        exec::run(&mut write).unwrap();
        Machine {
            qemu,
            kernel: "/k".into(),
            archive: "/a".into(),
            logs: directory.to_owned(),
            parameters: String::new(),
        }
    }

    #[test]
    fn a_machine_that_falls_silent_is_ended_and_what_it_said_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let boot = r#"@veer-vm {"event":"boot","release":"6.1"}"#;
        let machine = machine(directory.path(), &format!("echo '{boot}'; echo oh >&2; exec sleep 600"));
        let mut heard = Vec::new();
        let patience = |report: &Report| Duration::from_secs(if report.release.is_some() { 1 } else { 60 });
        let report = machine.run(patience, |_, news| heard.push(news)).unwrap();
        assert_eq!(heard, [News::Booted]);
        assert_eq!(report.complaints()[0], "the machine: it was ended: no news of it for 1 s");
        let kept = |name| fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!((kept("tests.log"), kept("qemu.log")), (format!("{boot}\n"), "oh\n".to_owned()));
    }

    #[test]
    fn an_emulator_that_fails_is_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let machine = machine(directory.path(), "echo no kernel >&2; exit 3");
        let report = machine.run(|_| Duration::from_mins(1), |_, _| {}).unwrap();
        assert_eq!(report.error.unwrap(), "QEMU ended with exit status: 3: no kernel");
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
