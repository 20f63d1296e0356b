//! `vm-init`: the first process of a virtual machine that runs the tests (`cargo xtask vm`).
//!
//! Owns: the machine: mounts what a node has mounted, asks `veer doctor`, runs the test binaries of its plan one
//! after the other, and switches off. Reports by lines on its standard output ([`report`]), between which the
//! tests print theirs. Never does: run where it is not the first process. Started by: the kernel, from the
//! archive that `xtask` has packed; whoever reads the lines judges, and takes a missing last one for a failure.

mod node;
mod plan;
mod report;
mod run;

use std::process::Command;

use anyhow::{Context, Result, bail};

use plan::Plan;
use report::Event;

fn main() -> Result<()> {
    if std::process::id() != 1 {
        bail!("vm-init is the first process of a virtual machine: cargo xtask vm");
    }
    if let Err(error) = live() {
        report::tell(&Event::Error { text: format!("{error:#}") });
    }
    switch_off()
}

fn live() -> Result<()> {
    let plan = Plan::read()?;
    node::prepare(&plan.environment)?;
    report::tell(&Event::Boot { release: node::release()? });
    let (exit, report) = run::doctor(&plan)?;
    report::tell(&Event::Doctor { exit, report });
    for suite in &plan.suites {
        for program in &suite.programs {
            run::program(&plan, &suite.name, program)?;
        }
    }
    report::tell(&Event::Done);
    Ok(())
}

/// Ends the machine. Returning instead would be a panic of the kernel, which ends it as well, without a `done`.
fn switch_off() -> Result<()> {
    let status = Command::new("/bin/poweroff").arg("-f").status().context("start poweroff")?;
    bail!("poweroff ended with {status}")
}
