//! The real agent: `veer agent` in directories of its own.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use veer_common::cni::{Reply, Verb};

use crate::attachment;
use crate::cgroup::Cgroup;
use crate::launch::{Launch, veer_binary};
use crate::manifest::Manifest;
use crate::pod::TestPod;
use crate::process::Process;
use crate::scratch::{self, BpfFs};
use crate::wait;

/// A running agent. Its links and maps go with the guard: they are pinned in a bpffs of its own.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    setup: Setup,
    _bpffs: BpfFs,
    scratch: Option<TempDir>,
}

/// How to start it.
#[derive(Clone, Debug)]
struct Setup {
    veer: PathBuf,
    launch: Launch,
    directory: PathBuf,
    log: PathBuf,
    arguments: Vec<String>,
}

impl Agent {
    /// Starts one for the pods below `cgroup` and waits until it serves.
    pub fn start(cgroup: &Cgroup) -> Result<Self> {
        Self::start_with(cgroup, Launch::new(), &[])
    }

    /// Starts one somewhere else, with further arguments.
    pub fn start_with(cgroup: &Cgroup, launch: Launch, arguments: &[&str]) -> Result<Self> {
        let scratch = scratch::directory()?;
        let mut agent = Self::start_in(scratch.path(), cgroup, launch, arguments)?;
        agent.scratch = Some(scratch);
        Ok(agent)
    }

    /// Starts one with its files in an empty directory of the caller's.
    pub fn start_in(directory: &Path, cgroup: &Cgroup, launch: Launch, arguments: &[&str]) -> Result<Self> {
        let directory = directory.to_owned();
        fs::create_dir(directory.join("pods")).context("make the pods directory")?;
        let bpffs = BpfFs::mount(&directory.join("bpf"))?;
        let veer = veer_binary("VEER_BIN", "veer")?;
        let log = directory.join("agent.log");
        let mut setup = Setup { veer, launch, directory, log, arguments: Vec::new() };
        setup.arguments.push(format!("--cgroup={}", cgroup.path().display()));
        setup.arguments.extend(arguments.iter().map(ToString::to_string));
        let mut process = setup.begin()?;
        setup.wait_ready(&mut process)?;
        Ok(Self { process, setup, _bpffs: bpffs, scratch: None })
    }

    /// Its process.
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// The same, for waiting for its end, or for putting another in its place.
    pub const fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Everything it logged so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its run directory, where `cni.sock` is.
    pub fn run_dir(&self) -> PathBuf {
        self.setup.run_dir()
    }

    /// Where it pins.
    pub fn bpffs(&self) -> PathBuf {
        self.setup.bpffs()
    }

