//! A pod that nobody talks to: a netns with an address, for what only counts pods.

use std::net::Ipv4Addr;

use anyhow::Result;
use veer_common::cni::Attachment;

use crate::attachment::{self, NAMESPACE};
use crate::manifest::Manifest;
use crate::netns::NetNs;
use crate::veth::{self, ip};

/// A netns with `eth0`, which leads nowhere.
#[derive(Debug)]
pub struct BarePod {
    name: String,
    v4: Ipv4Addr,
    netns: NetNs,
}

impl BarePod {
    /// Makes one; its address is out of 10.78.0.0/16 and the number's own.
    pub fn new(name: &str, number: u16) -> Result<Self> {
        let [high, low] = number.to_be_bytes();
        let v4 = Ipv4Addr::new(10, 78, high, low);
        let netns = NetNs::new()?;
        let link = ["link add eth0 type veth peer name nowhere".to_owned()].into_iter();
        ip(&netns, link.chain(veth::up("eth0", &[&format!("{v4}/16")])))?;
        Ok(Self { name: name.to_owned(), v4, netns })
    }

    /// Its name; its Kubernetes namespace is `test`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    pub const fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its namespace.
    pub const fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Its manifest, without any annotation but the injector's.
    pub fn manifest(&self) -> Manifest {
        Manifest::new(NAMESPACE, &self.name)
    }

    /// How a runtime names its attachment.
    pub fn attachment(&self) -> Attachment {
        attachment::of(&self.netns, &self.name)
    }
}
