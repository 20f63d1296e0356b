//! `cni-recorder`: stands in the place of a plugin, runs the plugin, and writes down what the runtime gave it, what it
//! answered and how long it took.
//!
//! It is `NAME` in the plugins' directory, the plugin `NAME.real`, and the records are in `.records` beside them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;

fn main() -> Result<ExitCode> {
    let own = std::env::current_exe().context("find the running executable")?;
    let mut input = String::new();
    io::stdin().read_to_string(&mut input).context("read the configuration")?;
    let started = Instant::now();
    let mut plugin = Command::new(own.with_extension("real"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the plugin")?;
    // Dropped at the end of the statement, which is the end of file that the plugin waits for. One that ends before
    // it has read everything says so by its status.
    plugin.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes())).ok();
    let output = plugin.wait_with_output().context("wait for the plugin")?;
    let took = started.elapsed();
    io::stdout().write_all(&output.stdout).context("pass the answer on")?;
    let environment: BTreeMap<String, String> =
        std::env::vars().filter(|(name, _)| name.starts_with("CNI_")).collect();
    let record = json!({
        "environment": environment, "input": input, "output": String::from_utf8_lossy(&output.stdout),
        "status": output.status.code(), "microseconds": u64::try_from(took.as_micros())?,
    });
    let records = own.with_file_name(".records");
    fs::create_dir_all(&records).with_context(|| format!("make {}", records.display()))?;
    let file = records.join(format!("{}.json", std::process::id()));
    fs::write(&file, record.to_string()).with_context(|| format!("write {}", file.display()))?;
    Ok(ExitCode::from(output.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
