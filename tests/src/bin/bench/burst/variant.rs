//! What is behind the primary CNI in a burst, and the burst itself.

use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use veer_tests::istio_init;
use veer_tests::kube::client::LIMIT;
use veer_tests::kube::crowd::Crowd;
use veer_tests::kube::recorder::{self, Record};
use veer_tests::kube::{agent, node};
use veer_tests::launch::{kit_binary, veer_binary};
use veer_tests::process::Process;
use veer_tests::wait;

use super::Burst;
use crate::report::milliseconds;

/// What the runtime runs behind the primary CNI.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Variant {
    /// Nothing.
    None,
    /// veer's plugin, which asks veer's agent.
    Veer,
    /// A plugin that runs Istio's own program in the pod's netns, as Istio's plugin does with the same code.
    Iptables,
}

impl Variant {
    pub(crate) const ALL: [Self; 3] = [Self::None, Self::Veer, Self::Iptables];

    /// In each round another one begins, and in every other three the way round is the other.
    pub(crate) fn order(round: u16) -> [Self; 3] {
        let mut order = Self::ALL;
        if round / 3 % 2 == 1 {
            order.reverse();
        }
        order.rotate_left(usize::from(round % 3));
        order
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "no plugin",
            Self::Veer => "veer",
            Self::Iptables => "istio-iptables",
        }
    }

    /// Its program's name in the directory of plugins.
    const fn plugin(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Veer => Some("veer-cni"),
            Self::Iptables => Some("cni-iptables"),
        }
    }

    fn entry(self) -> Vec<Value> {
        let of = |plugin: &str| json!({"type": plugin, "runDir": "/run/veer"});
        self.plugin().map(of).into_iter().collect()
    }
}

/// A Kubernetes node for bursts.
pub(super) struct Node {
    agent: Option<Process>,
    kubeconfig: PathBuf,
    kubernetes: node::Node,
    bursts: usize,
}

impl Node {
    pub(super) fn start() -> Result<Self> {
        let node = node::Node::start()?;
        let kubeconfig = agent::grant(node.control_plane())?;
        recorder::install(&node, &veer_binary("VEER_CNI_BIN", "veer-cni")?, "veer-cni")?;
        recorder::install(&node, &kit_binary("cni-iptables")?, "cni-iptables")?;
        recorder::place(&node, &istio_init::program()?, "istio-iptables")?;
        Ok(Self { agent: None, kubeconfig, kubernetes: node, bursts: 0 })
    }

    /// Everything of one burst: the chain, a pod that shows that the runtime has it, the pods, and their end.
    pub(super) fn burst(&mut self, variant: Variant, count: usize) -> Result<Burst> {
        // Beside the others' pods no agent waits for anything.
        match (variant, &mut self.agent) {
            (Variant::Veer, None) => {
                self.agent = Some(agent::start(&self.kubernetes, &self.kubeconfig, &[])?);
            }
            (Variant::None | Variant::Iptables, Some(agent)) => {
                agent.stop()?;
                self.agent = None;
            }
            _ => {}
        }
        self.kubernetes.write_conflist(&variant.entry())?;
        self.wait_chained(variant)?;
        let client = self.kubernetes.control_plane().client();
        self.bursts += 1;
        let name = format!("burst-{}", self.bursts);
        recorder::forget(&self.kubernetes)?;
        let crowd = Crowd::create(client, &name, count)?;
        let running_ms = crowd.wait_running(client)?.into_iter().map(milliseconds).collect();
        let step_ms = self.steps(variant, &name, count)?;
        crowd.delete(client)?;
        Ok(Burst { variant, step_ms, running_ms })
    }

    /// The runtime hears of another chain some time after it has been written.
    fn wait_chained(&self, variant: Variant) -> Result<()> {
        let client = self.kubernetes.control_plane().client();
        let mut tried = 0;
        wait::until_ok("the runtime to have the chain", LIMIT, || {
            tried += 1;
            recorder::forget(&self.kubernetes)?;
            let name = format!("chain-{}-{tried}", self.bursts);
            let crowd = Crowd::create(client, &name, 1)?;
            crowd.wait_running(client)?;
            // A DEL of a pod of before may come late, and goes to the plugin of now.
            let mut records = recorder::records(&self.kubernetes)?;
            records.retain(|record| record.adds(&format!("{name}-")));
            let seen = self.is_chained(variant, &records);
            crowd.delete(client)?;
            seen
        })
    }

    /// Whether the runtime has asked the plugin for a pod, and has not where there is none; and whether the pod has the
    /// rules that it is to have.
    fn is_chained(&self, variant: Variant, records: &[Record]) -> Result<()> {
        let is_right = match variant.plugin() {
            Some(plugin) => !records.is_empty() && records.iter().all(|record| record.is_of(plugin)),
            None => records.is_empty(),
        };
        ensure!(is_right, "for {} the runtime has asked {records:?}", variant.name());
        if variant != Variant::Iptables {
            return Ok(());
        }
        let netns = records.iter().find_map(Record::netns).context("a record has a netns")?;
        let plugin = self.kubernetes.directory().join("bin/cni-iptables.real");
        let mut check = self.kubernetes.launch().command(plugin)?;
        let mut check =
            check.env("CNI_COMMAND", "CHECK").env("CNI_NETNS", netns).stdin(Stdio::piped()).spawn()?;
        // Its end is the end of the configuration.
        check.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(b"{}"))?;
        ensure!(check.wait().context("wait for the plugin")?.success(), "a pod has no rules of Istio's");
        Ok(())
    }

    /// How long each ADD took: one for each pod, all of which succeeded.
    fn steps(&self, variant: Variant, name: &str, count: usize) -> Result<Vec<f64>> {
        let adds: Vec<Record> = recorder::records(&self.kubernetes)?
            .into_iter()
            .filter(|record| record.adds(&format!("{name}-")))
            .collect();
        let expected = variant.plugin().map_or(0, |_plugin| count);
        if let Some(failed) = adds.iter().find(|record| record.status != Some(0)) {
            bail!("an ADD of {} failed: {failed:?}; the agent said {:?}", variant.name(), self.agent_log());
        }
        ensure!(adds.len() == expected, "{} ADDs of {} for {count} pods", adds.len(), variant.name());
        if variant == Variant::Veer {
            let enrolled = self.enrolled().context("ask for the enrolled pods")?;
            ensure!(enrolled == count, "{enrolled} of {count} pods are enrolled");
        }
        Ok(adds.iter().map(|record| milliseconds(Duration::from_micros(record.microseconds))).collect())
    }

    fn enrolled(&self) -> Result<usize> {
        let mut command = self.kubernetes.launch().command(veer_binary("VEER_BIN", "veer")?)?;
        let output = command.args(["pods", "--json"]).output().context("run veer pods")?;
        let pods: Vec<Value> = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        Ok(pods.len())
    }

    fn agent_log(&self) -> Option<String> {
        self.agent.as_ref().map(Process::last_words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_six_rounds_each_variant_is_twice_at_each_place() {
        for place in 0..3 {
            for variant in Variant::ALL {
                let there = (0..6).filter(|round| Variant::order(*round)[place] == variant).count();
                assert_eq!(there, 2, "{} at {place}", variant.name());
            }
        }
        assert_ne!(Variant::order(0), Variant::order(3));
    }
}
