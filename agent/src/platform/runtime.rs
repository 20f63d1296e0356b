//! What runs on the node: the attachments that the runtime has noted, and the processes of pods.
//!
//! Owns: the form of libcni's cache (`cachedInfo` in its `libcni/api.go`), which containerd and CRI-O keep in
//! `/var/lib/cni/results`, and the walk through `/proc`. Never does: choose; that is [`locate`](crate::locate).
//! Called by: `reconcile`, and `enrol` for who is in a netns.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use serde::Deserialize;
use veer_common::cni::{Attachment, PodReference};

use super::netns::{NetnsId, NetnsThread};
use crate::locate::{Attached, Located, Process, Seen};

/// Files of the cache that are read: a node has some hundred pods, of a few networks each.
const MOST_FILES: usize = 16_384;
/// Longest file that is read, in bytes: it holds the network's configuration and the result.
const LONGEST_FILE: u64 = 1 << 20;
/// Where containerd, CRI-O and `ip netns` name namespaces.
const NAMED: [&str; 2] = ["/run/netns", "/var/run/netns"];
/// What libcni calls the form of its files.
const CACHE_KIND: &str = "cniCacheV1";

/// One of libcni's files.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    kind: String,
    container_id: String,
    if_name: String,
    network_name: String,
    /// Since libcni 1.2.
    #[serde(default)]
    netns: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    result: CachedResult,
}

#[derive(Default, Deserialize)]
struct CachedResult {
    #[serde(default)]
    interfaces: Vec<CachedInterface>,
}

#[derive(Deserialize)]
struct CachedInterface {
    name: String,
    #[serde(default)]
    sandbox: String,
}

impl Cached {
    /// The attachment; `None` where no pod or netns is named.
    fn attachment(self) -> Option<Attachment> {
        let argument =
            |name: &str| self.cni_args.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let pod = PodReference {
            namespace: argument("K8S_POD_NAMESPACE")?,
            name: argument("K8S_POD_NAME")?,
            uid: argument("K8S_POD_UID"),
        };
        let sandbox = || {
            let inside = self.result.interfaces.iter().find(|interface| interface.name == self.if_name)?;
            Some(inside.sandbox.clone())
        };
        let netns = if self.netns.is_empty() { sandbox()? } else { self.netns.clone() };
        let is_one = self.kind == CACHE_KIND && netns.starts_with('/');
        is_one.then_some(Attachment {
            container_id: self.container_id,
            netns,
            interface: self.if_name,
            network: self.network_name,
            pod: Some(pod),
        })
    }
}

/// Everything that tells which pod is in which netns. A cache that is not there says nothing.
///
/// # Errors
/// If `/proc` or the cache cannot be read.
pub fn seen(cache: &Path, thread: &NetnsThread) -> io::Result<Seen> {
    let first = File::open("/proc/1/ns/net").and_then(|file| NetnsId::of(file.as_fd()));
    let own: BTreeSet<u64> =
        [Some(thread.host()), first.ok()].into_iter().flatten().map(|id| id.inode).collect();
    Ok(Seen { attached: attached(cache)?, processes: processes()?, own, named: named() })
}

/// Opens the netns that was located; `None` if it is another one by now.
pub fn open(located: &Located) -> Option<OwnedFd> {
    let file = open_nonblocking(Path::new(&located.attachment.netns)).ok()?;
    let is_it = NetnsId::of(file.as_fd()).is_ok_and(|id| id.inode == located.inode);
    is_it.then(|| file.into())
}

/// Whether no process is in a netns. False where that cannot be told.
pub fn is_deserted(netns: NetnsId) -> bool {
    let Ok(pids) = pids() else { return false };
    // The first one is the node's, and who has less rights than it may not look at it.
    pids.filter(|pid| *pid != 1).map(|pid| fs::metadata(format!("/proc/{pid}/ns/net"))).all(|found| {
        match found {
            Ok(found) => (found.dev(), found.ino()) != (netns.device, netns.inode),
            // It has ended meanwhile, or has no netns any more because it is about to.
            Err(error) => {
                error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
            }
        }
    })
}

