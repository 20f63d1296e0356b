//! What the process may do, and what each capability is for.

use super::facts::Process;
use super::{AS_ROOT, Area, Finding};

const AREA: Area = Area::Privileges;

/// A capability that the agent needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Capability {
    /// Its name.
    name: &'static str,
    /// Its number in `include/uapi/linux/capability.h`.
    number: u32,
    /// What veer does with it.
    purpose: &'static str,
    /// Whether nothing works without it.
    vital: bool,
    /// Whether the kernel takes CAP_SYS_ADMIN in its place, as it did before 5.8.
    replaced: bool,
}

const SYS_ADMIN: u32 = 21;

const CAPABILITIES: [Capability; 7] = [
    Capability {
        name: "CAP_BPF",
        number: 39,
        purpose: "to load programs and make maps",
        vital: true,
        replaced: true,
    },
    Capability {
        name: "CAP_NET_ADMIN",
        number: 12,
        purpose: "to attach programs to cgroups and namespaces, and for nftables",
        vital: true,
        replaced: false,
    },
    Capability {
        name: "CAP_PERFMON",
        number: 38,
        purpose: "so that the verifier follows pointers as far as the programs go",
        vital: true,
        replaced: true,
    },
    Capability {
        name: "CAP_SYS_ADMIN",
        number: SYS_ADMIN,
        purpose: "to enter the pods' network namespaces",
        vital: true,
        replaced: false,
    },
    Capability {
        name: "CAP_SYS_PTRACE",
        number: 19,
        purpose: "to take over listeners of proxies that are older than their enrolment",
        vital: false,
        replaced: false,
    },
    Capability {
        name: "CAP_NET_BROADCAST",
        number: 11,
        purpose: "to hear of addresses that pods gain or lose later",
        vital: false,
        replaced: false,
    },
    Capability {
        name: "CAP_NET_RAW",
        number: 13,
        purpose: "to see rules of the old iptables, which istio-init may have made in pods: without it such a pod looks as if \
                  nobody redirected it, and one that runs is redirected a second time",
        vital: false,
        replaced: false,
    },
];

impl Process {
    /// Whether it has a capability.
    pub const fn has(&self, number: u32) -> bool {
        self.capabilities & (1 << number) != 0
    }

    /// Whether it is somebody who only looks: not root, and without any capability that the agent has. What
    /// he cannot see says nothing about the node.
    pub fn looks_on(&self) -> bool {
        self.uid != 0 && !CAPABILITIES.iter().any(|capability| self.has(capability.number))
    }
}

/// The capabilities.
pub fn examine(process: &Process) -> Vec<Finding> {
    const NAME: &str = "capabilities";
    if process.looks_on() {
        let says = format!(
            "uid {} without capabilities: what needs them cannot be tried, and is no error here",
            process.uid
        );
        return vec![Finding::warning(AREA, NAME, says, AS_ROOT)];
    }
    let (there, missing): (Vec<Capability>, Vec<Capability>) =
        CAPABILITIES.into_iter().partition(|capability| process.has(capability.number));
    let mut findings: Vec<Finding> = missing.iter().map(|capability| absent(process, capability)).collect();
    if missing.is_empty() {
        let names: Vec<_> = there.iter().map(|capability| capability.name).collect();
        findings.push(Finding::ok(AREA, NAME, format!("all that the agent needs: {}", names.join(", "))));
    }
    findings
}

fn absent(process: &Process, capability: &Capability) -> Finding {
    let Capability { name, purpose, .. } = capability;
    let advice = format!("give it to the agent: {name} in its securityContext.capabilities.add");
    if capability.replaced && process.has(SYS_ADMIN) {
        let says = format!("{name} is missing ({purpose}); CAP_SYS_ADMIN stands in for it");
        return Finding::ok(AREA, "capabilities", says);
    }
    let says = format!("{name} is missing: it is needed {purpose}");
    if capability.vital {
        Finding::error(AREA, "capabilities", says, advice)
    } else {
        Finding::warning(AREA, "capabilities", says, advice)
    }
}
