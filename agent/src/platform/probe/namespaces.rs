//! The network namespaces of the node's processes, and what redirects in them.
//!
//! Owns: the walk through `/proc`, and the reading of both kinds of iptables: those that are nf_tables in truth, by
//! netlink, and the old ones, by their own `iptables-legacy-save`, which is only asked where they are in use.
//! Never does: change anything in a namespace, or hold on to one.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::doctor::facts::{Chain, Netns, Redirections};
use crate::platform::netns::{NetnsId, NetnsThread};
use crate::platform::nft;
use crate::platform::runtime::pod_uid;

/// Namespaces that are looked into: a node has some hundred pods.
const MOST_NETNS: usize = 1024;
/// Which tables of the old iptables are in use, and what prints them: no search path, nobody else's program.
const LEGACY: [(&str, [&str; 2]); 2] = [
    (
        "/proc/thread-self/net/ip_tables_names",
        ["/usr/sbin/iptables-legacy-save", "/sbin/iptables-legacy-save"],
    ),
    (
        "/proc/thread-self/net/ip6_tables_names",
        ["/usr/sbin/ip6tables-legacy-save", "/sbin/ip6tables-legacy-save"],
    ),
];

/// An enrolled pod's netns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EnrolledNetns {
    /// `namespace/name`.
    pub pod: String,
    /// Its inode number.
    pub inode: u64,
    /// Its path, as the runtime gave it: for a pod that no process is in.
    pub path: PathBuf,
}

/// A netns that was found.
struct Found {
    file: File,
    who: String,
}

/// What redirects on the node.
pub fn redirections(thread: &Result<NetnsThread, String>, enrolled: &[EnrolledNetns]) -> Redirections {
    let mut redirections = Redirections { netns: Vec::new(), node: chains(), left_off: 0, hidden: 0 };
    let thread = match thread {
        Ok(thread) => thread,
        Err(error) => return Redirections { node: Err(error.clone()), ..redirections },
    };
    let mut found = found(&own(thread), &mut redirections);
    for pod in enrolled {
        if found.contains_key(&pod.inode) {
            continue;
        }
        // It is named below, should nothing be left of it.
        if let Ok(file) = File::open(&pod.path)
            && thread.identify(file.as_fd()).is_ok_and(|id| id.inode == pod.inode)
        {
            found.insert(pod.inode, Found { file, who: pod.pod.clone() });
        }
    }
    let names: HashMap<u64, &str> = enrolled.iter().map(|pod| (pod.inode, pod.pod.as_str())).collect();
    let mut inodes: Vec<u64> = found.keys().copied().collect();
    // Enrolled ones first: should there be too many, the rest is left off.
    inodes.sort_by_key(|inode| (!names.contains_key(inode), *inode));
    redirections.left_off = inodes.len().saturating_sub(MOST_NETNS);
    for inode in inodes.into_iter().take(MOST_NETNS) {
        let Some(Found { file, who }) = found.remove(&inode) else { continue };
        let inside = thread.run(file.as_fd(), chains).map_err(|error| error.to_string());
        redirections.netns.push(Netns {
            inode,
            who: names.get(&inode).map_or(who, |pod| format!("pod {pod}")),
            enrolled: names.contains_key(&inode),
            chains: inside.and_then(|chains| chains),
        });
    }
    redirections
}

/// The namespaces that are the node's own: ours, and that of its first process.
fn own(thread: &NetnsThread) -> HashSet<u64> {
    let first = File::open("/proc/1/ns/net").and_then(|file| NetnsId::of(file.as_fd()));
    [Some(thread.host()), first.ok()].into_iter().flatten().map(|id| id.inode).collect()
}

fn found(own: &HashSet<u64>, redirections: &mut Redirections) -> HashMap<u64, Found> {
    let mut found = HashMap::new();
    let Ok(entries) = fs::read_dir("/proc") else { return found };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    // The first process is the node's, also where it shows nobody its netns.
    for pid in pids.filter(|pid| *pid != 1) {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        match fs::metadata(&path) {
            Ok(netns) if own.contains(&netns.ino()) || found.contains_key(&netns.ino()) => {}
            Ok(_) => {
                // It may have ended, or have gone elsewhere: what was opened counts.
                let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.ino(), file)));
                if let Ok((inode, file)) = opened
                    && !own.contains(&inode)
                {
                    found.insert(inode, Found { file, who: who(pid) });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => redirections.hidden += 1,
            Err(_ended) => {}
        }
    }
    found
}

/// `process 4711 (envoy)`, and its pod's uid where its cgroup tells.
fn who(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let pod = pod_uid(&cgroup).map_or_else(String::new, |uid| format!(" of pod {uid}"));
    format!("process {pid} ({}){pod}", name.trim())
}

/// The chains of the netns that the calling thread is in.
///
/// # Errors
/// What could not be read, in words.
pub fn chains() -> Result<Vec<Chain>, String> {
    let mut chains = nft::chains().map_err(|error| error.to_string())?;
    for (tables, programs) in LEGACY {
        // Absent in a kernel without them; empty where nobody uses them.
        if fs::read_to_string(tables).is_ok_and(|tables| !tables.trim().is_empty()) {
            chains.extend(legacy(programs)?);
        }
    }
    Ok(chains)
}

fn legacy(programs: [&str; 2]) -> Result<Vec<Chain>, String> {
    let [first, _] = programs;
    let Some(program) = programs.into_iter().find(|program| Path::new(program).exists()) else {
        return Err(format!("tables of the old iptables are in use, and there is no {first} to read them"));
    };
    let output = Command::new(program)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("run {program}: {error}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(format!("{program} ended with {}: {words}", output.status));
    }
    Ok(saved(&String::from_utf8_lossy(&output.stdout)))
}

/// What iptables-save prints: `*table`, then `:CHAIN policy [packets:bytes]`.
fn saved(text: &str) -> Vec<Chain> {
    let mut table = "";
    let mut chains = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':') {
            let name = chain.split(' ').next().unwrap_or_default().to_owned();
            chains.push(Chain { table: table.to_owned(), name });
        }
    }
    chains
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_read_from_what_iptables_saves() {
        let text = "# Generated\n*nat\n:PREROUTING ACCEPT [0:0]\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -j ISTIO_OUTPUT\n\
                    COMMIT\n*mangle\n:OUTPUT ACCEPT [1:2]\nCOMMIT\n";
        let chain = |table: &str, name: &str| Chain { table: table.to_owned(), name: name.to_owned() };
        assert_eq!(
            saved(text),
            [chain("nat", "PREROUTING"), chain("nat", "ISTIO_OUTPUT"), chain("mangle", "OUTPUT")]
        );
    }
}
