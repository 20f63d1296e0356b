//! Faults of the node that the agent runs on: its disk, its bpffs, its clocks, its maps.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use veer_common::cni::{Reply, code};
use veer_common::maps::name;
use veer_tests::bare_pod::BarePod;
use veer_tests::filling;
use veer_tests::launch::Launch;
use veer_tests::mesh;
use veer_tests::pinned::Pinned;
use veer_tests::pod::REMOTE_V4;

use super::stage::{Stage, Told};

/// A small file system over a directory, until it is dropped.
#[derive(Debug)]
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn over(path: &Path) -> Result<Self> {
        let size = Some("size=64k,nr_inodes=12,mode=700");
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), size)
            .with_context(|| format!("mount a tmpfs over {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }

    fn become_read_only(&self, read_only: MsFlags) -> Result<()> {
        let flags = MsFlags::MS_REMOUNT | read_only;
        mount(None::<&str>, &self.0, None::<&str>, flags, None::<&str>).context("remount the tmpfs")
    }

    /// Leaves no block and no inode.
    fn fill(&self) -> Result<()> {
        let mut file = File::create(self.0.join("ballast"))?;
        while file.write_all(&[0; 4096]).is_ok() {}
        for number in 0.. {
            match File::create(self.0.join(format!("ballast-{number}"))) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error).context("fill the tmpfs"),
            }
        }
        Ok(())
    }

    fn relieve(&self) -> Result<()> {
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ballast")) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("unmount {}: {error}", self.0.display());
        }
    }
}

/// A pod comes and goes.
fn come_and_go(stage: &Stage<'_>, pod: &BarePod) -> Result<()> {
    stage.add(pod)?;
    ensure!(stage.is_enrolled(pod)?, "{} is not as ADD left it", pod.name());
    stage.del(pod)
}

/// A start that must fail, naming the run directory and this.
fn fails_to_start(stage: &mut Stage<'_>, text: &str) -> Result<()> {
    stage.agent.begin_again()?;
    let status = stage.agent.process_mut().wait()?;
    let log = stage.agent.log();
    let reason = log.lines().last().unwrap_or_default();
    let names_it = reason.contains(text) && reason.contains(&stage.agent.run_dir().display().to_string());
    ensure!(status.code() == Some(70) && names_it, "it ended with {status} and said {reason:?}");
    Ok(())
}

/// Pods whose coming and going fills the rest of the log's last block: from there on, no line can be written.
const LOGGED: usize = 40;

/// The disk of the run directory, and of the log, is full, and later read-only.
pub(crate) fn disk(stage: &mut Stage<'_>) -> Result<Told> {
    let pods = stage.bare_pods("disk", 1)?;
    let [pod] = pods.as_slice() else { bail!("one pod was made") };
    stage.agent.stop()?;
    let log = stage.agent.log_to(&stage.agent.run_dir().join("agent.log"));
    let disk = SmallDisk::over(&stage.agent.run_dir())?;
    let outcome = (|| {
        stage.agent.start_again()?;
        disk.fill()?;
        for _ in 0..LOGGED {
            come_and_go(stage, pod).context("with a full disk")?;
        }
        // What a killed agent has left is room for the sockets of the next one.
        stage.agent.kill()?;
        stage.agent.start_again().context("start on a full disk after a kill")?;
        come_and_go(stage, pod).context("with a full disk, after a kill")?;
        stage.agent.stop()?;
        stage.agent.log_to(&log);
        disk.fill()?;
        fails_to_start(stage, "No space left on device")?;
        disk.relieve()?;
        stage.agent.start_again()?;
        // The kernel refuses this as long as the agent has its lock open.
        stage.agent.kill()?;
        disk.become_read_only(MsFlags::MS_RDONLY)?;
        fails_to_start(stage, "Read-only file system")?;
        disk.become_read_only(MsFlags::empty())
    })();
    // Before the disk goes, and whatever came of it.
    stage.agent.log_to(&log);
    stage.agent.kill()?;
    drop(disk);
    outcome?;
    stage.forget(&pods)?;
    Ok(Told { times: 2, seen: "a running agent goes on; one that cannot start says which path".to_owned() })
}