/// Whatever is at a path must not be able to hold us up, as a FIFO would.
fn open_nonblocking(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

fn attached(cache: &Path) -> io::Result<Vec<Attached>> {
    let entries = match fs::read_dir(cache.join("results")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut attached = Vec::new();
    for entry in entries.take(MOST_FILES) {
        let path = entry?.path();
        match read(&path) {
            Ok(cached) => attached.extend(cached.attachment().map(|attachment| {
                let inode = netns_inode(Path::new(&attachment.netns));
                Attached { attachment, inode }
            })),
            // libcni writes them in place, and removes them at DEL: it may be half of one, or gone.
            Err(error) => tracing::debug!(path = %path.display(), %error, "no note of an attachment"),
        }
    }
    Ok(attached)
}

fn read(path: &Path) -> io::Result<Cached> {
    let mut bytes = Vec::new();
    open_nonblocking(path)?.take(LONGEST_FILE).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// The inode number of the netns at a path, if there is one.
fn netns_inode(path: &Path) -> Option<u64> {
    Some(open_nonblocking(path).ok()?.metadata().ok()?.ino())
}

/// The namespaces that have a name where runtimes put them.
fn named() -> BTreeMap<u64, String> {
    let entries = NAMED.into_iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten().flatten();
    let of = |entry: fs::DirEntry| Some((entry.metadata().ok()?.ino(), entry.path().to_str()?.to_owned()));
    entries.filter_map(of).collect()
}

fn pids() -> io::Result<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

fn processes() -> io::Result<Vec<Process>> {
    let pids = pids()?;
    // Any of them may end at any moment.
    let process = |pid: u32| {
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let pod_uid = pod_uid(&cgroup)?;
        let inode = fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino();
        Some(Process { pid, pod_uid, inode })
    };
    Ok(pids.filter_map(process).collect())
}

/// The uid of the pod that a process is of, by its `/proc/PID/cgroup`:
/// `…/kubepods-burstable-pod7c1e_…e9.slice/…` or `…/kubepods/burstable/pod7c1e-…-e9/…`
pub fn pod_uid(cgroup: &str) -> Option<String> {
    let part = cgroup
        .split(['/', '\n'])
        .find(|part| part.starts_with("pod") || (part.starts_with("kubepods") && part.contains("-pod")))?;
    let uid = part.rsplit_once("pod")?.1.trim_end_matches(".slice").replace('_', "-");
    (uid.len() == 36 || uid.len() == 32).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As libcni itself has left them, driven by its cnitool: before and since it notes the netns.
    const OLDER: &str = include_str!("../../tests/cni-cache/libcni-1.1.2.json");
    const YOUNGER: &str = include_str!("../../tests/cni-cache/libcni-1.3.0.json");

    fn attachment(text: &str) -> Option<Attachment> {
        serde_json::from_str::<Cached>(text).ok()?.attachment()
    }

    #[test]
    fn the_cache_names_the_attachment_as_its_add_did() {
        let expected = Attachment {
            container_id: "c0ffee".to_owned(),
            netns: "/run/netns/cni-1".to_owned(),
            interface: "eth0".to_owned(),
            network: "pods".to_owned(),
            pod: Some(PodReference {
                namespace: "shop".to_owned(),
                name: "cart".to_owned(),
                uid: Some("7c1e34f0-95b4-4b63-8a50-2f2d9d5bb0e9".to_owned()),
            }),
        };
        assert_eq!(attachment(YOUNGER).as_ref(), Some(&expected));
        assert_eq!(attachment(OLDER).as_ref(), Some(&expected), "from the result's interface");
        assert_eq!(attachment(&OLDER.replace("/run/netns/cni-1", "")), None, "nothing says where");
    }

    #[test]
    fn what_is_of_no_pod_or_no_cache_is_left_out() {
        assert_eq!(attachment(&YOUNGER.replace("K8S_POD_NAME\"", "OTHER\"")), None);
        assert_eq!(attachment(&YOUNGER.replace("cniCacheV1", "cniCacheV2")), None);
        assert_eq!(attachment("{}"), None);
    }

    #[test]
    fn a_netns_is_deserted_when_no_process_is_in_it() {
        let own =
            NetnsId::of(File::open(format!("/proc/{}/ns/net", std::process::id())).unwrap().as_fd()).unwrap();
        assert!(!is_deserted(own));
        assert!(is_deserted(NetnsId { inode: 1, ..own }));
    }

    #[test]
    fn the_pod_of_a_process_is_in_its_cgroup() {
        let uid = "7c1e34f0-95b4-4b63-8a50-2f2d9d5bb0e9";
        let systemd = format!(
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice/cri-1.scope\n",
            uid.replace('-', "_")
        );
        assert_eq!(pod_uid(&systemd).as_deref(), Some(uid));
        assert_eq!(pod_uid(&format!("0::/kubepods/besteffort/pod{uid}/abc\n")).as_deref(), Some(uid));
        assert_eq!(pod_uid("0::/system.slice/podman.service\n"), None);
    }
}
