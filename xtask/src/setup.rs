//! `cargo xtask setup`: installs what is missing and says what it does.
//!
//! Looks ([`machine`]), decides ([`needs`], pure), acts ([`steps`]), and looks again: a need counts as
//! met when it is seen to be, not when its installer ended well. Installs as root on Debian; elsewhere
//! it prints the commands and ends with exit code 69. Two at once are safe: the second waits for the first.

mod apt;
mod chart;
mod containerd;
mod debian;
mod kernels;
mod kube;
mod machine;
mod needs;
mod steps;
mod vm;

use std::fs::{self, File, TryLockError};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::exec::{print, say};
use crate::{FAILED, Unavailable, workspace};
pub(crate) use chart::{ChartTools, KUBERNETES_VERSION};
pub(crate) use kube::KubeTools;
use machine::Machine;
use needs::{Need, State};
pub(crate) use vm::VmTools;

/// How to set up.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own on the command line")]
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only report; exit 1 if something is missing
    #[arg(long)]
    check: bool,
    /// The report as JSON
    #[arg(long)]
    json: bool,
    /// What `vm` needs, too: QEMU, and Debian's kernels (170 MB)
    #[arg(long)]
    vm: bool,
    /// What `test kube` needs, too: Kubernetes, which is built (10 to 20 minutes, 600 MB), and containerd
    #[arg(long)]
    kube: bool,
}

/// What the other verbs need to know of a machine that has everything.
pub(crate) struct Tools {
    /// Envoy of the pinned version.
    pub(crate) envoy: PathBuf,
    /// The directory of the CNI project's plugins.
    pub(crate) cni_plugins: PathBuf,
    /// Istio's own istio-iptables.
    pub(crate) istio_iptables: PathBuf,
}

/// Of what only some verbs need.
type Install = fn(&Machine) -> Result<()>;

/// The verb.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let needs = |machine: &Machine| {
        let mut needs = needs::of(machine);
        if options.vm {
            needs.extend(vm::needs(&machine.tools, &kernels::SERIES));
        }
        if options.kube {
            needs.extend(kube::needs(&machine.tools));
        }
        needs
    };
    if options.check {
        let needs = needs(&Machine::look()?);
        report(&needs, options.json)?;
        return Ok(ExitCode::from(if missing(&needs).is_empty() { 0 } else { FAILED }));
    }
    let mut done = install_missing();
    for (_, install) in [(options.vm, vm::install as Install), (options.kube, kube::install)]
        .into_iter()
        .filter(|(is_wanted, _)| *is_wanted)
    {
        if let Ok(machine) = &done
            && let Err(error) = wait_for_turn(machine).and_then(|_turn| install(machine))
        {
            done = Err(error);
        }
    }
    let told = done.as_ref().is_err_and(anyhow::Error::is::<Unavailable>) && !options.json;
    if !told {
        report(&needs(&Machine::look()?), options.json)?;
    }
    done.map(|_| ExitCode::SUCCESS)
}

/// For the verbs that build and run: installs what is missing, says nothing when nothing is.
pub(crate) fn ensure() -> Result<Tools> {
    tools_of(install_missing()?)
}

/// For `vm`: the same, and what it needs beyond that, which it does not install. `wanted` are names of kernel
/// series, all of them if there is none; of use only if Debian's kernels are wanted at all.
pub(crate) fn vm_tools(wanted: &[String], debians: bool) -> Result<VmTools> {
    let series = kernels::chosen(wanted).map_err(Unavailable)?;
    let series = if debians { series } else { Vec::new() };
    let machine = install_missing()?;
    let directory = machine.tools.clone();
    vm::look(tools_of(machine)?, &directory, &series)
}

/// For `check chart`: what it needs, which is installed now if it is missing. Nothing of the rest is.
pub(crate) fn chart_tools() -> Result<ChartTools> {
    let tools = workspace::tools(is_root())?;
    if !missing(&chart::needs(&tools)).is_empty() {
        let machine = Machine::look()?;
        let _turn = wait_for_turn(&machine)?;
        chart::install(&machine)?;
    }
    Ok(chart::look(&tools))
}

