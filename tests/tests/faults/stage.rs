//! The stage that faults happen on: the agent, what it serves, and whether all is as it should be afterwards.

use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use veer_common::cni::{Reply, Verb};
use veer_common::maps::name;
use veer_tests::agent::Agent;
use veer_tests::attachment;
use veer_tests::bare_pod::BarePod;
use veer_tests::launch::Launch;
use veer_tests::pinned::{Counts, Pinned};
use veer_tests::plugin::Plugin;
use veer_tests::pod::TestPod;

use super::load::Load;
use super::scene::Scene;

/// How much is done of each fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// SIGKILLs of the agent.
    pub(crate) kills: u64,
    /// Upgrades, each there and back.
    pub(crate) upgrades: u64,
    /// Agents that are started two at once.
    pub(crate) pairs: u64,
    /// ADDs and DELs by many plugins at once.
    pub(crate) operations: u64,
    /// Plugins that are killed in the middle of an ADD.
    pub(crate) plugins: u64,
    /// Calls of bpf(2) that the kernel refuses, or that the agent dies at, of each kind; all if there are fewer.
    pub(crate) calls: usize,
}

impl Extent {
    /// Within all tests: seconds.
    pub(crate) const LEAN: Self =
        Self { kills: 20, upgrades: 2, pairs: 3, operations: 500, plugins: 40, calls: 4 };
    /// By itself: minutes.
    pub(crate) const FULL: Self =
        Self { kills: 200, upgrades: 20, pairs: 20, operations: 5000, plugins: 500, calls: 120 };
}

/// The stage.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    /// The agent; it runs and serves before and after each fault.
    pub(crate) agent: Agent,
    /// What it serves.
    pub(crate) scene: &'a Scene,
    /// Who asks all the time.
    pub(crate) load: &'a Load,
    /// The plugin of the node.
    pub(crate) plugin: Plugin,
    /// Whether the agent is launched in another way than at first.
    is_odd: bool,
    /// For moments and choices; the same again from a seed.
    pub(crate) random: fastrand::Rng,
    /// How much to do.
    pub(crate) extent: Extent,
    spare: BarePod,
}

/// What a fault has to tell.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// How often it was done.
    pub(crate) times: u64,
    /// What was seen, in a few words.
    pub(crate) seen: String,
}

impl<'a> Stage<'a> {
    /// Sets it.
    pub(crate) fn set(
        agent: Agent,
        scene: &'a Scene,
        load: &'a Load,
        extent: Extent,
        random: fastrand::Rng,
    ) -> Result<Self> {
        let plugin = Plugin::new(&agent.run_dir())?;
        let spare = BarePod::new("spare", u16::MAX)?;
        agent.write_manifest(&spare.manifest())?;
        Ok(Self { agent, scene, load, plugin, is_odd: false, random, extent, spare })
    }

    /// Pods that nobody talks to, with their manifests in place.
    pub(crate) fn bare_pods(&self, name: &str, count: u16) -> Result<Vec<BarePod>> {
        let pod = |number| {
            let pod = BarePod::new(&format!("{name}-{number}"), number)?;
            self.agent.write_manifest(&pod.manifest())?;
            Ok(pod)
        };
        (0..count).map(pod).collect()
    }

    /// Takes the manifests of pods away that are no more.
    pub(crate) fn forget(&self, pods: &[BarePod]) -> Result<()> {
        pods.iter().try_for_each(|pod| self.agent.remove_manifest(&pod.manifest()))
    }

    /// ADD of a bare pod, by the plugin.
    pub(crate) fn add(&self, pod: &BarePod) -> Result<()> {
        self.plugin.succeed("ADD", &pod.attachment(), pod.v4()).map(drop)
    }

    /// DEL of a bare pod, by the plugin.
    pub(crate) fn del(&self, pod: &BarePod) -> Result<()> {
        self.plugin.succeed("DEL", &pod.attachment(), pod.v4()).map(drop)
    }

    /// ADD of a bare pod, as the plugin asks for it.
    pub(crate) fn ask_add(&self, pod: &BarePod) -> Result<Reply> {
        let add = Verb::Add(pod.attachment());
        attachment::ask(&self.agent.run_dir(), add, Some(pod.netns().as_fd()))
    }

    /// Whether a bare pod is enrolled, and as ADD left it.
    pub(crate) fn is_enrolled(&self, pod: &BarePod) -> Result<bool> {
        Ok(self.agent.ask(Verb::Check(pod.attachment()))? == Reply::Done)
    }

    /// Map entries, but for connections on their way: of those the load always has some.
    pub(crate) fn entries(&self) -> Result<Counts> {
        let mut counts = Pinned::of(&self.agent).counts()?;
        counts.remove(name::HAND_OFFS);
        Ok(counts)
    }

    /// Starts the agent in another way, until [`restore`](Self::restore).
    pub(crate) fn relaunch(&mut self, launch: Launch) -> Result<()> {
        self.agent.stop()?;
        self.is_odd = true;
        self.agent.use_launch(launch);
        self.agent.start_again()?;
        self.agent.wait_settled()
    }

    /// Has the agent run and serve as at first, whatever the fault has left.
    pub(crate) fn restore(&mut self) -> Result<()> {
        if self.is_serving() && !self.is_odd {
            return Ok(());
        }
        self.agent.kill()?;
        self.is_odd = false;
        self.agent.use_launch(Launch::new());
        self.agent.start_again()
    }

    fn is_serving(&self) -> bool {
        self.agent.ask(Verb::Status).is_ok_and(|reply| reply == Reply::Done)
    }

    /// What is wrong with the pods: who is enrolled and should not be, who should be and is not, who is not
    /// as ADD left him, and whether another pod can come and go.
    pub(crate) fn wrong_pods(&self) -> Vec<String> {
        let checks = [
            self.roster(),
            self.as_added(&self.scene.a),
            self.as_added(&self.scene.b),
            self.come_and_go(),
            self.attached(),
        ];
        checks.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect()
    }

    fn roster(&self) -> Result<()> {
        let pods = self.agent.json(&["pods"])?;
        let names = pods.as_array().context("veer pods tells no list")?.iter();
        let mut names: Vec<_> = names.filter_map(|pod| pod.get("name")?.as_str()).collect();
        names.sort_unstable();
        if names != [self.scene.a.name(), self.scene.b.name()] {
            bail!("enrolled are {names:?}");
        }
        Ok(())
    }

    fn as_added(&self, pod: &TestPod) -> Result<()> {
        match self.agent.check(pod)? {
            Reply::Done => Ok(()),
            other @ (Reply::Passed { .. } | Reply::Failed { .. }) => {
                bail!("CHECK of {} says {other:?}", pod.name())
            }
        }
    }

    fn come_and_go(&self) -> Result<()> {
        self.add(&self.spare)?;
        self.plugin.succeed("CHECK", &self.spare.attachment(), self.spare.v4())?;
        self.del(&self.spare)
    }

    fn attached(&self) -> Result<()> {
        let output = self.agent.command(&["status"]).output().context("run veer status")?;
        if !output.status.success() {
            bail!("veer status: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}
