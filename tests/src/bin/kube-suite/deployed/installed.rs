//! What the manifests bring about, and with which rights.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use veer_tests::kube::pods::{Shape, Sidecar, events};

use super::Deployed;

/// Where the capabilities are documented.
const DOCUMENTED: &str = include_str!("../../../../../SECURITY.md");
/// Numbers of capabilities, `linux/capability.h`: those that the manifests may name.
const NUMBERS: [(&str, u32); 9] = [
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_DAC_READ_SEARCH", 2),
    ("CAP_NET_BROADCAST", 11),
    ("CAP_NET_ADMIN", 12),
    ("CAP_NET_RAW", 13),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
];

/// Ready, with the plugin where the runtime looks for it and in the file that it uses.
pub(crate) fn ready(deployed: &mut Deployed) -> Result<String> {
    let agent = deployed.agent()?;
    ensure!(deployed.is_chained(), "{} is without veer", deployed.conflist().display());
    let plugin = deployed.stage.node.directory().join("bin/veer-cni");
    let there = fs::read(&plugin).with_context(|| format!("read {}", plugin.display()))?;
    ensure!(there == fs::read(super::file("veer-cni")?)?, "the plugin is not the image's");
    let mode = fs::metadata(&plugin)?.permissions().mode() & 0o7777;
    ensure!(mode == 0o755, "the plugin's mode is {mode:o}");
    // The API server has taken it from a token of the pod.
    deployed.wait_condition("True")?;
    Ok(format!("{} from {}", agent.pod, agent.image))
}

/// Both shapes of a sidecar, with real Envoys; the Events of the agent's own account.
pub(crate) fn redirected(deployed: &mut Deployed) -> Result<String> {
    let client = deployed.client().clone();
    let classic = Shape::new("classic", Sidecar::Classic).run(&client)?;
    let native = Shape::new("native", Sidecar::Native).run(&client)?;
    deployed.stage.prove_redirected(&classic, &native)?;
    deployed.stage.prove_redirected(&native, &classic)?;
    let told = events(&client, "default", "classic");
    ensure!(told.contains("VeerEnrolled"), "{told}");
    classic.delete(&client)?;
    native.delete(&client)?;
    deployed.stage.wait_nobody_enrolled()?;
    Ok("classic and native, inbound and outbound, and an Event on each".to_owned())
}

/// No more than is documented, in the manifest and in the kernel.
pub(crate) fn privileges(deployed: &mut Deployed) -> Result<String> {
    let pods = deployed.client().get("/api/v1/pods")?;
    for pod in pods.pointer("/items").and_then(Value::as_array).context("a list of pods")? {
        unprivileged(pod)?;
    }
    let section = DOCUMENTED.split("## Privileges").nth(1).context("SECURITY.md tells of privileges")?;
    // What is said of other processes has headings of its own.
    let section = section.split("\n#").next().unwrap_or_default();
    let mut documented: Vec<&str> = section
        .split(|c: char| !c.is_ascii_uppercase() && c != '_')
        .filter(|word| word.starts_with("CAP_"))
        .collect();
    documented.sort_unstable();
    documented.dedup();
    let bit =
        |name: &&str| NUMBERS.iter().find(|(known, _)| known == name).map(|(_, number)| 1_u64 << number);
    let expected =
        documented.iter().map(|name| bit(name).with_context(|| format!("{name} has no number here")));
    let expected = expected.sum::<Result<u64>>()?;
    let agent = deployed.agent()?;
    let process = deployed.stage.node.process_of(&agent.container)?;
    may_only(process, expected)?;
    let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo")).context("read its mounts")?;
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).context("it has a root")?;
    ensure!(
        root.split(' ').nth(5).is_some_and(|options| options.split(',').any(|one| one == "ro")),
        "{root}"
    );
    Ok(format!("{} capabilities, seccomp's filter, a root that is read-only", documented.len()))
}

/// That a process has these capabilities and no way to others, and a filter of seccomp's.
pub(super) fn may_only(process: u32, capabilities: u64) -> Result<()> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).context("read a process's status")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).with_context(|| format!("the status has no {name}"))
    };
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let has = u64::from_str_radix(field(set)?, 16).with_context(|| format!("parse {set}"))?;
        ensure!(has == capabilities, "{set} is {has:x}, and {capabilities:x} are documented");
    }
    ensure!(field("NoNewPrivs")? == "1" && field("Seccomp")? == "2", "{status}");
    Ok(())
}

fn unprivileged(pod: &Value) -> Result<()> {
    let lists = ["/spec/containers", "/spec/initContainers"].map(|list| pod.pointer(list));
    let containers = lists.into_iter().flatten().filter_map(Value::as_array).flatten();
    for container in containers {
        let privileged = container.pointer("/securityContext/privileged");
        ensure!(privileged.is_none_or(|value| *value == json!(false)), "privileged: {container:#}");
    }
    Ok(())
}
