//! Where the pods are in the cgroup v2 tree, and so where the programs are attached.
//!
//! Owns: finding the mount and the directory, and the directory of an id. Never does: make or change a cgroup.
//! Called by: `app`, `probe` and `commands`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Names of the pods' cgroup: with the systemd driver, and with cgroupfs.
const KUBEPODS: [&str; 2] = ["kubepods.slice", "kubepods"];

/// A cgroup v2 directory.
#[derive(Debug)]
pub struct Cgroup {
    /// Its path.
    pub path: PathBuf,
    /// Its id: the directory's inode number.
    pub id: u64,
    /// An open descriptor of it.
    pub directory: File,
}

/// Why there is no cgroup to attach to.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup2 is mounted.
    #[error("no cgroup v2 is mounted on this node: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified)")]
    NoMount,
    /// The named directory is something else.
    #[error("{path} is not in a cgroup v2 tree", path = path.display())]
    NotCgroup2 {
        /// The directory.
        path: PathBuf,
    },
    /// It cannot be opened.
    #[error("open cgroup {path}: {source}", path = path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Cgroup {
    /// The named directory, or the pods' own, or the root of the tree where they have none. The pods' own
    /// is better than the root: what other projects attach to the root runs after us then, and their
    /// translation of service addresses does not hide what was dialled; and processes of the node are
    /// left alone. An agent that is in a pod itself knows where pods are, wherever kubelet was told to put them
    /// (`cgroupRoot`).
    ///
    /// # Errors
    /// Where there is none.
    pub fn find(configured: Option<&Path>) -> Result<Self, CgroupError> {
        let path = if let Some(path) = configured {
            path.to_owned()
        } else {
            let mount = mount_point().ok_or(CgroupError::NoMount)?;
            let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
            let own = above_pod(&groups).map(|path| mount.join(path));
            let usual = KUBEPODS.iter().map(|name| mount.join(name));
            let pods = own.into_iter().chain(usual).find(|path| path.is_dir());
            pods.unwrap_or(mount)
        };
        Self::open(path)
    }

    fn open(path: PathBuf) -> Result<Self, CgroupError> {
        use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
        let failed = |source: io::Error| CgroupError::Open { path: path.clone(), source };
        let directory = File::open(&path).map_err(failed)?;
        let id = directory.metadata().map_err(failed)?.ino();
        let kind = statfs(&path).map_err(|errno| failed(errno.into()))?.filesystem_type();
        if kind != CGROUP2_SUPER_MAGIC {
            return Err(CgroupError::NotCgroup2 { path });
        }
        Ok(Self { path, id, directory })
    }
}

/// The directory of a cgroup, of which the kernel tells its id alone: sought in the whole tree, so not for
/// more than a command. `None` if it is gone, or not to be seen from here.
pub fn path_of(id: u64) -> Option<PathBuf> {
    let mut unread = vec![mount_point()?];
    while let Some(directory) = unread.pop() {
        // One that is removed meanwhile is not the one that is sought.
        if fs::metadata(&directory).is_ok_and(|found| found.ino() == id) {
            return Some(directory);
        }
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        let below = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        unread.extend(below.map(|entry| entry.path()));
    }
    None
}

/// Whether there are processes of pods that cgroup v1 knows as such and v2 does not: on hybrid nodes all of
/// them may be in the root of v2, and then one cgroup tells no container from another.
///
/// # Errors
/// If `/proc` cannot be listed; a process that ends meanwhile is left out.
pub fn pods_are_in_v1_alone() -> io::Result<bool> {
    let groups = fs::read_dir("/proc")?
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()))
        .filter_map(|process| fs::read_to_string(process.path().join("cgroup")).ok());
    Ok(groups.into_iter().any(|groups| is_pods_in_v1_alone(&groups)))
}

/// Whether the lines of `/proc/PID/cgroup` are those of such a process:
/// `4:memory:/kubepods/besteffort/pod…` for each hierarchy of v1, `0::/…` for v2.
pub fn is_pods_in_v1_alone(groups: &str) -> bool {
    let is_pods = |path: &str| path.contains("kubepods");
    let v1 = groups.lines().filter(|line| !line.starts_with("0::"));
    v1.into_iter().any(is_pods) && !path_in_v2(groups).is_some_and(is_pods)
}

