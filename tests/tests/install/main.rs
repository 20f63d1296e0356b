//! The plugin in a runtime's CNI configuration: put in, kept in and taken out by the real programs, in directories of the
//! tests' own.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests panic as tests do")]

mod commands;
mod power;
mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;
use veer_tests::launch::{Launch, veer_binary};
use veer_tests::scratch;

/// A vendor's list.
const CALICO: &str = r#"{
  "name": "k8s-pod-network",
  "cniVersion": "0.3.1",
  "plugins": [
    { "type": "calico", "ipam": { "type": "calico-ipam" } },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}"#;
/// One plugin, as Tencent's nodes have it.
const TKE: &str = r#"{"cniVersion": "0.3.1", "name": "multus-cni", "type": "multus", "defaultDelegates": "tke-bridge"}
"#;

/// A node's directories.
struct Node {
    directory: TempDir,
}

impl Node {
    /// With these files as its CNI configuration.
    fn new<const N: usize>(files: [(&str, &str); N]) -> Self {
        let directory = scratch::directory().unwrap();
        let node = Self { directory };
        for name in ["run", "net.d", "bin", "cache"] {
            fs::create_dir(node.path(name)).unwrap();
        }
        for (name, text) in files {
            node.write(name, text);
        }
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn conf(&self, name: &str) -> PathBuf {
        self.path("net.d").join(name)
    }

    fn plugin(&self) -> PathBuf {
        self.path("bin/veer-cni")
    }

    /// As a vendor writes: in place.
    fn write(&self, name: &str, text: &str) {
        fs::write(self.conf(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.conf(name)).unwrap()
    }

    /// Names, contents, modes and owners of what is in the configuration.
    fn files(&self) -> BTreeMap<String, (Vec<u8>, u32, u32)> {
        let entries = fs::read_dir(self.path("net.d")).unwrap().map(Result::unwrap);
        let of = |path: &Path| {
            let metadata = fs::metadata(path).unwrap();
            (fs::read(path).unwrap(), metadata.mode(), metadata.uid())
        };
        entries
            .filter(|entry| entry.path().is_file())
            .map(|entry| (entry.file_name().into_string().unwrap(), of(&entry.path())))
            .collect()
    }

    fn flags(&self) -> Vec<String> {
        vec![
            format!("--run-dir={}", self.path("run").display()),
            format!("--cni-conf-dir={}", self.path("net.d").display()),
            format!("--cni-bin-dir={}", self.path("bin").display()),
        ]
    }

    fn command(&self, launch: &Launch, command: &str, more: &[&str]) -> Command {
        let mut process = launch.command(veer_binary("VEER_BIN", "veer").unwrap()).unwrap();
        process.arg(command).args(self.flags());
        if command == "uninstall-cni" {
            process.arg(format!("--cni-cache={}", self.path("cache").display()));
        } else if !more.iter().any(|flag| flag.starts_with("--cni-plugin")) {
            process.arg(format!("--cni-plugin={}", plugin().display()));
        }
        process.args(more);
        process
    }

    fn run(&self, command: &str, more: &[&str]) -> Output {
        self.command(&Launch::new(), command, more).output().unwrap()
    }

    /// What it prints as JSON, when it succeeds.
    #[track_caller]
    fn done(&self, command: &str, more: &[&str]) -> Value {
        let output = self.run(command, &[more, &["--json"]].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// The plugin that is copied.
fn plugin() -> PathBuf {
    veer_binary("VEER_CNI_BIN", "veer-cni").unwrap()
}

fn types(list: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(list).unwrap();
    list["plugins"]
        .as_array()
        .unwrap()
        .iter()
        .map(|plugin| plugin["type"].as_str().unwrap().to_owned())
        .collect()
}