    /// Asks it to end and waits; everything pinned stays.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.process.stop()?;
        if !status.success() {
            bail!("the agent ended with {status}; its log:\n{}", self.log());
        }
        Ok(())
    }

    /// Kills it (SIGKILL); everything pinned stays.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    /// Starts it again with the same directories, after [`stop`](Self::stop) or [`kill`](Self::kill).
    pub fn start_again(&mut self) -> Result<()> {
        self.begin_again()?;
        self.wait_ready()
    }

    /// The same, without waiting until it serves.
    pub fn begin_again(&mut self) -> Result<()> {
        self.process = self.setup.begin()?;
        Ok(())
    }

    /// Waits until it serves.
    ///
    /// # Errors
    /// When it ends instead, with its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.setup.wait_ready(&mut self.process)
    }

    /// Another one with the same directories and arguments, which this one knows nothing of.
    pub fn begin_another(&self) -> Result<Process> {
        self.setup.begin()
    }

    /// The program that is started from now on.
    pub fn use_program(&mut self, veer: &Path) {
        veer.clone_into(&mut self.setup.veer);
    }

    /// The file that it logs to from its next start on; gives back the one before.
    pub fn log_to(&mut self, log: &Path) -> PathBuf {
        std::mem::replace(&mut self.setup.log, log.to_owned())
    }

    /// How it is launched from now on.
    pub fn use_launch(&mut self, launch: Launch) {
        self.setup.launch = launch;
    }

    /// Gives it other arguments, from its next start on.
    pub fn set_arguments(&mut self, arguments: &[&str]) {
        // The first one is the cgroup.
        self.setup.arguments.truncate(1);
        self.setup.arguments.extend(arguments.iter().map(ToString::to_string));
    }

    /// Waits until it has looked at everything once since it started, and so does nothing that nobody has asked for.
    pub fn wait_settled(&self) -> Result<()> {
        let has_looked = || {
            let log = self.log();
            log.rfind("looked at everything") > log.rfind(" ready ")
        };
        wait::until("the agent to look at everything", wait::LIMIT, has_looked)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Puts a manifest into its pods directory, or replaces it.
    pub fn write_manifest(&self, manifest: &Manifest) -> Result<()> {
        self.setup.publish(&manifest.file_name(), &manifest.to_json())
    }

    /// Puts the manifest of a namespace with this label there, or replaces it.
    pub fn write_namespace(&self, name: &str, label: (&str, &str)) -> Result<()> {
        let (key, value) = label;
        let metadata = json!({"name": name, "labels": {(key): value}});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        self.setup.publish(&format!("{name}.namespace.json"), &namespace)
    }

    /// Removes a manifest from its pods directory.
    pub fn remove_manifest(&self, manifest: &Manifest) -> Result<()> {
        fs::remove_file(self.setup.pods().join(manifest.file_name())).context("remove a manifest")
    }

    /// What the agent answers to a verb of the plugin.
    pub fn ask(&self, verb: Verb) -> Result<Reply> {
        attachment::ask(&self.run_dir(), verb, None)
    }

    /// ADD for a pod whose manifest it has.
    pub fn add(&self, pod: &TestPod) -> Result<Reply> {
        attachment::ask(&self.run_dir(), Verb::Add(pod.attachment()), Some(pod.netns().as_fd()))
    }

    /// DEL for a pod.
    pub fn del(&self, pod: &TestPod) -> Result<Reply> {
        self.ask(Verb::Del(pod.attachment()))
    }

    /// CHECK for a pod.
    pub fn check(&self, pod: &TestPod) -> Result<Reply> {
        self.ask(Verb::Check(pod.attachment()))
    }

    /// Enrols a pod with this manifest: writes it, sends ADD, and wants it done.
    pub fn enrol_as(&self, pod: &TestPod, manifest: &Manifest) -> Result<()> {
        self.write_manifest(manifest)?;
        match self.add(pod)? {
            Reply::Done => Ok(()),
            other @ (Reply::Passed { .. } | Reply::Failed { .. }) => {
                bail!("ADD of {} answered {other:?}; the agent's log:\n{}", pod.name(), self.log())
            }
        }
    }

    /// Enrols a pod without any annotation.
    pub fn enrol(&self, pod: &TestPod) -> Result<()> {
        self.enrol_as(pod, &pod.manifest())
    }

    /// Forgets a pod: sends DEL, and wants it done.
    pub fn unenrol(&self, pod: &TestPod) -> Result<()> {
        match self.del(pod)? {
            Reply::Done => Ok(()),
            other @ (Reply::Passed { .. } | Reply::Failed { .. }) => {
                bail!("DEL of {} answered {other:?}; the agent's log:\n{}", pod.name(), self.log())
            }
        }
    }

    /// A command of `veer` that talks to this agent.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.setup.veer);
        command.args(arguments).env("VEER_RUN_DIR", self.run_dir()).env("VEER_BPFFS", self.bpffs());
        command
    }

    /// What a command of `veer` with `--json` says: `agent.json(&["pods"])`.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let arguments = [arguments, &["--json"]].concat();
        let output = self.command(&arguments).output().context("run veer")?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("veer {} ended with {}: {errors}", arguments.join(" "), output.status);
        }
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!("veer {} wrote {:?}", arguments.join(" "), String::from_utf8_lossy(&output.stdout))
        })
    }
}

impl Setup {
    fn run_dir(&self) -> PathBuf {
        self.directory.join("run")
    }

    fn bpffs(&self) -> PathBuf {
        self.directory.join("bpf/veer")
    }

    fn pods(&self) -> PathBuf {
        self.directory.join("pods")
    }

    fn publish(&self, file: &str, object: &Value) -> Result<()> {
        let draft = self.pods().join(format!(".{file}.draft"));
        fs::write(&draft, serde_json::to_vec_pretty(object)?).context("write a manifest")?;
        // Renamed, so that the agent never reads half of it.
        fs::rename(&draft, self.pods().join(file)).context("publish a manifest")
    }

    fn begin(&self) -> Result<Process> {
        let mut command = self.launch.command(&self.veer)?;
        let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
        command.arg("agent");
        command.arg(flag("run-dir", &self.run_dir()));
        command.arg(flag("bpffs", &self.bpffs()));
        if !self.arguments.iter().any(|argument| argument.starts_with("--pods-from=")) {
            command.arg(flag("pods-from", &self.pods()));
        }
        // Several agents run on one machine: none serves unless its test asks for it.
        command.env("VEER_ADMIN_ADDR", "off").env("VEER_HEALTH_ADDR", "off");
        command.args(&self.arguments);
        Process::start("veer agent", command, &self.log)
    }

    fn wait_ready(&self, process: &mut Process) -> Result<()> {
        process.wait_ready(|| match attachment::ask(&self.run_dir(), Verb::Status, None)? {
            Reply::Done => Ok(()),
            other @ (Reply::Passed { .. } | Reply::Failed { .. }) => bail!("STATUS answered {other:?}"),
        })
    }
}
