//! What the pods do not have: capabilities, netfilter rules, tracked connections.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result};
use veer_tests::credentials::Credentials;
use veer_tests::netfilter::Netfilter;

use crate::node::Node;
use crate::pod::Pod;
use crate::proxy::Driver;
use crate::report::PodProcess;

/// Programs that every pod must be seen to run: a proof about no process proves nothing.
const fn programs(driver: Driver) -> &'static [&'static str] {
    match driver {
        Driver::Sidecar => &["echo-app", "envoy"],
        Driver::Node => &["echo-app"],
    }
}

/// Every process of a pod: of its cgroup, and any on the machine in its netns.
pub(crate) fn processes(pod: &Pod) -> Result<Vec<PodProcess>> {
    let netns = fs::metadata(pod.netns.path()).context("look at the pod's netns")?.ino();
    let mut pids: BTreeSet<u32> = pod.cgroup.processes()?.into_iter().collect();
    for entry in fs::read_dir("/proc").context("list processes")?.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        // One that has just ended is nobody's.
        let inside = fs::metadata(entry.path().join("ns/net")).is_ok_and(|own| own.ino() == netns);
        pids.extend(pid.filter(|_| inside));
    }
    let process = |pid| Ok(PodProcess { pod: pod.name.to_owned(), credentials: Credentials::of(pid)? });
    pids.into_iter().map(process).collect()
}

/// What is wrong with the processes of a pod.
pub(crate) fn faults(pod: &str, driver: Driver, processes: &[PodProcess]) -> Vec<String> {
    let processes: Vec<_> = processes.iter().filter(|process| process.pod == pod).collect();
    let runs = |program: &&&str| processes.iter().any(|process| process.credentials.program == **program);
    let missing = programs(driver).iter().filter(|program| !runs(program));
    let mut faults: Vec<_> = missing.map(|program| format!("{pod} does not run {program}")).collect();
    for process in &processes {
        let Credentials { pid, program, capabilities, no_new_privs, .. } = &process.credentials;
        if !capabilities.none() || !no_new_privs {
            faults.push(format!(
                "{pod}: {program} ({pid}) has capabilities, or can get them: {capabilities:?}"
            ));
        }
    }
    faults
}

/// Netfilter in each pod's netns, and in the node's.
pub(crate) fn netfilter(node: &Node, pods: &[&Pod]) -> Result<BTreeMap<String, Netfilter>> {
    let namespaces = pods.iter().map(|pod| (pod.name, &pod.netns)).chain([("node", &node.netns)]);
    namespaces.map(|(name, netns)| Ok((name.to_owned(), Netfilter::of(netns)?))).collect()
}

/// Resident memory of a process.
pub(crate) fn resident_kb(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
    resident.and_then(|kb| kb.parse().ok()).with_context(|| format!("{path} has no VmRSS"))
}
