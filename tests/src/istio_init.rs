//! What istio-init programs: the reference that veer is compared with, never a part of veer.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::netns::NetNs;
use crate::veth::ip;

/// Programs a pod's netns as istio-init does for a pod without annotations, for IPv4 and IPv6.
pub fn apply(netns: &NetNs) -> Result<()> {
    ip(netns, ["address add ::6/128 dev lo nodad"])?;
    restore(netns, "iptables-restore", &rules("127.0.0.1/32", "127.0.0.6/32"))?;
    restore(netns, "ip6tables-restore", &rules("::1/128", "::6/128"))
}

/// The rules for one family, as `iptables-restore` reads them.
pub fn rules(localhost: &str, passthrough: &str) -> String {
    format!(
        "*nat
:ISTIO_INBOUND - [0:0]
:ISTIO_REDIRECT - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -p tcp -j ISTIO_OUTPUT
-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A ISTIO_OUTPUT -s {passthrough} -o lo -j RETURN
-A ISTIO_OUTPUT ! -d {localhost} -o lo -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT ! -d {localhost} -o lo -p tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d {localhost} -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
COMMIT
"
    )
}

fn restore(netns: &NetNs, program: &str, rules: &str) -> Result<()> {
    let output = netns.run(|| {
        let mut command = Command::new(program);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(rules.as_bytes()))?;
        child.wait_with_output()
    })?;
    let output = output.with_context(|| format!("run {program} (package iptables)"))?;
    if !output.status.success() {
        bail!("{program} in netns {}: {}", netns.name(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
