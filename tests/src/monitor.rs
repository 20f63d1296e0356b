//! A running `veer monitor`, its outputs in files.

use std::fs::{self, File};
use std::process::{Child, ExitStatus, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::agent::Agent;
use crate::mesh::PATIENCE;
use crate::{scratch, wait};

/// A running `veer monitor`. It goes with the guard.
#[derive(Debug)]
pub struct Monitor {
    child: Child,
    directory: TempDir,
}

impl Monitor {
    /// Starts it and waits until it sees everything.
    pub fn start(agent: &Agent, arguments: &[&str]) -> Result<Self> {
        let directory = scratch::directory()?;
        let file = |name: &str| File::create(directory.path().join(name));
        let mut command = agent.command(&[&["monitor"], arguments].concat());
        command.stdin(Stdio::null()).stdout(file("out")?).stderr(file("errors")?);
        let child = command.spawn().context("start veer monitor")?;
        let monitor = Self { child, directory };
        wait::until("the monitor to watch", PATIENCE, || {
            monitor.errors().is_ok_and(|errors| errors.contains("watching"))
        })?;
        Ok(monitor)
    }

    fn read(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.directory.path().join(name)).context("read what veer monitor wrote")
    }

    /// What it wrote to stderr.
    pub fn errors(&self) -> Result<String> {
        self.read("errors")
    }

    /// All whole lines that it has written.
    pub fn lines(&self) -> Result<Vec<String>> {
        let text = self.read("out")?;
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        Ok(whole.lines().map(str::to_owned).collect())
    }

    /// All lines, as soon as there are so many.
    pub fn wait_for_lines(&self, count: usize) -> Result<Vec<String>> {
        wait::until("the monitor's lines", PATIENCE, || {
            self.lines().is_ok_and(|lines| lines.len() >= count)
        })?;
        self.lines()
    }

    /// All decisions of a monitor with `--json`, as soon as there are so many.
    pub fn wait_for_decisions(&self, count: usize) -> Result<Vec<Value>> {
        let lines = self.wait_for_lines(count)?;
        lines.iter().map(|line| serde_json::from_str(line).with_context(|| line.clone())).collect()
    }

    /// Waits until it ends by itself.
    pub fn end(&mut self) -> Result<ExitStatus> {
        wait::until_some("the monitor to end", PATIENCE, || self.child.try_wait().transpose())?
            .context("wait for veer monitor")
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
