//! Who else redirects connections: the rules of istio-init and of other meshes, known by their chains' names.

use std::collections::BTreeSet;

use super::facts::{Chain, Netns, Redirections};
use super::{Area, Finding, first_line, number};

const AREA: Area = Area::Redirection;
/// Namespaces that are named; the rest is counted.
const MOST_NAMED: usize = 4;

/// Whose chains they are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Mesh {
    /// istio-init, or istio-cni.
    Istio,
    /// linkerd-init, or linkerd-cni.
    Linkerd,
    /// kuma-init, or kuma-cni.
    Kuma,
    /// Consul's.
    Consul,
}

impl Mesh {
    /// Whose a chain is, by its own name or its table's. Istio's names: `tools/istio-iptables/pkg/constants` and
    /// `tools/istio-nftables/pkg/constants`; Linkerd's: `proxy-init`; Kuma's: `KUMA_MESH_`, before 2.0 `MESH_`.
    pub fn of(chain: &Chain) -> Option<Self> {
        let known = [
            ("ISTIO_", Self::Istio),
            ("istio-", Self::Istio),
            ("PROXY_INIT_", Self::Linkerd),
            ("KUMA_MESH_", Self::Kuma),
            ("MESH_", Self::Kuma),
            ("CONSUL_", Self::Consul),
        ];
        let begins = |(prefix, mesh): (&str, Self)| {
            (chain.name.starts_with(prefix) || chain.table.starts_with(prefix)).then_some(mesh)
        };
        known.into_iter().find_map(begins)
    }

    /// Who that is, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Istio => "istio-init or istio-cni",
            Self::Linkerd => "Linkerd",
            Self::Kuma => "Kuma",
            Self::Consul => "Consul",
        }
    }
}

/// Other redirections.
pub fn examine(redirections: &Redirections, looks_on: bool) -> Vec<Finding> {
    if looks_on {
        return vec![Finding::untold(AREA, "other-meshes", "what else redirects the pods' connections")];
    }
    let mut findings = Vec::new();
    let mut beside = Vec::new();
    for netns in &redirections.netns {
        match &netns.chains {
            Ok(chains) => {
                for mesh in meshes(chains) {
                    if netns.enrolled {
                        findings.push(doubled(netns, mesh, chains));
                    } else {
                        beside.push((netns, mesh));
                    }
                }
            }
            Err(words) => findings.push(
                Finding::warning(
                    AREA,
                    "other-meshes",
                    format!("cannot tell what redirects {}: {}", netns.who, first_line(words)),
                    "see the kernel's words; look with iptables-save in that netns",
                )
                .with_words(words),
            ),
        }
    }
    findings.extend(others(&beside));
    findings.extend(node(&redirections.node));
    if findings.is_empty() {
        let says = format!(
            "no rules of istio-init or of another mesh in the node's own netns, nor in {}",
            number(redirections.netns.len(), "other", "others")
        );
        findings.push(Finding::ok(AREA, "other-meshes", says));
    }
    findings.extend(left_off(redirections));
    findings
}

fn meshes(chains: &[Chain]) -> BTreeSet<Mesh> {
    chains.iter().filter_map(Mesh::of).collect()
}

fn doubled(netns: &Netns, mesh: Mesh, chains: &[Chain]) -> Finding {
    let names: BTreeSet<&str> = chains
        .iter()
        .filter(|chain| Mesh::of(chain) == Some(mesh))
        .map(|chain| chain.name.as_str())
        .collect();
    let names: Vec<&str> = names.into_iter().take(MOST_NAMED).collect();
    Finding::error(
        AREA,
        "redirected-twice",
        format!(
            "{} is enrolled and has rules of {}, too ({}): its connections are redirected twice, and the \
             proxy learns wrong destinations",
            netns.who,
            mesh.name(),
            names.join(", ")
        ),
        "leave out the init container (with Istio: pilot.cni.enabled, so that the injector adds none) and the \
         other CNI plugin, and start the pod anew",
    )
}

/// What redirects pods that are not ours: right until they are.
fn others(beside: &[(&Netns, Mesh)]) -> Vec<Finding> {
    let meshes: BTreeSet<Mesh> = beside.iter().map(|(_, mesh)| *mesh).collect();
    meshes
        .into_iter()
        .map(|mesh| {
            let whose: Vec<&str> =
                beside.iter().filter(|(_, of)| *of == mesh).map(|(netns, _)| netns.who.as_str()).collect();
            let more = whose.len().saturating_sub(MOST_NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let named: Vec<&str> = whose.iter().copied().take(MOST_NAMED).collect();
            Finding::warning(
                AREA,
                "other-meshes",
                format!(
                    "{} redirects {}: {}{more}. veer has not enrolled them, and leaves them alone",
                    mesh.name(),
                    number(whose.len(), "netns", "netns"),
                    named.join(", ")
                ),
                "nothing, while you move pods from one to the other; each is to have only one of the two",
            )
        })
        .collect()
}

/// The node's own netns: rules of a sidecar there take the traffic of the whole node (istio#55139).
fn node(chains: &Result<Vec<Chain>, String>) -> Vec<Finding> {
    const NAME: &str = "node-rules";
    match chains {
        Ok(chains) => {
            // Ambient mode has one chain on the node, for the probes of kubelet: that is meant to be there.
            let theirs = chains.iter().filter(|chain| chain.name != "ISTIO_POSTRT");
            let meshes: BTreeSet<Mesh> = theirs.filter_map(Mesh::of).collect();
            let of = |mesh: Mesh| {
                Finding::warning(
                    AREA,
                    NAME,
                    format!(
                        "the node's own netns has rules of {}: they take the node's traffic",
                        mesh.name()
                    ),
                    "look with iptables-save on the node, and remove them",
                )
            };
            meshes.into_iter().map(of).collect()
        }
        Err(words) => vec![
            Finding::warning(
                AREA,
                NAME,
                format!("cannot tell what redirects on the node itself: {}", first_line(words)),
                "see the kernel's words; look with iptables-save on the node",
            )
            .with_words(words),
        ],
    }
}

fn left_off(redirections: &Redirections) -> Vec<Finding> {
    let mut findings = Vec::new();
    if redirections.left_off > 0 {
        findings.push(Finding::warning(
            AREA,
            "other-meshes",
            format!("{} more namespaces were not looked at: there are too many", redirections.left_off),
            "look into the pods in question with iptables-save",
        ));
    }
    if redirections.hidden > 0 {
        findings.push(Finding::warning(
            AREA,
            "other-meshes",
            format!(
                "the namespaces of {} could not be seen",
                number(redirections.hidden, "process", "processes")
            ),
            "run it as root with CAP_SYS_PTRACE, in the node's pid namespace (hostPID)",
        ));
    }
    findings
}
