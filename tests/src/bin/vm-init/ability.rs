//! What a kernel may lack that tests are about, asked of it by trying.
//!
//! Owns: one question for each name that a plan may have. Never does: decide which tests need it, which the plan
//! says. Called by: the first process, before it runs anything.

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

/// Why this kernel lacks it; `None` if it does not. Of what eBPF can do, `doctor` has tried it: a report of `veer doctor`.
///
/// # Errors
/// For a name that is not known here, and for an answer that means neither.
pub(crate) fn lack(name: &str, doctor: &Value) -> Result<Option<String>> {
    match name {
        "ebpf" => Ok(told(doctor, "backend").filter(|says| !says.starts_with("ebpf:"))),
        "interfaces-in-ebpf" => Ok(told(doctor, "interfaces").filter(|says| !says.starts_with("ebpf "))),
        "mptcp" => mptcp(),
        _ => bail!("{name} is no ability that can be asked for here"),
    }
}

/// What a finding of `veer doctor` says.
fn told(doctor: &Value, name: &str) -> Option<String> {
    let finding = doctor["findings"].as_array()?.iter().find(|finding| finding["name"] == name)?;
    finding["says"].as_str().map(str::to_owned)
}

/// `CONFIG_MPTCP`, which Debian's kernels have since 5.14. Before 5.6 its number is none that a protocol can have
/// (EINVAL). Switched off by its sysctl it is ENOPROTOOPT.
fn mptcp() -> Result<Option<String>> {
    match Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)) {
        Ok(_) => Ok(None),
        Err(error)
            if [Errno::EPROTONOSUPPORT, Errno::EINVAL]
                .iter()
                .any(|unknown| error.raw_os_error() == Some(*unknown as i32)) =>
        {
            Ok(Some(format!("socket(2) with IPPROTO_MPTCP: {error}")))
        }
        Err(error) => Err(error).context("make a socket of MPTCP"),
    }
}