/// The pods' cgroup, below the root of v2, if a process with these lines is in one of a pod. In a cgroup namespace of
/// its own, as containers have it on nodes with v2 alone, it is at the root and knows nothing.
fn above_pod(groups: &str) -> Option<PathBuf> {
    let mut above = PathBuf::new();
    for name in path_in_v2(groups)?.trim_start_matches('/').split('/').take_while(|name| *name != "..") {
        above.push(name);
        // `kubelet-kubepods.slice` with the systemd driver below a root of `/kubelet`, as kind has it.
        if name == "kubepods" || name.ends_with("kubepods.slice") {
            return Some(above);
        }
    }
    None
}

/// The path in v2 that is in the lines of `/proc/PID/cgroup`.
pub fn path_in_v2(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The first mount of cgroup2: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hybrid nodes.
pub fn mount_point() -> Option<PathBuf> {
    mounts("cgroup2").into_iter().next().map(PathBuf::from)
}

/// Where file systems of a kind are mounted, in the order of their mounting.
pub fn mounts(kind: &str) -> Vec<String> {
    let mountinfo = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    mounts_in(&mountinfo, kind)
}

/// `36 35 98:0 / /mount/point options - cgroup2 source options`
fn mounts_in(mountinfo: &str, kind: &str) -> Vec<String> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mount_point = before.split(' ').nth(4)?;
        (after.split(' ').next() == Some(kind)).then(|| mount_point.to_owned())
    };
    mountinfo.lines().filter_map(mount).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_cgroup2_is_found_among_others() {
        let mountinfo = "\
25 1 0:22 / /sys rw - sysfs sysfs rw
30 25 0:26 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
";
        assert_eq!(mounts_in(mountinfo, "cgroup2"), ["/sys/fs/cgroup/unified"]);
        assert_eq!(mounts_in(mountinfo, "cgroup"), ["/sys/fs/cgroup/cpu"]);
        assert_eq!(mounts_in("25 1 0:22 / /sys rw - sysfs sysfs rw\n", "cgroup2"), [""; 0]);
    }

    #[test]
    fn pods_that_v2_does_not_know_are_told_from_those_that_it_does() {
        let v1 = "4:memory:/kubepods/besteffort/pod1/c1\n1:name=systemd:/kubepods/besteffort/pod1/c1\n";
        assert!(is_pods_in_v1_alone(&format!("{v1}0::/\n")));
        assert!(is_pods_in_v1_alone(&format!("{v1}0::/system.slice/containerd.service\n")));
        assert!(is_pods_in_v1_alone(v1), "without v2");
        assert!(!is_pods_in_v1_alone(&format!("{v1}0::/kubepods/besteffort/pod1/c1\n")));
        assert!(!is_pods_in_v1_alone("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-c1.scope\n"));
        assert!(!is_pods_in_v1_alone("4:memory:/user.slice\n0::/user.slice\n"));
    }

    #[test]
    fn an_agent_in_a_pod_knows_the_pods_cgroup_by_its_own() {
        let above = |path: &str| above_pod(&format!("4:memory:/kubepods/pod1/c1\n0::{path}\n"));
        assert_eq!(above("/kubepods/burstable/pod1/c1"), Some("kubepods".into()));
        assert_eq!(above("/cluster/a/kubepods/pod1/c1"), Some("cluster/a/kubepods".into()));
        let systemd =
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1.slice/cri-containerd-c1.scope";
        assert_eq!(above(systemd), Some("kubelet.slice/kubelet-kubepods.slice".into()));
        assert_eq!(above("/"), None, "in a namespace of its own");
        assert_eq!(above("/system.slice/veer.service"), None);
    }

    #[test]
    fn the_directory_of_an_id_is_found_wherever_it_is() {
        let top = mount_point().unwrap().join(format!("veer-unit-{}", std::process::id()));
        let deep = top.join("pod");
        fs::create_dir_all(&deep).unwrap();
        let found = [&top, &deep].map(|path| path_of(fs::metadata(path).unwrap().ino()));
        // A cgroup is removed by its directory alone: its files are the kernel's.
        for path in [&deep, &top] {
            fs::remove_dir(path).unwrap();
        }
        assert_eq!(found, [Some(top), Some(deep)]);
        assert_eq!(path_of(u64::MAX), None);
    }

    #[test]
    fn a_directory_elsewhere_is_refused() {
        let error = Cgroup::find(Some(Path::new("/proc"))).unwrap_err();
        assert_eq!(error.to_string(), "/proc is not in a cgroup v2 tree");
    }
}