/// For `test kube`: the same, and a cluster's programs, which it does not install.
pub(crate) fn kube_tools() -> Result<KubeTools> {
    let machine = install_missing()?;
    let directory = machine.tools.clone();
    kube::look(tools_of(machine)?, &directory)
}

fn tools_of(machine: Machine) -> Result<Tools> {
    let envoy = machine.envoy.map(|envoy| envoy.path).context("Envoy was there a moment ago")?;
    let cni_plugins = machine.cni_plugins.context("the CNI plugins were there a moment ago")?;
    let istio_iptables = machine.istio.context("istio-iptables was there a moment ago")?;
    Ok(Tools { envoy, cni_plugins, istio_iptables })
}

/// Whether we may do what only root may.
pub(crate) fn is_root() -> bool {
    machine::effective_uid() == Some(0)
}

/// Returns the machine once it has everything.
fn install_missing() -> Result<Machine> {
    let machine = Machine::look()?;
    if missing(&needs::of(&machine)).is_empty() {
        return Ok(machine);
    }
    if !machine.may_install() {
        return Err(Unavailable(by_hand(&machine, &needs::of(&machine))).into());
    }
    let _turn = wait_for_turn(&machine)?;
    // Whoever had the lock before may have installed what we missed.
    let machine = Machine::look()?;
    steps::carry_out(&machine, &missing(&needs::of(&machine)))?;
    let machine = Machine::look()?;
    let needs = needs::of(&machine);
    if missing(&needs).is_empty() {
        return Ok(machine);
    }
    let text = format!("installed what was missing, and yet:\n{}", by_hand(&machine, &needs));
    Err(Unavailable(text).into())
}

fn missing(needs: &[Need]) -> Vec<&Need> {
    needs.iter().filter(|need| matches!(need.state, State::Missing { .. })).collect()
}

/// The lock is released when the file is closed, whatever ends us.
fn wait_for_turn(machine: &Machine) -> Result<File> {
    let path = machine.tools.join("setup.lock");
    fs::create_dir_all(&machine.tools).with_context(|| format!("create {}", machine.tools.display()))?;
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            say("another `cargo xtask setup` is at work: waiting for it");
            file.lock().with_context(|| format!("lock {}", path.display()))?;
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("lock {}", path.display()));
        }
    }
    Ok(file)
}

/// What to type, where we may not do it.
fn by_hand(machine: &Machine, needs: &[Need]) -> String {
    let mut lines = vec![format!("something is missing, and {}.", machine.why_not_install())];
    for need in missing(needs) {
        if let State::Missing { found, .. } = &need.state {
            lines.push(format!("  {} ({}): {found}", need.name, need.reason));
        }
    }
    let commands = steps::by_hand(machine, &missing(needs));
    if !commands.is_empty() {
        lines.push("By hand:".to_owned());
        lines.extend(commands.into_iter().map(|command| format!("  {command}")));
    }
    lines.push("Then again: cargo xtask setup".to_owned());
    lines.join("\n")
}

#[derive(Serialize)]
struct Report<'a> {
    complete: bool,
    needs: &'a [Need],
}

fn report(needs: &[Need], json: bool) -> Result<()> {
    if json {
        let report = Report { complete: missing(needs).is_empty(), needs };
        return print(&serde_json::to_string_pretty(&report)?);
    }
    let width = |text: fn(&Need) -> &str| needs.iter().map(|need| text(need).len()).max().unwrap_or(0);
    let (name_width, reason_width) = (width(|need| need.name), width(|need| need.reason));
    for Need { name, reason, state } in needs {
        let (mark, found) = match state {
            State::Present { found } => ("ok     ", found),
            State::Missing { found, .. } => ("MISSING", found),
        };
        print(&format!("{mark} {name:name_width$}  {reason:reason_width$}  {found}"))?;
    }
    Ok(())
}
