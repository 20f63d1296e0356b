//! What a pod waits for when it starts: the plugin as a whole process, and istio-init's rules as one.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use veer_tests::agent::Agent;
use veer_tests::cgroup::Cgroup;
use veer_tests::istio_init;
use veer_tests::netns::NetNs;
use veer_tests::plugin::Plugin;
use veer_tests::pod::{TestPod, World};

use crate::footprint::announce;
use crate::progress::Progress;
use crate::report::{Joining, Timing, milliseconds};
use crate::run::Extent;

/// Times all of it, in turns. `agent_add` has been timed already.
pub(crate) fn measure(agent_add: Vec<f64>, extent: Extent, progress: &Progress) -> Result<Joining> {
    progress.say(&format!("attaching {} pods by whole processes", extent.processes));
    let cgroup = Cgroup::new()?;
    let agent = Agent::start(&cgroup)?;
    let plugin = Plugin::new(&agent.run_dir())?;
    let world = World::new()?;
    let (mut plugin_add, mut v4, mut v6) = (Vec::new(), Vec::new(), Vec::new());
    for (number, name) in announce(&agent, extent.processes)?.iter().enumerate() {
        // Both get a netns that nothing has happened in yet.
        let pod = TestPod::new(&world, &cgroup, name)?;
        let bare = NetNs::new()?;
        let mut add = || {
            plugin_add.push(milliseconds(plugin.succeed("ADD", &pod.attachment(), pod.v4())?));
            agent.unenrol(&pod)
        };
        let mut restore = || -> Result<()> {
            let (rules_v4, rules_v6) =
                (istio_init::rules("127.0.0.1/32", "127.0.0.6/32"), istio_init::rules("::1/128", "::6/128"));
            v4.push(milliseconds(run_restore(&bare, "iptables-restore", &rules_v4)?));
            v6.push(milliseconds(run_restore(&bare, "ip6tables-restore", &rules_v6)?));
            Ok(())
        };
        if number % 2 == 0 {
            add()?;
            restore()?;
        } else {
            restore()?;
            add()?;
        }
    }
    Ok(Joining {
        agent_add: Timing::of(agent_add)?,
        plugin_add: Timing::of(plugin_add)?,
        iptables_restore: Timing::of(v4)?,
        ip6tables_restore: Timing::of(v6)?,
    })
}

/// The rules of one family into a netns.
fn run_restore(netns: &NetNs, program: &str, rules: &str) -> Result<Duration> {
    netns
        .run(|| whole_process(&mut Command::new(program), rules))?
        .with_context(|| format!("{program} (package iptables)"))
}

/// From the start of a process to its end, its input included.
fn whole_process(command: &mut Command, input: &str) -> Result<Duration> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
    // Dropped at the end of the statement, which is the end of its input.
    child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()))?;
    let output = child.wait_with_output().context("wait for it")?;
    let took = start.elapsed();
    if !output.status.success() {
        let said = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
        bail!("{} ended with {}: {}", command.get_program().display(), output.status, said.join(" "));
    }
    Ok(took)
}