/// The bpffs is unmounted where the agent is: no pod can be added, and those that are there notice nothing.
pub(crate) fn bpffs_unmounted(stage: &mut Stage<'_>) -> Result<Told> {
    let pods = stage.bare_pods("unpinned", 2)?;
    let [pod, gone] = pods.as_slice() else { bail!("two pods were made") };
    stage.relaunch(Launch::new().with_own_mounts())?;
    stage.add(gone)?;
    let pid = stage.agent.process().pid().to_string();
    let bpffs = stage.agent.bpffs();
    let mounted = bpffs.parent().context("the bpffs is mounted above")?;
    let unmounted =
        Command::new("nsenter").args(["--mount", "--target", &pid, "umount"]).arg(mounted).status();
    ensure!(unmounted.context("run nsenter (package util-linux)")?.success(), "umount in the agent's mounts");
    let reply = stage.ask_add(pod)?;
    let is_refused = matches!(reply, Reply::Failed { code: code::ENROLMENT_FAILED, .. });
    ensure!(is_refused, "ADD without a bpffs says {reply:?}");
    stage.load.wait_for(100)?;
    stage.del(gone)?;
    stage.restore()?;
    come_and_go(stage, pod).context("with the bpffs back")?;
    stage.forget(&pods)?;
    Ok(Told { times: 1, seen: "ADD fails by name; a new agent finds everything".to_owned() })
}

/// Ten years, in seconds.
const LONG_AGO: i64 = 315_360_000;

/// The clocks are elsewhere when the agent starts: far ahead, and back.
pub(crate) fn clocks(stage: &mut Stage<'_>) -> Result<Told> {
    let pods = stage.bare_pods("late", 1)?;
    let [pod] = pods.as_slice() else { bail!("one pod was made") };
    let uptime = fs::read_to_string("/proc/uptime").context("read /proc/uptime")?;
    let whole = uptime.split('.').next().and_then(|seconds| seconds.parse::<i64>().ok());
    let back = 1 - whole.context("/proc/uptime begins with seconds")?;
    for seconds in [LONG_AGO, back] {
        stage.relaunch(Launch::new().with_clock_offset(seconds))?;
        come_and_go(stage, pod).with_context(|| format!("with clocks that are off by {seconds} s"))?;
        stage.load.wait_for(100)?;
    }
    stage.forget(&pods)?;
    Ok(Told {
        times: 2,
        seen: "monotonic clocks, by a time namespace; the wall clock: cargo xtask vm".to_owned(),
    })
}

/// Maps that an ADD writes to.
const OF_ADD: [&str; 5] = [name::ENROLMENTS, name::COUNTERS, name::OWN_ADDRESSES, name::PODS, name::PORTS];

/// Each map is full once: an ADD is refused and says which; a connection is counted.
pub(crate) fn full_maps(stage: &mut Stage<'_>) -> Result<Told> {
    let pods = stage.bare_pods("late", 1)?;
    let [pod] = pods.as_slice() else { bail!("one pod was made") };
    let pinned = Pinned::of(&stage.agent);
    let before = stage.entries()?;
    for map in OF_ADD {
        filling::fill(&pinned, map)?;
        let reply = stage.ask_add(pod);
        let enrolled = stage.is_enrolled(pod);
        filling::empty(&pinned, map)?;
        let (reply, enrolled) = (reply?, enrolled?);
        let says_so =
            matches!(&reply, Reply::Failed { msg, .. } if msg.contains(&format!("map {map} is full")));
        ensure!(says_so && !enrolled, "ADD with {map} full says {reply:?}, enrolled: {enrolled}");
        let left = stage.entries()?;
        ensure!(left == before, "{map} was full: before {before:?}, after {left:?}");
        come_and_go(stage, pod)?;
    }
    hand_offs(stage, &pinned)?;
    stage.forget(&pods)?;
    Ok(Told { times: 6, seen: "ADD is refused and names the map; hand-offs are counted".to_owned() })
}

/// The proxy gets such a connection without its destination: counted, as the architecture says.
fn hand_offs(stage: &Stage<'_>, pinned: &Pinned) -> Result<()> {
    let _paused = stage.load.pause();
    let counted = || -> Result<u64> {
        let pod = stage.agent.json(&["pods", "test/a"])?;
        let faults = pod.get("faults").and_then(|faults| faults.get("hand-off"));
        Ok(faults.and_then(serde_json::Value::as_u64).unwrap_or_default())
    };
    let before = counted()?;
    filling::fill(pinned, name::HAND_OFFS)?;
    let socket = mesh::tcp(stage.scene.a.app(), (REMOTE_V4, 9000));
    let outcome = socket.map(|socket| mesh::connect(&socket, (REMOTE_V4, 9000)));
    filling::empty(pinned, name::HAND_OFFS)?;
    // Whether it connects is the proxy's business.
    drop(outcome?);
    ensure!(
        counted()? == before + 1,
        "one connection met a full map, and {} were counted",
        counted()? - before
    );
    Ok(())
}
