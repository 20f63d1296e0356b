//! The cgroup tree, and where in it the pods' processes are.

use std::fs;
use std::path::Path;

use crate::doctor::facts::{Cgroups, ChosenBy, PodProcesses};
use crate::platform::cgroup::{self, Cgroup};

/// What a pod's path has in any hierarchy, whichever driver named it.
const OF_PODS: &str = "kubepods";

/// The tree, and the cgroup that is used: the one that is named, or found as the agent finds it.
pub fn cgroups(configured: Option<&Path>, of_agent: Option<&Path>) -> Cgroups {
    let (named, chosen_by) = match (configured, of_agent) {
        (Some(path), _) => (Some(path), ChosenBy::Flag),
        (None, Some(path)) => (Some(path), ChosenBy::Agent),
        (None, None) => (None, ChosenBy::Auto),
    };
    let target = Cgroup::find(named).map(|cgroup| cgroup.path).map_err(|error| error.to_string());
    let v2 = cgroup::mounts("cgroup2");
    let pods = match (&target, v2.first()) {
        (Ok(target), Some(mount)) => pod_processes(target, Path::new(mount)),
        (Ok(_) | Err(_), _) => PodProcesses::default(),
    };
    Cgroups {
        v1: cgroup::mounts("cgroup"),
        v2,
        target: target.map(|path| path.display().to_string()),
        chosen_by,
        pods,
    }
}

fn pod_processes(target: &Path, mount: &Path) -> PodProcesses {
    let mut pods = PodProcesses::default();
    let Ok(entries) = fs::read_dir("/proc") else { return pods };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids {
        // It may have ended since.
        let Ok(lines) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { continue };
        pods.in_v1_alone += usize::from(cgroup::is_pods_in_v1_alone(&lines));
        let Some(path) = pods_path(&lines) else { continue };
        // A path from outside of our cgroup namespace begins so, and cannot be compared.
        if path.starts_with("/..") {
            continue;
        }
        if mount.join(path.trim_start_matches('/')).starts_with(target) {
            pods.inside += 1;
        } else {
            pods.outside += 1;
            pods.example.get_or_insert_with(|| (pid, path.to_owned()));
        }
    }
    pods
}

/// The path in version 2 of a process that some hierarchy has as a pod's. Lines are `ID:CONTROLLERS:PATH`.
fn pods_path(lines: &str) -> Option<&str> {
    let mut v2 = None;
    let mut of_pod = false;
    for line in lines.lines() {
        let mut fields = line.splitn(3, ':');
        let (hierarchy, path) = (fields.next()?, fields.nth(1)?);
        of_pod |= path.contains(OF_PODS);
        if hierarchy == "0" {
            v2 = Some(path);
        }
    }
    v2.filter(|_path| of_pod)
}

#[cfg(test)]
mod tests {
    use super::pods_path;

    #[test]
    fn a_pods_process_is_known_by_any_hierarchy() {
        let hybrid = "5:memory:/kubepods/burstable/pod1/c1\n1:name=systemd:/kubepods/pod1\n0::/\n";
        assert_eq!(pods_path(hybrid), Some("/"));
        let unified = "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-c1.scope\n";
        assert_eq!(pods_path(unified), Some("/kubepods.slice/kubepods-pod1.slice/cri-containerd-c1.scope"));
        assert_eq!(pods_path("5:memory:/system.slice\n0::/system.slice/a:b.service\n"), None);
        assert_eq!(pods_path(""), None);
    }
}
