//! What istio-init programs: the reference that veer is compared with, never a part of veer.
//!
//! It is Istio's own program that does it, of the version in `tests/istio/go.mod`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::launch::executable;
use crate::netns::NetNs;
use crate::wait;

/// What the injector always writes as istio-init's arguments, for a pod without annotations. A flag that comes
/// twice counts as it comes last.
const INJECTED: [&str; 18] = [
    "-p", "15001", "-z", "15006", "-u", "1337", "-g", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b",
    "*", "-o", "15020",
];

/// Istio's program: what `VEER_ISTIO_IPTABLES` names.
pub fn program() -> Result<PathBuf> {
    let Some(path) = std::env::var_os("VEER_ISTIO_IPTABLES") else {
        bail!("VEER_ISTIO_IPTABLES is not set: `cargo xtask setup` builds istio-iptables");
    };
    executable(path.into(), "VEER_ISTIO_IPTABLES")
}

/// The arguments for a pod without annotations.
pub fn injected() -> impl Iterator<Item = &'static str> {
    INJECTED.into_iter().chain(["-d", "15090,15021,15020"])
}

/// Programs a pod's netns as istio-init does for a dual-stack pod without annotations.
pub fn apply(netns: &NetNs) -> Result<()> {
    apply_with(netns, ["--dual-stack"])
}

/// Programs a pod's netns as istio-init does with further arguments. Inbound ports that the injector always
/// excludes are to be part of what is given with `-d`.
pub fn apply_with<'a>(netns: &NetNs, arguments: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let arguments: Vec<&str> = arguments.into_iter().collect();
    apply_in(netns, &[], &arguments)
}

/// The same with environment variables, which some of the settings of a node's pods are.
pub fn apply_in(netns: &NetNs, environment: &[(&str, &str)], arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(program()?);
    command.args(injected()).args(arguments);
    command.envs(environment.iter().copied());
    let output = netns.run(|| command.output())?.context("run istio-iptables")?;
    if !output.status.success() {
        bail!(
            "istio-iptables in netns {} ended with {}: {}",
            netns.name(),
            output.status,
            String::from_utf8_lossy(&output.stdout)
        );
    }
    wait::until("::6 to be usable", wait::LIMIT, || is_usable(netns))
}

/// Whether the ::6 that istio-init puts on `lo` can be bound to, if it has. It asks the kernel to look for another who has
/// the address first (DAD), and on a busy machine the kernel takes its time to find that `lo` has no neighbours.
fn is_usable(netns: &NetNs) -> bool {
    /// `IFA_F_TENTATIVE`, in the fifth field of `/proc/net/if_inet6`.
    const TENTATIVE: u8 = 0x40;
    let addresses = netns.run(|| fs::read_to_string("/proc/thread-self/net/if_inet6"));
    let Ok(Ok(addresses)) = addresses else { return true };
    let is_tentative = |line: &&str| {
        let mut fields = line.split_ascii_whitespace();
        let address = fields.next();
        let flags = fields.nth(3).and_then(|flags| u8::from_str_radix(flags, 16).ok());
        address == Some("00000000000000000000000000000006")
            && flags.is_some_and(|flags| flags & TENTATIVE != 0)
    };
    addresses.lines().find(is_tentative).is_none()
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
