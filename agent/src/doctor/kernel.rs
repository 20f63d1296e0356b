//! What the kernel can: the eBPF datapath, nftables in its place, and settings that matter. It is asked by
//! trying; no version is compared.

use super::facts::{CookieFrom, Ebpf, Facts, KernelSettings, Process, Tried};
use super::{Area, Finding, first_line, said_of};
use crate::model::BackendName;

const AREA: Area = Area::Kernel;

/// What `--backend auto` would choose: eBPF where all of it works, else nftables where that does.
pub fn backend(facts: &Facts) -> Option<BackendName> {
    if works(&facts.ebpf) {
        Some(BackendName::Ebpf)
    } else if facts.nftables.iter().any(|family| family.outcome.is_ok()) && !facts.process.looks_on() {
        Some(BackendName::Nftables)
    } else {
        None
    }
}

fn works(ebpf: &Ebpf) -> bool {
    matches!(ebpf.maps, Some(Ok(_)))
        && ebpf.programs.iter().chain(&ebpf.hooks).all(|tried| tried.outcome.is_ok())
        && !ebpf.programs.is_empty()
        && !ebpf.hooks.is_empty()
        && matches!(ebpf.netns_cookie, Some(Ok(_)))
}

/// The kernel.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![chosen(facts)];
    if facts.process.looks_on() {
        findings.push(Finding::untold(AREA, "ebpf", "whether the eBPF programs load"));
        findings.push(Finding::untold(AREA, "nftables", "whether nftables can redirect"));
    } else {
        findings.extend(maps(&facts.ebpf, &facts.process));
        findings.extend(programs(&facts.ebpf, facts.kernel_settings.lockdown.as_deref()));
        findings.extend(hooks(&facts.ebpf));
        findings.extend(cookie(&facts.ebpf));
        if works(&facts.ebpf) {
            findings.extend(facts.ebpf.arrival_interface.as_ref().map(excluded_interfaces));
        }
        findings.extend(nftables(&facts.nftables));
    }
    findings.extend(settings(&facts.kernel_settings));
    findings
}

fn chosen(facts: &Facts) -> Finding {
    const NAME: &str = "backend";
    if facts.process.looks_on() {
        return Finding::untold(AREA, NAME, "which backend would be used");
    }
    match backend(facts) {
        Some(BackendName::Ebpf) => {
            Finding::ok(AREA, NAME, "ebpf: every map, program and hook of it works on this kernel")
        }
        Some(BackendName::Nftables) => Finding::warning(
            AREA,
            NAME,
            "nftables: not all of the eBPF works here, as the warnings below say",
            "nothing, if rules are all right for this node: connections go where they would with eBPF, by NAT and \
             conntrack; else remove what they name",
        ),
        None => Finding::error(
            AREA,
            NAME,
            "none: neither the eBPF nor nftables works here, as the errors below say",
            "remove what they name; keep istio-init for this node's pods meanwhile",
        ),
    }
}

fn maps(ebpf: &Ebpf, process: &Process) -> Vec<Finding> {
    const NAME: &str = "ebpf-maps";
    match &ebpf.maps {
        None => Vec::new(),
        Some(Ok(count)) => vec![Finding::ok(AREA, NAME, format!("all {count} can be made"))],
        Some(Err(words)) => {
            let missing = |tried: &&Tried| tried.outcome.is_err();
            let kinds: Vec<_> =
                ebpf.map_kinds.iter().filter(missing).map(|tried| tried.name.as_str()).collect();
            let advice = match (kinds.as_slice(), process.locked_memory) {
                ([], Some(limit)) => format!(
                    "raise the locked memory of {limit} bytes (ulimit -l unlimited), which kernels before \
                     5.11 count maps in"
                ),
                ([], None) => "see the kernel's words; a missing capability looks like this, too".to_owned(),
                (kinds, _) => format!("a newer kernel: this one has no map of kind {}", kinds.join(", ")),
            };
            vec![Finding::error(AREA, NAME, first_line(words), advice).with_words(words)]
        }
    }
}

fn programs(ebpf: &Ebpf, lockdown: Option<&str>) -> Vec<Finding> {
    const NAME: &str = "ebpf-programs";
    let advice = if lockdown.is_some_and(|mode| mode == "confidentiality") {
        "a kernel that is not locked down as far as confidentiality, or a newer one"
    } else {
        "a newer kernel, or the capabilities that are missing; the verifier's words say which"
    };
    each(NAME, &ebpf.programs, advice, |count| {
        format!("all {count} are loaded: the verifier has accepted them")
    })
}

