//! `veer install-cni` and `veer uninstall-cni`: the plugin into the runtime's CNI configuration once, and out of it.
//! Exit 0 when that is done, 69 when there is nothing yet to be put into, 75 when a running agent sees to it.

use std::io::{self, BufRead, Write};

use serde::Serialize;
use serde_json::Value;

use super::{Failure, ask, print_json};
use crate::cli::{InstallCniFlags, UninstallCniFlags};
use crate::config::{InstallCniConfig, Place, UninstallCniConfig};
use crate::control::Question;
use crate::install::Placed;
use crate::installer::{self, Done, Removal, Target, target};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Installed {
    dry_run: bool,
    directory: String,
    #[serde(flatten)]
    placed: Placed,
    changed: Vec<String>,
}

/// Puts veer in.
///
/// # Errors
/// If it cannot be done, or not yet.
pub fn install(flags: &InstallCniFlags) -> Result<(), Failure> {
    let config = InstallCniConfig::parse(flags).map_err(|errors| Failure::Usage(errors.to_string()))?;
    let target = Target::find(&config.cni);
    let entry = target::entry(&config.place.run_dir, config.log_level, &config.exclude_namespaces);
    let wish = target::wish(&config.cni, entry);
    let done = if flags.dry_run {
        installer::would(&target, &wish)
    } else {
        nobody_else_does(&config.place)?;
        installer::install(&target, &wish)
    };
    let Done { placed, changed } = done.map_err(|error| {
        let text = error.to_string();
        if error.is_waited_for() { Failure::Unavailable(text) } else { Failure::Failed(text) }
    })?;
    let directory = target.conf_dir.display().to_string();
    if flags.json {
        return print_json(&Installed { dry_run: flags.dry_run, directory, placed, changed });
    }
    let would = if flags.dry_run { "would be " } else { "" };
    let Placed { mode, file, network, notes, .. } = placed;
    let mut text = format!("veer-cni {would}in {directory}/{file}, mode {mode}, for the network {network}\n");
    text.extend(changed.iter().map(|file| format!("{would}changed {file}\n")));
    text.extend(notes.iter().map(|note| format!("note: {note}\n")));
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// Takes veer out.
///
/// # Errors
/// If something cannot be put back.
pub fn uninstall(flags: &UninstallCniFlags) -> Result<(), Failure> {
    let config = UninstallCniConfig::parse(flags).map_err(|errors| Failure::Usage(errors.to_string()))?;
    let target = Target::find(&config.cni);
    if !flags.dry_run {
        nobody_else_does(&config.place)?;
    }
    let removal = installer::remove(&target, &config.cni_cache, flags.dry_run)
        .map_err(|error| Failure::Failed(error.to_string()))?;
    if flags.json {
        return print_json(&removal);
    }
    io::stdout().lock().write_all(render(&removal, &target).as_bytes())?;
    Ok(())
}

fn render(removal: &Removal, target: &Target) -> String {
    let would = if removal.dry_run { "would be " } else { "" };
    let mut lines: Vec<String> = removal
        .restored
        .iter()
        .map(|file| format!("{} {would}as it was without veer\n", target.file(file).display()))
        .collect();
    let program = target.program();
    if removal.plugin_removed {
        lines.push(format!("{} {would}removed\n", program.display()));
    }
    if let Some(why) = &removal.plugin_stays {
        lines.push(format!("left {}: {why}; run this again when they are gone\n", program.display()));
    }
    if lines.is_empty() {
        return format!(
            "veer-cni is neither in {} nor in {}\n",
            target.conf_dir.display(),
            target.bin_dir.display()
        );
    }
    lines.concat()
}

/// Fails if an agent runs that would do it again, or differently.
fn nobody_else_does(place: &Place) -> Result<(), Failure> {
    let Ok(mut answer) = ask(place, &Question::Status) else { return Ok(()) };
    let mut line = String::new();
    let status: Value = match answer.read_line(&mut line) {
        Ok(_) => serde_json::from_str(&line).unwrap_or_default(),
        Err(_) => return Ok(()),
    };
    let asked = status.pointer("/cni/asked").and_then(Value::as_str).unwrap_or("off");
    if asked == "off" {
        return Ok(());
    }
    let pid = status.get("pid").and_then(Value::as_u64).unwrap_or_default();
    Err(Failure::Busy(format!(
        "an agent runs, pid {pid}, and sees to it (--cni-install={asked}): end it first, and see that nothing starts it \
         again (delete its DaemonSet or stop its unit), or start it with --cni-install=off"
    )))
}
