//! Power may go at any moment: the installer is killed after each of its system calls that may
//! change something, and the order in which what it writes
//! comes to the disk is looked at.

use nix::libc::{
    SYS_fchmod, SYS_fchown, SYS_flock, SYS_fsetxattr, SYS_fsync, SYS_mkdir, SYS_openat, SYS_rename,
    SYS_renameat, SYS_renameat2, SYS_rmdir, SYS_unlink, SYS_unlinkat, SYS_write,
};
use veer_tests::traced::{Call, Traced};

use super::*;

/// What is done to a node.
#[derive(Clone, Copy)]
struct Act {
    files: &'static [(&'static str, &'static str)],
    mode: &'static str,
    /// Whether it is taken out, after it was put in.
    removes: bool,
}

const ACTS: [Act; 6] = [
    Act { files: &[("10-calico.conflist", CALICO)], mode: "chained", removes: false },
    Act { files: &[("10-calico.conflist", CALICO)], mode: "chained", removes: true },
    Act { files: &[("10-calico.conflist", CALICO)], mode: "dropin", removes: false },
    Act { files: &[("00-multus.conf", TKE)], mode: "chained", removes: false },
    Act { files: &[("00-multus.conf", TKE)], mode: "chained", removes: true },
    Act { files: &[("00-multus.conf", TKE)], mode: "owned", removes: true },
];

impl Act {
    fn node(self) -> Node {
        let node = Node::new([]);
        for (name, text) in self.files {
            node.write(name, text);
        }
        // Else most of the calls would be those of its copy.
        fs::copy(plugin(), node.plugin()).unwrap();
        if self.removes {
            node.done("install-cni", &[&format!("--cni-install={}", self.mode)]);
        }
        node
    }

    fn start(self, node: &Node) -> Traced {
        let launch = Launch::new().traced();
        let mode = format!("--cni-install={}", self.mode);
        Traced::start(if self.removes {
            node.command(&launch, "uninstall-cni", &[])
        } else {
            node.command(&launch, "install-cni", &[&mode])
        })
        .unwrap()
    }

    /// Does it to the end.
    fn finish(self, node: &Node) {
        if self.removes {
            node.done("uninstall-cni", &[]);
        } else {
            node.done("install-cni", &[&format!("--cni-install={}", self.mode)]);
        }
    }
}

/// Whether a call may have changed a file system. How many others there are differs from run to run.
fn changes(call: &Call) -> bool {
    [SYS_openat, SYS_write, SYS_fsync, SYS_rename, SYS_renameat, SYS_renameat2, SYS_unlink, SYS_unlinkat]
        .into_iter()
        .chain([SYS_mkdir, SYS_rmdir, SYS_fchmod, SYS_fchown, SYS_fsetxattr])
        .any(|number| number == call.number)
}

/// Goes on to the next call that may change something, from the moment on that it takes hold of the directory.
fn next(traced: &mut Traced, holds: &mut bool) -> Option<Call> {
    while let Some(call) = traced.call().unwrap() {
        *holds |= call.number == SYS_flock;
        if *holds && changes(&call) {
            return Some(call);
        }
    }
    None
}

fn calls(traced: &mut Traced) -> Vec<Call> {
    let mut holds = false;
    let calls = std::iter::from_fn(|| next(traced, &mut holds)).collect();
    assert_eq!(traced.exit_code(), Some(0));
    calls
}

/// What a runtime would use: the first file, which must be whole.
fn first(node: &Node) -> Value {
    let files = node.files();
    let counts = |name: &&String| [".conf", ".conflist", ".json"].iter().any(|ending| name.ends_with(ending));
    let name = files.keys().find(counts).unwrap();
    let value: Value =
        serde_json::from_slice(&files[name].0).unwrap_or_else(|error| panic!("{name}: {error}"));
    let key = if name.ends_with(".conflist") { "plugins" } else { "type" };
    assert!(value.get(key).is_some(), "{name}: {value}");
    value
}

#[test]
fn whoever_is_killed_after_any_change_leaves_a_network_and_is_finished_by_the_next() {
    let mut kills = 0;
    for act in ACTS {
        let expected = {
            let node = act.node();
            act.finish(&node);
            node.files()
        };
        let count = calls(&mut act.start(&act.node())).len();
        for call in 0..count {
            let node = act.node();
            let mut traced = act.start(&node);
            let mut holds = false;
            for _ in 0..=call {
                next(&mut traced, &mut holds).unwrap();
            }
            drop(traced);
            let network = first(&node);
            assert!(network["name"] == "k8s-pod-network" || network["name"] == "multus-cni", "{network}");
            if node.plugin().exists() {
                assert_eq!(fs::read(node.plugin()).unwrap(), fs::read(plugin()).unwrap());
            }
            act.finish(&node);
            let after: BTreeMap<_, _> = node.files();
            assert_eq!(after.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            let text = |files: &BTreeMap<String, (Vec<u8>, u32, u32)>, name: &str| {
                // The run directory is another one.
                String::from_utf8(files[name].0.clone()).unwrap().split("runDir").next().unwrap().to_owned()
            };
            for name in expected.keys() {
                assert_eq!(text(&after, name), text(&expected, name), "{name} after call {call}");
            }
            kills += 1;
        }
    }
    assert!(kills > 60, "{kills}");
    eprintln!("killed at {kills} calls");
}

/// Of what was written nothing is given its name before it is on the disk, and no name before the next step.
#[test]
fn what_gets_a_name_is_on_the_disk_and_so_is_the_name() {
    for act in ACTS {
        let node = act.node();
        // The plugin as well: its copy has its own order.
        fs::remove_file(node.plugin()).unwrap();
        let calls = calls(&mut act.start(&node));
        let mut unsynced: Vec<u64> = Vec::new();
        let mut names_unsynced = 0;
        let mut named = 0;
        for Call { number, arguments, outcome } in calls.into_iter().filter(|call| call.outcome >= 0) {
            let fd = arguments[0];
            #[expect(non_upper_case_globals, reason = "libc's names")]
            match number {
                SYS_write if fd > 2 => unsynced.push(fd),
                SYS_fsync => {
                    unsynced.retain(|open| *open != fd);
                    names_unsynced = 0;
                }
                SYS_openat => unsynced.retain(|open| *open != outcome.cast_unsigned()),
                SYS_rename | SYS_renameat | SYS_renameat2 => {
                    assert_eq!(unsynced, Vec::<u64>::new(), "it is renamed before it is on the disk");
                    assert_eq!(names_unsynced, 0, "a name before was not on the disk");
                    names_unsynced += 1;
                    named += 1;
                }
                _ => {}
            }
        }
        assert_eq!(names_unsynced, 0, "the last name is not on the disk");
        assert!(named > 0 || act.removes, "{} {}", act.mode, act.removes);
    }
}
