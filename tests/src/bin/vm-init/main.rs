//! `vm-init`: the first process of a virtual machine that runs the tests (`cargo xtask vm`).
//!
//! Owns: the machine: mounts what a node has mounted, asks `veer doctor`, runs the test binaries of its plan one
//! after the other, and switches off. Reports by lines on its standard output ([`report`]), between which the
//! tests print theirs. Never does: run where it is not the first process. Started by: the kernel, from the
//! archive that `xtask` has packed; whoever reads the lines judges, and takes a missing last one for a failure.

mod ability;
mod node;
mod plan;
mod report;
mod run;

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, bail};

use plan::{Need, Plan};
use report::Event;
use serde_json::Value;

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
    let (exit, doctor) = run::doctor(&plan)?;
    report::tell(&Event::Doctor { exit, report: &doctor });
    let lacking = lacking(&plan, &doctor)?;
    for suite in &plan.suites {
        for program in &suite.programs {
            let is_its =
                |need: &&Need| need.program == program.name && lacking.contains(need.ability.as_str());
            let prefixes: Vec<_> = plan.needs.iter().filter(is_its).map(|need| need.tests.as_str()).collect();
            run::program(&plan, &suite.name, program, &prefixes)?;
        }
    }
    report::tell(&Event::Done);
    Ok(())
}

/// What this kernel lacks of all that the plan's tests need; each is told.
fn lacking<'a>(plan: &'a Plan, doctor: &Value) -> Result<BTreeSet<&'a str>> {
    let mut lacking = BTreeSet::new();
    for ability in plan.needs.iter().map(|need| need.ability.as_str()).collect::<BTreeSet<_>>() {
        if let Some(because) = ability::lack(ability, doctor)? {
            report::tell(&Event::Lacks { ability, because });
            lacking.insert(ability);
        }
    }
    Ok(lacking)
}

/// Ends the machine. Returning instead would be a panic of the kernel, which ends it as well, without a `done`.
fn switch_off() -> Result<()> {
    let status = Command::new("/bin/poweroff").arg("-f").status().context("start poweroff")?;
    bail!("poweroff ended with {status}")
}
