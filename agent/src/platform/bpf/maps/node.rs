//! The node's own addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use veer_common::address::Address;
use veer_common::maps::{MAX_NODE_ADDRESSES, name};

use super::inserted::inserted;
use super::{MEMBER, Maps, failed, ignore_missing};
use crate::platform::bpf::BpfError;

impl Maps {
    /// Makes these the node's addresses, and no others: new ones first.
    ///
    /// # Errors
    /// `Full`, or as the kernel says.
    pub fn set_node_addresses(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), BpfError> {
        let before = self.node_addresses()?;
        for address in addresses.difference(&before) {
            let (key, addresses) = (Address::from(*address), &mut self.node_addresses);
            inserted(name::NODE_ADDRESSES, MAX_NODE_ADDRESSES, || addresses.insert(key, MEMBER, 0))?;
        }
        for address in before.difference(addresses) {
            ignore_missing(self.node_addresses.remove(&Address::from(*address)))
                .map_err(failed("remove from", name::NODE_ADDRESSES))?;
        }
        Ok(())
    }

    /// The node's addresses.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn node_addresses(&self) -> Result<BTreeSet<IpAddr>, BpfError> {
        let keys = self.node_addresses.keys().map(|key| key.map(IpAddr::from));
        keys.collect::<Result<_, _>>().map_err(failed("list", name::NODE_ADDRESSES))
    }
}
