//! `cni-iptables`: a CNI plugin that does to a pod what Istio's plugin does to one of the mesh: it runs Istio's own program in
//! the pod's netns. What veer is compared with, never a part of it.
//!
//! Less than Istio's plugin, in its favour: it asks no API server for the pod, and takes each for one of the mesh.
//! `istio-iptables` is beside it.

#![expect(
    clippy::disallowed_methods,
    reason = "the plugin enters the pod's netns for the program that it runs"
)]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use veer_tests::istio_init;

fn main() -> Result<()> {
    let configuration: Value = serde_json::from_reader(io::stdin()).context("read the configuration")?;
    let verb = std::env::var("CNI_COMMAND").context("read CNI_COMMAND")?;
    match verb.as_str() {
        "ADD" => {
            program(&enter()?)?;
            answer(configuration.get("prevResult").context("the configuration has no prevResult")?)
        }
        "VERSION" => {
            answer(&serde_json::json!({"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}))
        }
        "CHECK" => check(&enter()?),
        // The rules go with the netns.
        _ => Ok(()),
    }
}

/// Enters the pod's netns, and gives back where that is.
fn enter() -> Result<String> {
    let netns = std::env::var("CNI_NETNS").context("read CNI_NETNS")?;
    let file = File::open(&netns).with_context(|| format!("open {netns}"))?;
    setns(file.as_fd(), CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {netns}"))?;
    Ok(netns)
}

/// Whether the rules are there.
fn check(netns: &str) -> Result<()> {
    let output =
        Command::new("iptables-save").args(["--table", "nat"]).output().context("run iptables-save")?;
    let rules = String::from_utf8_lossy(&output.stdout);
    ensure!(rules.contains("-A ISTIO_OUTPUT"), "{netns} has no rules of Istio's: {rules}");
    Ok(())
}

/// With the flags that stand for how Istio's plugin calls the same code: a lock of the pod's own among them.
fn program(netns: &str) -> Result<()> {
    let own = std::env::current_exe().context("find the running executable")?;
    let mut command = Command::new(own.with_file_name("istio-iptables"));
    command.args(istio_init::injected()).args(["--cni-mode", "--network-namespace", netns]);
    let output = command.output().context("run istio-iptables")?;
    if !output.status.success() {
        let said = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned());
        bail!("istio-iptables ended with {}: {}", output.status, said.join("\n"));
    }
    Ok(())
}

fn answer(result: &Value) -> Result<()> {
    io::stdout().write_all(result.to_string().as_bytes()).context("write the result")
}
