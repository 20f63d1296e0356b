//! `proxy-start`: starts Envoy as `pilot-agent` does, whose words `proxy sidecar` and `proxy router` the pods of a mesh
//! have as their proxy's arguments.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ["proxy", kind, ..] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] else {
        bail!("the arguments do not begin with `proxy sidecar` or `proxy router`: {arguments:?}");
    };
    let mut envoy = Command::new("/envoy");
    envoy.args(["--service-node", kind, "--service-cluster", "test"]).args(arguments.iter().skip(2));
    Err(envoy.exec()).context("execute /envoy")
}
