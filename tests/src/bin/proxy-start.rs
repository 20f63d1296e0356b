//! `proxy-start`: what `pilot-agent` is in the proxy's image. `proxy sidecar` and `proxy router` start Envoy, and a process
//! beside it that answers on the agent's port; `istio-iptables` is Istio's own program.
//!
//! Where Istio's agent has its Envoy's configuration from istiod, this one has it from a variable of its container.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use veer_tests::kube::injector::CONFIGURATION;
use veer_tests::kube::pilot_agent;

/// How this program knows that it is the process that answers.
const ANSWER: &str = "answer";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["proxy", kind, ..] => proxy(kind),
        ["istio-iptables", ..] => {
            // How Istio's agent itself logs is nothing that the program knows when it is alone.
            let own = arguments.iter().skip(1).filter(|argument| !argument.starts_with("--log_output_level"));
            let error = Command::new("/istio-iptables").args(own).exec();
            Err(error).context("execute /istio-iptables")
        }
        [ANSWER] => pilot_agent::serve(),
        _ => bail!(
            "the arguments do not begin with `proxy sidecar`, `proxy router` or `istio-iptables`: {arguments:?}"
        ),
    }
}

/// Envoy is the container's first process: it gets the signals, and what runs beside it ends with it.
fn proxy(kind: &str) -> Result<()> {
    let configuration = std::env::var(CONFIGURATION).with_context(|| format!("read {CONFIGURATION}"))?;
    let own = std::env::current_exe().context("find the running executable")?;
    Command::new(own).arg(ANSWER).spawn().context("start the agent beside Envoy")?;
    let mut envoy = Command::new("/envoy");
    envoy.args(["--service-node", kind, "--service-cluster", "test", "--config-yaml", &configuration]);
    envoy.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
    envoy.args(["--file-flush-interval-msec", "100"]).env_remove(CONFIGURATION);
    Err(envoy.exec()).context("execute /envoy")
}
