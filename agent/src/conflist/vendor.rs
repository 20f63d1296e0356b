//! Whose a network configuration is, by the type of a plugin that nobody else ships.

use super::Network;

/// Types, and who writes the file that they are in. What is chained to what comes after it here.
const VENDORS: [(&str, &str); 17] = [
    ("azure-vnet", "Azure's CNI (CNS)"),
    ("gke", "GKE (netd)"),
    ("terway", "Terway (terwayd)"),
    ("multus-shim", "Multus"),
    ("multus", "Multus"),
    // These write a file of their own when they are chained.
    ("cilium-cni", "Cilium"),
    ("antrea", "Antrea"),
    ("calico", "Calico's install-cni"),
    ("flannel", "flannel"),
    ("aws-cni", "the VPC CNI of AWS (aws-node)"),
    ("weave-net", "Weave Net"),
    ("ovn-k8s-cni-overlay", "OVN-Kubernetes"),
    ("cello-meta", "Volcengine's CNI (cello)"),
    ("kube-ovn", "Kube-OVN"),
    ("istio-cni", "Istio's CNI agent"),
    ("linkerd-cni", "Linkerd's CNI agent"),
    // What several use comes last.
    ("ptp", "kindnet, or GKE's containerd"),
];
/// Who writes Multus's file on Tencent's nodes.
const TENCENT: &str = "Tencent's tke-cni-agent";

/// Who writes a file, as far as its plugins tell.
pub fn vendor(network: &Network) -> Option<&'static str> {
    if network.is_tencent_multus {
        return Some(TENCENT);
    }
    let known = |(kind, _): &&(&str, &str)| network.plugins.iter().any(|plugin| plugin == kind);
    VENDORS.iter().find(known).map(|(_, who)| *who)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conflist::parse;

    #[test]
    fn the_one_who_writes_a_chain_is_named_and_not_who_is_chained_to() {
        let who = |types: &[&str]| {
            let plugins: Vec<String> = types.iter().map(|kind| format!(r#"{{"type":"{kind}"}}"#)).collect();
            vendor(&parse("a.conflist", &format!(r#"{{"plugins":[{}]}}"#, plugins.join(","))).unwrap())
        };
        assert_eq!(who(&["aws-cni", "egress-cni", "portmap"]), Some("the VPC CNI of AWS (aws-node)"));
        assert_eq!(who(&["aws-cni", "portmap", "cilium-cni"]), Some("Cilium"));
        assert_eq!(who(&["azure-vnet", "cilium-cni"]), Some("Azure's CNI (CNS)"));
        assert_eq!(who(&["bridge", "portmap"]), None);
        let tencent =
            parse("00-multus.conf", r#"{"type":"multus","defaultDelegates":"tke-bridge"}"#).unwrap();
        assert_eq!(vendor(&tencent), Some(TENCENT));
    }
}
