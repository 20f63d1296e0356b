//! Work that goes on in threads while something happens to the node.

use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Result, bail, ensure};

use crate::dst_server::{self, DstServer};
use crate::launch::Identity;
use crate::mesh::{INBOUND, OUTBOUND};
use crate::pod::{REMOTE_V4, TestPod, World};
use crate::socket_maker::Maker;
use crate::wait;

/// How far the work has come, for whoever does something to the node meanwhile.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    stop: AtomicBool,
    failures: Mutex<Vec<String>>,
}

impl Progress {
    /// Waits until so much more was done than at the time of the call.
    pub fn wait_for(&self, more: u64) -> Result<()> {
        let goal = self.done() + more;
        wait::until("the load to go on", wait::LIMIT, || self.done() >= goal || self.failed())?;
        if self.failed() {
            bail!("the load failed");
        }
        Ok(())
    }

    /// How much was done so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    fn failed(&self) -> bool {
        self.failures.lock().is_ok_and(|failures| !failures.is_empty())
    }

    fn fail(&self, error: &anyhow::Error) {
        if let Ok(mut failures) = self.failures.lock() {
            failures.push(format!("{error:#}"));
        }
    }
}

/// Ends the work, after a panic too: the threads would wait for ever, and the test with them.
struct Stop<'a>(&'a Progress);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

/// Does `work` over and over in a thread for each of `workers` while `meanwhile` runs; a thread ends at its
/// first failure. `work` is told its worker and how often that one has worked before. Gives back how much
/// was done in all.
///
/// # Errors
/// All failures of the work.
pub fn during<W: Sync>(
    workers: &[W],
    work: impl Fn(&W, u64) -> Result<()> + Sync,
    meanwhile: impl FnOnce(&Progress),
) -> Result<u64> {
    let progress = Progress::default();
    thread::scope(|scope| {
        for worker in workers {
            let (progress, work) = (&progress, &work);
            scope.spawn(move || {
                for turn in 0.. {
                    if progress.stop.load(Ordering::SeqCst) {
                        return;
                    }
                    if let Err(error) = work(worker, turn) {
                        return progress.fail(&error);
                    }
                    progress.done.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let _stop = Stop(&progress);
        meanwhile(&progress);
    });
    match progress.failures.lock() {
        Ok(failures) if failures.is_empty() => Ok(progress.done()),
        Ok(failures) => bail!("{} of the load's threads failed: {}", failures.len(), failures.join("; ")),
        Err(_panicked) => bail!("a thread of the load panicked"),
    }
}

/// Who dials: an app of the pod, or somebody in the world.
enum Dialler<'a> {
    App(Maker),
    World(&'a World),
}

/// Dials out of the pod and into it for as long as `meanwhile` takes; every single connection must reach the
/// proxy, which must know where it was dialled. Gives back how many were made in either direction.
///
/// # Errors
/// Every connection that was lost, or whose original destination was.
pub fn both_ways(pod: &TestPod, world: &World, meanwhile: impl FnOnce(&Progress)) -> Result<[u64; 2]> {
    let serve = |port| DstServer::start(pod.proxy(), (Ipv4Addr::UNSPECIFIED, port));
    let servers = [serve(OUTBOUND)?, serve(INBOUND)?];
    let app = || pod.maker(Identity::app()).map(Dialler::App);
    let diallers = [app()?, app()?, Dialler::World(world)];
    let work = |dialler: &Dialler<'_>, turn| {
        let port = 20_000 + u16::try_from(turn % 40_000)?;
        match dialler {
            Dialler::App(maker) => dst_server::ask(maker, (REMOTE_V4, port)),
            Dialler::World(world) => dst_server::confirm(world.tcp4()?, (pod.v4(), port).into()),
        }
    };
    let made = during(&diallers, work, meanwhile)?;
    let accepted = servers.each_ref().map(DstServer::accepted);
    ensure!(accepted.iter().sum::<u64>() == made, "{made} were made, and the proxy has {accepted:?}");
    Ok(accepted)
}
