//! The node's own addresses, from which the kubelet probes pods: what comes from there to a pod of ambient mode is not
//! captured.
//!
//! Owns: which addresses of the node count. Never does: hear of a change; `follow` does. Called by: `follow`, and `app`
//! at the start.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::error::EnrolError;
use super::node::Node;
use crate::capture::InterfaceAddress;
use crate::model::Driver;
use crate::platform::netlink;

/// Where kube-proxy (IPVS) puts the addresses of all services, from which nothing is sent.
const SERVICES: &str = "kube-ipvs0";

impl Node {
    /// Whether the node's addresses matter: some pod is of ambient mode, or may come to be.
    pub(super) fn needs_node_addresses(&self) -> bool {
        self.may_be_ambient || self.registry.iter().any(|pod| pod.driver == Driver::Ztunnel)
    }

    /// Has the programs know the node's addresses as they are, if they matter.
    ///
    /// # Errors
    /// If they cannot be read, or have no room.
    pub fn refresh_node_addresses(&mut self) -> Result<(), EnrolError> {
        if !self.needs_node_addresses() {
            return Ok(());
        }
        // No thread of the agent's but one is ever in another netns than the node's.
        let addresses = netlink::addresses()
            .map_err(|source| EnrolError::Inspect { attempt: "read the node's addresses instead", source })?;
        self.backends.set_node_addresses(&those_that_count(addresses))
    }
}

fn those_that_count(addresses: Vec<InterfaceAddress>) -> BTreeSet<IpAddr> {
    let of_node = addresses.into_iter().filter(|one| one.interface != SERVICES);
    of_node.map(|one| one.address.to_canonical()).filter(|address| !address.is_loopback()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_loopback_nor_the_services_of_ipvs_probe_anybody() {
        let on = |interface: &str, address: &str| InterfaceAddress {
            interface: interface.to_owned(),
            address: address.parse().unwrap(),
            scope: 0,
            flags: 0,
        };
        let addresses = vec![
            on("lo", "127.0.0.1"),
            on("eth0", "192.0.2.7"),
            on("kube-ipvs0", "10.96.0.1"),
            on("cni0", "10.1.0.1"),
            on("eth0", "2001:db8::7"),
        ];
        let counting: Vec<String> = those_that_count(addresses).iter().map(ToString::to_string).collect();
        assert_eq!(counting, ["10.1.0.1", "192.0.2.7", "2001:db8::7"]);
    }
}