fn hooks(ebpf: &Ebpf) -> Vec<Finding> {
    each(
        "ebpf-hooks",
        &ebpf.hooks,
        "a newer kernel; if it says EPERM: a program above this cgroup forbids others below it \
         (`bpftool cgroup tree` shows it without \"multi\"), or a capability is missing",
        |count| format!("all {count} attached and taken away again, in a cgroup and a netns of their own"),
    )
}

fn cookie(ebpf: &Ebpf) -> Vec<Finding> {
    const NAME: &str = "netns-cookie";
    match &ebpf.netns_cookie {
        None => Vec::new(),
        Some(Ok(CookieFrom::Kernel)) => {
            vec![Finding::ok(AREA, NAME, "namespaces tell their cookie (SO_NETNS_COOKIE)")]
        }
        Some(Ok(CookieFrom::Program)) => {
            vec![Finding::ok(
                AREA,
                NAME,
                "a program tells the cookies of namespaces, which this kernel does not",
            )]
        }
        Some(Err(words)) => vec![
            Finding::error(
                AREA,
                NAME,
                format!("a netns does not tell its cookie, which pods are known by: {}", first_line(words)),
                "a newer kernel (SO_NETNS_COOKIE); before 5.14, a cgroup v2 that programs may be attached to",
            )
            .with_words(words),
        ],
    }
}

/// Nobody has to do anything about it: rules redirect such pods as well.
fn excluded_interfaces(outcome: &Result<(), String>) -> Finding {
    const NAME: &str = "interfaces";
    match outcome {
        Ok(()) => Finding::ok(AREA, NAME, "ebpf redirects pods that exclude interfaces, too"),
        Err(words) => Finding::ok(
            AREA,
            NAME,
            "nftables redirects pods that exclude interfaces: this kernel tells no program which one a connection \
             arrives on (5.17 does)",
        )
        .with_words(words),
    }
}

fn nftables(families: &[Tried]) -> Vec<Finding> {
    const NAME: &str = "nftables";
    let (can, cannot): (Vec<&Tried>, Vec<&Tried>) =
        families.iter().partition(|family| family.outcome.is_ok());
    if cannot.is_empty() && !can.is_empty() {
        let names: Vec<_> = can.iter().map(|family| family.name.as_str()).collect();
        return vec![Finding::ok(AREA, NAME, format!("could redirect in {}", names.join(" and ")))];
    }
    let refused = |family: &&Tried| {
        let words = family.outcome.as_ref().err()?;
        let says = format!("cannot redirect in {}: {}", family.name, first_line(words));
        let advice = "only if the eBPF does not work: load nf_tables, nft_chain_nat and nft_redir";
        Some(Finding::warning(AREA, NAME, says, advice).with_words(words))
    };
    cannot.iter().filter_map(refused).collect()
}

/// One finding if all is well, else one for each thing that the kernel says.
fn each(name: &'static str, all: &[Tried], advice: &str, well: impl FnOnce(usize) -> String) -> Vec<Finding> {
    let mut failed: Vec<(&str, Vec<&str>)> = Vec::new();
    for tried in all {
        if let Err(words) = &tried.outcome {
            said_of(&mut failed, words, &tried.name);
        }
    }
    if failed.is_empty() {
        return if all.is_empty() { Vec::new() } else { vec![Finding::ok(AREA, name, well(all.len()))] };
    }
    let finding = |(words, names): (&str, Vec<&str>)| {
        let says = format!("{}: {}", names.join(", "), first_line(words));
        Finding::error(AREA, name, says, advice).with_words(words)
    };
    failed.into_iter().map(finding).collect()
}

fn settings(settings: &KernelSettings) -> Vec<Finding> {
    let mut findings = Vec::new();
    if settings.jit.as_deref() == Some("0") {
        findings.push(Finding::warning(
            AREA,
            "bpf-jit",
            "eBPF programs are interpreted, which makes each connect() slower",
            "sysctl net.core.bpf_jit_enable=1",
        ));
    }
    if let Some(mode) = settings.lockdown.as_deref().filter(|mode| *mode != "none") {
        findings.push(Finding::ok(AREA, "lockdown", format!("the kernel is locked down ({mode})")));
    }
    if !settings.ipv6 {
        findings.push(Finding::ok(
            AREA,
            "ipv6",
            "the kernel speaks no IPv6: of pods, IPv4 alone is captured, and nothing is lost by that",
        ));
    }
    findings
}
