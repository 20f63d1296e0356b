//! User namespaces, as a runtime makes them for pods with `hostUsers: false`.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait;

/// Ids of a pod, as the kubelet gives them out.
const COUNT: u32 = 65_536;

/// A process in a user and a network namespace of its own, for as long as it takes to bind them to a name.
#[derive(Debug)]
pub struct Member(Child);

impl Member {
    /// Starts one: its ids from 0 on are the node's from `first` on.
    pub fn start(first: u32) -> Result<Self> {
        let mut command = Command::new("unshare");
        // cat ends with its stdin, which we hold.
        command.args(["--user", "--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let member = Self(command.spawn().context("run unshare (package util-linux)")?);
        let own = fs::read_link("/proc/self/ns/user")?;
        wait::until("a user namespace of the process", Duration::from_secs(5), || {
            fs::read_link(member.file("ns/user")).is_ok_and(|link| link != own)
        })?;
        for map in ["uid_map", "gid_map"] {
            let path = member.file(map);
            fs::write(&path, format!("0 {first} {COUNT}"))
                .with_context(|| format!("write {}", path.display()))?;
        }
        Ok(member)
    }

    /// Its netns.
    pub fn netns(&self) -> PathBuf {
        self.file("ns/net")
    }

    fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.0.id()))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        if let Err(error) = self.0.wait() {
            eprintln!("wait for a process in a user namespace: {error}");
        }
    }
}
