//! The wall clock jumps, by hours and by weeks, there and back.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use rustix::time::{ClockId, Timespec, clock_settime};
use serde_json::Value;
use veer_common::maps::name;
use veer_tests::launch::Launch;
use veer_tests::mesh::{Listeners, Mesh, dial, dual_stack, proxy_listeners};
use veer_tests::monitor::Monitor;
use veer_tests::pinned::Pinned;
use veer_tests::plugin::{Ended, Plugin};
use veer_tests::pod::REMOTE_V4;
use veer_tests::wait;

const REMOTE: SocketAddr = SocketAddr::new(IpAddr::V4(REMOTE_V4), 80);
const HOUR: i64 = 3600;
/// Each from where the one before has led: ahead, back to before the begin, far ahead, and far back.
const JUMPS: [i64; 4] = [6 * HOUR, -12 * HOUR, 30 * 24 * HOUR, -60 * 24 * HOUR];
/// Passes come each second or two here.
const PASS: Duration = Duration::from_mins(1);
/// What a pass and a look at it may take, in seconds.
const LATE: u64 = 120;

/// The machine's wall clock; it is right again when this goes. One test has it at a time.
struct WallClock {
    _alone: MutexGuard<'static, ()>,
    began: (Duration, Instant),
    off_by: i64,
}

impl WallClock {
    fn take() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Self { _alone: alone, began: (wall, Instant::now()), off_by: 0 }
    }

    fn jump(&mut self, seconds: i64) {
        self.off_by += seconds;
        self.set();
    }

    fn set(&self) {
        let (wall, monotonic) = self.began;
        let right = i64::try_from((wall + monotonic.elapsed()).as_secs()).unwrap();
        clock_settime(ClockId::Realtime, Timespec { tv_sec: right + self.off_by, tv_nsec: 0 }).unwrap();
    }
}

impl Drop for WallClock {
    fn drop(&mut self) {
        self.off_by = 0;
        self.set();
    }
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A node that looks at everything each second or two.
fn node() -> (Mesh, Listeners) {
    let mesh = Mesh::on_node(Launch::new(), &["--backend=ebpf", "--reconcile-interval=1"]).unwrap();
    mesh.agent.enrol_as(&mesh.pod, &dual_stack(&mesh.pod)).unwrap();
    let mut listeners = proxy_listeners(&mesh.pod).unwrap();
    listeners.add_in_world("outside", &mesh.world, REMOTE).unwrap();
    (mesh, listeners)
}

fn outbound(mesh: &Mesh, listeners: &Listeners) -> &'static str {
    dial(mesh.pod.app(), REMOTE, listeners).unwrap().0.at
}

fn of_agent(mesh: &Mesh, field: &str) -> Value {
    let status = mesh.agent.json(&["status"]).unwrap();
    status.pointer(&format!("/agent/{field}")).unwrap().clone()
}

#[test]
fn passes_go_on_and_tell_the_new_time() {
    let (mesh, listeners) = node();
    let mut clock = WallClock::take();
    for seconds in JUMPS {
        clock.jump(seconds);
        let is_of_now = || {
            let (now, looked_at) = (unix_time(), of_agent(&mesh, "lookedAt").as_u64());
            looked_at.is_some_and(|looked_at| looked_at <= now && now - looked_at < LATE)
        };
        wait::until(&format!("a pass after a jump by {seconds} s"), PASS, is_of_now).unwrap();
        assert_eq!(outbound(&mesh, &listeners), "outbound");
    }
}

#[test]
fn what_was_lost_or_failed_before_a_jump_is_tried_again_after_it() {
    let (mesh, listeners) = node();
    let pinned = Pinned::of(&mesh.agent);
    let pod = mesh.agent.json(&["pods", "test/pod"]).unwrap();
    let cookie = pod.pointer("/netnsCookie").unwrap().as_u64().unwrap();
    let before = pinned.counts().unwrap();
    let mut clock = WallClock::take();
    for seconds in JUMPS {
        // Only the manifest tells them.
        mesh.agent.remove_manifest(&dual_stack(&mesh.pod)).unwrap();
        pinned.lose(name::PORTS, cookie).unwrap();
        let is_told = || of_agent(&mesh, "unrepaired").pointer("/0").is_some();
        wait::until("a failure to be told", PASS, is_told).unwrap();
        clock.jump(seconds);
        mesh.agent.write_manifest(&dual_stack(&mesh.pod)).unwrap();
        let is_back = || pinned.counts().unwrap() == before && !is_told();
        wait::until(&format!("what was lost to be back after a jump by {seconds} s"), PASS, is_back).unwrap();
        assert_eq!(outbound(&mesh, &listeners), "outbound");
    }
}

#[test]
fn a_plugin_that_waits_for_the_agent_waits_as_long_as_ever() {
    let (mesh, _listeners) = node();
    let plugin = Plugin::new(&mesh.agent.run_dir()).unwrap();
    let mut clock = WallClock::take();
    for seconds in JUMPS {
        mesh.agent.signal(Signal::SIGSTOP).unwrap();
        let running = plugin.start("ADD", &mesh.pod.attachment(), mesh.pod.v4()).unwrap();
        clock.jump(seconds);
        mesh.agent.signal(Signal::SIGCONT).unwrap();
        let ended = running.wait().unwrap();
        assert!(matches!(ended, Ended::Done(_)), "after a jump by {seconds} s: {ended:?}");
    }
}

#[test]
fn a_manifest_that_changes_is_read_anew_whatever_its_times_are() {
    let (mesh, listeners) = node();
    let mut clock = WallClock::take();
    for (seconds, number) in JUMPS.into_iter().zip(0..) {
        clock.jump(seconds);
        let (ports, wanted) = if number % 2 == 0 { ("80", "outside") } else { ("81", "outbound") };
        let manifest = dual_stack(&mesh.pod).with_traffic("excludeOutboundPorts", ports);
        mesh.agent.enrol_as(&mesh.pod, &manifest).unwrap();
        assert_eq!(outbound(&mesh, &listeners), wanted, "after a jump by {seconds} s");
    }
}

#[test]
fn a_decision_has_the_time_of_its_moment() {
    let (mesh, listeners) = node();
    let mut clock = WallClock::take();
    for seconds in JUMPS {
        clock.jump(seconds);
        let monitor = Monitor::start(&mesh.agent, &["--json"]).unwrap();
        assert_eq!(outbound(&mesh, &listeners), "outbound");
        let decisions = monitor.wait_for_decisions(1).unwrap();
        let told = decisions.first().unwrap().get("time_ms").unwrap().as_u64().unwrap() / 1000;
        let now = unix_time();
        assert!(
            told <= now + 1 && now - told.min(now) < LATE,
            "after a jump by {seconds} s: {told}, now {now}"
        );
    }
}
