//! Who sees a connection before veer does: a socket load balancer that does hides which service was dialled.
//!
//! Such a program (Cilium without kube-proxy, Calico's eBPF data plane) rewrites a service's address to that of a
//! backend in connect(). After veer that is right: it finds what veer has left alone, and 127.0.0.1 is no service.
//! Before veer it takes the service away from the proxy.
//!
//! Owns: telling which programs run before ours. Never does: change the order, or know what a foreign program
//! does. Called by: `app` and the control socket.

use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::load::CGROUP_PROGRAMS;
use super::pins::Pins;
use super::query::{self, Attached};
use super::sys::{self, AttachType};

/// A program that runs before ours at one hook.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunsBefore {
    /// The hook, as the kernel's documentation names it.
    pub hook: String,
    /// The program's name; empty if it has none.
    pub program: String,
    /// Its id.
    pub program_id: u32,
    /// The cgroup that it hangs on; absent where it cannot be seen.
    pub cgroup: Option<PathBuf>,
    /// What it means, and the way out.
    pub advice: String,
}

impl fmt::Display for RunsBefore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hook, program, program_id, cgroup, advice } = self;
        let program = if program.is_empty() { "without a name" } else { program };
        write!(f, "program {program} (id {program_id}")?;
        if let Some(cgroup) = cgroup {
            write!(f, ", at {}", cgroup.display())?;
        }
        write!(f, ") runs before veer at {hook}: {advice}")
    }
}

/// Where to look.
#[derive(Clone, Debug)]
pub struct Neighbours {
    /// Our pins, by which our own programs are known.
    pub pins: Pins,
    /// The cgroup that ours are attached to.
    pub cgroup: PathBuf,
}

impl Neighbours {
    /// The foreign programs that run before ours where a dialled address can be rewritten, for the processes
    /// below our cgroup. A hook that cannot be asked is left out.
    pub fn before_ours(&self) -> Vec<RunsBefore> {
        let hooks =
            CGROUP_PROGRAMS.into_iter().filter_map(|(name, hook)| Some((name, hook, rewrites(hook)?)));
        hooks.flat_map(|(name, hook, hook_name)| self.before(name, hook, hook_name)).collect()
    }

    fn before(&self, name: &str, hook: AttachType, hook_name: &str) -> Vec<RunsBefore> {
        let ours = sys::get(&self.pins.link(name)).and_then(|link| sys::link_target(link.as_fd()));
        let programs = ours.and_then(|ours| {
            let programs = query::in_order(&self.cgroup, hook)?;
            Ok(programs.into_iter().take_while(move |program| program.id != ours.program_id))
        });
        match programs {
            Ok(programs) => programs.map(|program| self.runs_before(hook_name, program)).collect(),
            Err(error) => {
                tracing::warn!(hook = hook_name, %error, "cannot tell which programs run before veer's");
                Vec::new()
            }
        }
    }

    fn runs_before(&self, hook: &str, program: Attached) -> RunsBefore {
        RunsBefore {
            hook: hook.to_owned(),
            advice: advice(program.cgroup.as_deref(), &self.cgroup),
            program: program.name,
            program_id: program.id,
            cgroup: program.cgroup,
        }
    }
}

/// The name of a hook at which a program may change where a connection or datagram goes.
pub(in crate::platform) const fn rewrites(hook: AttachType) -> Option<&'static str> {
    match hook {
        AttachType::Connect4 => Some("connect4"),
        AttachType::Connect6 => Some("connect6"),
        AttachType::UdpSendMsg4 => Some("sendmsg4"),
        AttachType::UdpSendMsg6 => Some("sendmsg6"),
        AttachType::SockCreate
        | AttachType::SockOps
        | AttachType::Bind4
        | AttachType::Bind6
        | AttachType::GetSockOpt
        | AttachType::SetSockOpt
        | AttachType::UdpRecvMsg4
        | AttachType::UdpRecvMsg6
        | AttachType::GetPeerName4
        | AttachType::GetPeerName6
        | AttachType::SkLookup => None,
    }
}

fn advice(theirs: Option<&Path>, ours: &Path) -> String {
    let meaning = "if it translates service addresses, proxies are told backends in place of the services that \
                   were dialled";
    let off = "have its translation left out for pods (Cilium: socketLB.hostNamespaceOnly=true, Calico: \
               bpfConnectTimeLoadBalancing: Disabled)";
    if theirs == Some(ours) {
        format!("{meaning}; attach veer to a cgroup of the pods below it (--cgroup), or {off}")
    } else {
        format!("{meaning}; {off}")
    }
}
