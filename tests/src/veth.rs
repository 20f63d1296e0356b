//! Links, addresses and routes, by `ip`.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::netns::NetNs;

/// Runs `ip` commands in a namespace, all in one process; the first that fails ends it.
pub fn ip<S: AsRef<str>>(netns: &NetNs, commands: impl IntoIterator<Item = S>) -> Result<()> {
    let batch: Vec<_> = commands.into_iter().map(|command| format!("{}\n", command.as_ref())).collect();
    let batch = batch.concat();
    let output = netns.run(|| {
        let mut child = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // Dropped at the end of the statement, which is the end of file that `ip` waits for.
        child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(batch.as_bytes()))?;
        child.wait_with_output()
    })?;
    let output = output.context("run ip (package iproute2)")?;
    if !output.status.success() {
        let netns = netns.name();
        bail!("ip in netns {netns}: {}; the commands were\n{batch}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Where it is.
    pub netns: &'a NetNs,
    /// Its name, at most 15 characters.
    pub name: &'a str,
    /// Its addresses with prefix length.
    pub addresses: &'a [&'a str],
}

/// Makes a veth pair, up, with addresses. It goes with either of the namespaces.
pub fn pair(a: End<'_>, b: End<'_>) -> Result<()> {
    let peer = format!("link add {} type veth peer name {} netns {}", a.name, b.name, b.netns.name());
    ip(a.netns, [peer])?;
    for end in [a, b] {
        ip(end.netns, up(end.name, end.addresses))?;
    }
    Ok(())
}

/// The commands that give a link its addresses and bring it up.
pub fn up(link: &str, addresses: &[&str]) -> Vec<String> {
    // No duplicate address detection: the namespaces are ours alone, and a tentative address cannot be used.
    let add = |address: &&str| {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        format!("address add {address} dev {link}{nodad}")
    };
    let mut commands: Vec<_> = addresses.iter().map(add).collect();
    commands.push(format!("link set {link} up"));
    commands
}
