//! Pods, and a world for them: one router with everything else behind it.
//!
//! Every [`World`] is a netns of its own, so pods of two worlds may have the same address.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};
use veer_common::cni::Attachment;

use crate::attachment::{self, NAMESPACE};
use crate::cgroup::Cgroup;
use crate::launch::{Identity, Launch};
use crate::manifest::Manifest;
use crate::netns::NetNs;
use crate::socket_maker::Maker;
use crate::veth::{self, ip};

/// The router's address on the pods' network, and the source of what the world says to them.
pub const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The same for IPv6.
pub const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// An address that is not on the pods' network: an outside service.
pub const REMOTE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The same for IPv6.
pub const REMOTE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

const BRIDGE: &str = "br0";
/// Fixed, because a bridge takes the lowest address of its ports else: the next pod may change it, and what
/// the other pods send to the one that they know is lost.
const BRIDGE_MAC: &str = "02:00:00:00:00:01";

/// A netns with a bridge for the pods, which routes between them and everything else.
#[derive(Debug)]
pub struct World {
    netns: NetNs,
    pods: AtomicU8,
}

impl World {
    /// Makes it.
    pub fn new() -> Result<Self> {
        let world = Self { netns: NetNs::new()?, pods: AtomicU8::new(0) };
        world.netns.set_sysctl("net/ipv4/ip_forward", "1")?;
        world.netns.set_sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let mut commands = vec![format!("link add {BRIDGE} address {BRIDGE_MAC} type bridge")];
        commands.extend(veth::up(BRIDGE, &[&format!("{ROUTER_V4}/24"), &format!("{ROUTER_V6}/64")]));
        ip(&world.netns, commands)?;
        world.add_address(&format!("{REMOTE_V4}/32"))?;
        world.add_address(&format!("{REMOTE_V6}/128"))?;
        Ok(world)
    }

    /// Its namespace.
    pub const fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Gives the world another address that pods can reach, with its prefix length: `203.0.113.1/32`.
    pub fn add_address(&self, address: &str) -> Result<()> {
        ip(&self.netns, veth::up("lo", &[address]))
    }

    /// A socket in the world: neither its netns nor its cgroup is a pod's.
    pub fn socket(&self, domain: Domain, kind: Type, protocol: Option<Protocol>) -> Result<Socket> {
        self.netns.run(|| Socket::new(domain, kind, protocol))?.context("create a socket in the world")
    }

    /// A TCP socket for IPv4 in the world.
    pub fn tcp4(&self) -> Result<Socket> {
        self.socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))
    }

    /// A TCP socket for IPv6 in the world.
    pub fn tcp6(&self) -> Result<Socket> {
        self.socket(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))
    }
}

/// A pod: netns with `eth0` on the world's bridge, cgroup, and a maker of sockets for each of its users.
#[derive(Debug)]
pub struct TestPod {
    name: String,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    app: Maker,
    root: Maker,
    proxy: Maker,
    netns: NetNs,
    cgroup: Cgroup,
}

impl TestPod {
    /// Makes one, its cgroup below `cgroup`. The first of a world is 10.77.0.2 and `fd77::2`, the next 3.
    pub fn new(world: &World, cgroup: &Cgroup, name: &str) -> Result<Self> {
        Self::in_netns(world, cgroup, name, NetNs::new()?)
    }

    /// Makes one of this netns.
    pub fn in_netns(world: &World, cgroup: &Cgroup, name: &str, netns: NetNs) -> Result<Self> {
        let number = world.pods.fetch_add(1, Ordering::Relaxed) + 2;
        let v4 = Ipv4Addr::new(10, 77, 0, number);
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into());
        let cgroup = cgroup.child(name)?;
        let port = format!("pod{number}");
        veth::pair(
            veth::End { netns: &netns, name: "eth0", addresses: &[&format!("{v4}/24"), &format!("{v6}/64")] },
            veth::End { netns: world.netns(), name: &port, addresses: &[] },
        )?;
        ip(world.netns(), [format!("link set {port} master {BRIDGE}")])?;
        let default =
            [format!("route add default via {ROUTER_V4}"), format!("route add default via {ROUTER_V6}")];
        ip(&netns, default)?;
        let maker = |identity| Maker::start(&netns, &cgroup, identity);
        let (app, root, proxy) =
            (maker(Identity::app())?, maker(Identity::root())?, maker(Identity::proxy())?);
        Ok(Self { name: name.to_owned(), v4, v6, app, root, proxy, netns, cgroup })
    }

    /// Its name; its Kubernetes namespace is `test`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its IPv4 address.
    pub const fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its IPv6 address.
    pub const fn v6(&self) -> Ipv6Addr {
        self.v6
    }

    /// Its namespace.
    pub const fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Its cgroup.
    pub const fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Makes sockets as the app, 1000:1000.
    pub const fn app(&self) -> &Maker {
        &self.app
    }

    /// Makes sockets as root without capabilities.
    pub const fn root(&self) -> &Maker {
        &self.root
    }

    /// Makes sockets as the proxy, 1337:1337.
    pub const fn proxy(&self) -> &Maker {
        &self.proxy
    }

    /// Starts a maker for another identity.
    pub fn maker(&self, identity: Identity) -> Result<Maker> {
        Maker::start(&self.netns, &self.cgroup, identity)
    }

    /// A process in the pod.
    pub fn launch(&self, identity: Identity) -> Launch {
        Launch::new().in_netns(&self.netns).in_cgroup(&self.cgroup).with_identity(identity)
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
